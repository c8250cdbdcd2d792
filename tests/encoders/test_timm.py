"""Encoders of timm give what timm's own transform and network give; what does not fit is refused in plain words.

The networks are random and narrow: architectures of timm with fewer and narrower layers.
"""

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config

from clipadapter.encoders import create_encoder
from clipadapter.errors import EncoderUnavailableError, InputError
from clipadapter.testing import check_encoder

from .conftest import weights_writer
from .expected_layers import outputs_of, statistics

NARROW = {
    "vit_tiny_patch16_224": {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 48},
    "vit_small_patch14_reg4_dinov2": {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 42},
    "vit_small_patch16_dinov3": {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 48},
    "eva02_tiny_patch14_224": {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 42},
    "convnext_atto": {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)},
}
FACTS = {
    "input_size": (3, 48, 48),
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.4, 0.5, 0.6),
    "std": (0.2, 0.3, 0.4),
}


def write_folder(folder, architecture, **facts):
    """A folder as `timm.models.save_for_hf` writes it, and the network in it."""
    options = NARROW[architecture]
    side = options.get("img_size", 64)
    overlay = {"input_size": (3, side, side), "num_classes": 5, **facts}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model(architecture, num_classes=5, pretrained_cfg_overlay=overlay, **options).eval()
        for parameter in network.parameters():  # layer scales and class tokens of zeros would hide mistakes
            torch.nn.init.normal_(parameter, std=0.2)
    timm.models.save_for_hf(network, str(folder), model_config={"num_classes": 5}, model_args=options)
    return network


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folder and network by architecture."""
    root = tmp_path_factory.mktemp("timm")
    return {name: (root / name, write_folder(root / name, name)) for name in NARROW}


@pytest.fixture
def opened(folders):
    """A function that opens the encoder of an architecture; it returns the encoder and the network."""
    return lambda name: (create_encoder(f"timm:local-dir:{folders[name][0]}"), folders[name][1])


def test_it_keeps_every_rule_of_encoders(opened):
    check_encoder(opened("vit_small_patch14_reg4_dinov2")[0])


@pytest.mark.parametrize("name", NARROW)
def test_features_are_those_of_timm(name, opened, picture):
    encoder, network = opened(name)
    transform = create_transform(**resolve_data_config(pretrained_cfg=network.pretrained_cfg))
    images = [picture(90, 60), picture(50, 130)]
    with torch.no_grad():
        pixels = torch.stack([transform(image) for image in images])
        expected = network.forward_head(network.forward_features(pixels), pre_logits=True)
    assert encoder.info.dim == expected.shape[1]
    torch.testing.assert_close(encoder.encode_images(images), expected, atol=1e-5, rtol=1e-5)
    assert encoder.tower().module(pixels).shape == expected.shape


@pytest.mark.parametrize("change", [{}, {"crop_mode": "squash", "crop_pct": 0.9, "interpolation": "bilinear"}])
def test_pixels_are_those_of_timm(change, tmp_path, picture):
    network = write_folder(tmp_path, "vit_tiny_patch16_224", **{**FACTS, **change})
    transform = create_transform(**resolve_data_config(pretrained_cfg=network.pretrained_cfg))
    encoder = create_encoder(f"timm:local-dir:{tmp_path}")
    for image in (picture(90, 61), picture(33, 70)):
        torch.testing.assert_close(encoder.preprocess(image), transform(image), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A function that writes weights of timm's smallest network, with 7 classes, changed or not, into a file."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        state = timm.create_model("test_vit", num_classes=7).state_dict()
    return weights_writer(folder, state)


def expected_features(path, image):
    """By timm, from the file, for pictures of 160 pixels: short side to 166 (crop_pct 0.95 of 160 is 168)."""
    network = timm.create_model("test_vit", num_classes=7).eval()
    network.load_state_dict(load_file(path))
    transform = create_transform(**resolve_data_config(pretrained_cfg=network.pretrained_cfg))
    with torch.no_grad():
        return network.forward_head(network.forward_features(transform(image)[None]), pre_logits=True)


def without_classifier(state):
    return {name: value for name, value in state.items() if not name.startswith("head.")}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("own.safetensors", dict),
        ("own.pth", dict),
        ("checkpoint.pth", lambda state: {"epoch": 3, "model": state}),
        ("bare.safetensors", without_classifier),
    ],
)
def test_a_file_opens_for_a_named_model(name, change, weights, picture):
    path = weights(name, change)
    encoder = create_encoder(f"timm:test_vit:{path}")
    assert encoder.info.name == f"timm:test_vit.r160_in1k:{path}"
    assert (encoder.info.dim, encoder.info.image_size, encoder.info.licence) == (64, 160, "unknown")
    expected = expected_features(weights("own.safetensors"), picture(300, 200))
    torch.testing.assert_close(encoder.encode_images([picture(300, 200)]), expected, atol=1e-5, rtol=1e-5)


def test_named_weights_open_from_the_hubs_cache_without_a_request(weights, hub_cache, picture, monkeypatch):
    monkeypatch.setattr("clipadapter.encoders.weights._request", lambda *asked: pytest.fail("no request is needed"))
    path = weights(
        "named.safetensors", lambda s: {**s, "head.weight": torch.ones(1000, 64), "head.bias": torch.ones(1000)}
    )
    path.rename(hub_cache("timm/test_vit.r160_in1k") / "model.safetensors")
    encoder = create_encoder("timm:test_vit")
    assert (encoder.info.name, encoder.info.licence) == ("timm:test_vit.r160_in1k", "Apache-2.0")
    expected = expected_features(weights("own.safetensors"), picture(300, 200))
    torch.testing.assert_close(encoder.encode_images([picture(300, 200)]), expected, atol=1e-5, rtol=1e-5)
    smaller = create_encoder("timm:test_vit.r160_in1k@96")
    assert (smaller.info.name, smaller.info.image_size) == ("timm:test_vit.r160_in1k@96", 96)
    assert smaller.encode_images([picture(300, 200)]).shape == (1, 64)
    assert smaller.info.fingerprint != encoder.info.fingerprint


def test_weights_of_another_network_are_refused(weights):
    path = weights("wrong.safetensors", lambda state: {k: v for k, v in state.items() if k != "norm.weight"})
    with pytest.raises(EncoderUnavailableError, match=r"weights of another architecture.*1 missing \(norm.weight\)"):
        create_encoder(f"timm:test_vit:{path}")


def test_preprocessing_and_outputs_that_are_not_supported_are_refused(tmp_path):
    write_folder(tmp_path, "vit_tiny_patch16_224")
    config = json.loads((tmp_path / "config.json").read_text())
    for facts, arguments, message in (
        ({"crop_mode": "border"}, {}, "crop_mode border"),
        ({"crop_pct": 1.15}, {}, "crop_pct 1.15"),
        ({"input_size": (3, 48, 64)}, {"img_size": (48, 64)}, "only square"),
    ):
        changed = {"pretrained_cfg": config["pretrained_cfg"] | facts, "model_args": config["model_args"] | arguments}
        (tmp_path / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(InputError, match=message):
            create_encoder(f"timm:local-dir:{tmp_path}")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(EncoderUnavailableError, match=r"needs a readable config\.json"):
        create_encoder(f"timm:local-dir:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2"}))
    with pytest.raises(EncoderUnavailableError, match="so it is no model of timm"):
        create_encoder(f"timm:local-dir:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", "pretrained_cfg": {}}))
    with pytest.raises(EncoderUnavailableError, match=r"put a model\.safetensors into it"):
        create_encoder(f"timm:local-dir:{tmp_path}")


@pytest.mark.parametrize(
    "name", ["vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3"]
)
def test_inner_layers_are_the_tokens_after_thirds_of_the_layers(name, opened, picture):
    encoder, network = opened(name)
    pixels = torch.stack([encoder.preprocess(picture(90, 60))])
    _, tokens = outputs_of(network, network.blocks, pixels)
    # Of three layers: the first, the second, and the last.
    normed = [network.norm(each).detach() for each in tokens]
    n_prefix = network.num_prefix_tokens
    expected = {
        "inner-token": torch.cat([each[:, 0] for each in normed], dim=1),
        "inner-mean": torch.cat([each[:, n_prefix:].mean(dim=1) for each in normed], dim=1),
    }
    assert encoder.layers() == {"final": 32, "inner-token": 96, "inner-mean": 96}
    for layer, features in expected.items():
        torch.testing.assert_close(encoder.layer_network([layer], 1 * pixels.shape[-1])(pixels), features)


def test_inner_layers_of_a_convolutional_network_are_statistics_of_its_stages(opened, picture):
    encoder, network = opened("convnext_atto")
    pixels = torch.stack([encoder.preprocess(picture(90, 60))])
    _, maps = outputs_of(network, network.stages, pixels)
    expected = [statistics(each) for each in maps]
    n = sum(each.shape[1] for each in maps)
    for i, layer in enumerate(("inner-mean", "inner-max", "inner-std")):
        widths = [each.shape[1] for each in maps]
        parts = [e[:, i * w : (i + 1) * w] for e, w in zip(expected, widths, strict=True)]
        features = encoder.layer_network([layer], 64)(pixels)
        assert features.shape[1] >= n
        np.testing.assert_allclose(features[:, :n], np.concatenate(parts, axis=1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NARROW)
def test_a_second_size_is_that_of_timm(name, folders, opened, picture):
    encoder, _ = opened(name)
    size = encoder.second_size()
    # 12/7 of the side, in whole patches of 14 or 16 pixels, or multiples of 32.
    sides = {"vit_tiny_patch16_224": 80, "vit_small_patch16_dinov3": 80, "convnext_atto": 96}
    assert size == sides.get(name, 70)
    resized = timm.create_model(f"local-dir:{folders[name][0]}", pretrained=True, num_classes=5)
    if hasattr(resized, "set_input_size"):
        resized.set_input_size(img_size=size)
    pixels = torch.nn.functional.interpolate(encoder.preprocess(picture(90, 60))[None], size=(size, size))
    with torch.no_grad():
        expected = resized.eval().forward_head(resized.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(encoder.layer_network(["final"], size)(pixels), expected, atol=1e-4, rtol=1e-4)


def test_heat_maps_need_a_pooled_feature(opened, picture):
    assert opened("vit_small_patch14_reg4_dinov2")[0].patch_features(picture(90, 60)) is None
    assert opened("convnext_atto")[0].patch_features(picture(90, 60)).shape == (2, 2, 32)
