"""Blocks side by side are each what they are alone; values of CLIP's towers are in `test_open_clip_layers.py`."""

import numpy as np
import pytest
import torch
from PIL import Image

from clipadapter import FewShotClassifier
from clipadapter.encoders import create_encoder, open_blocks, select_encoder_blocks, unprojected_blocks, with_backend
from clipadapter.encoders.base import to_tensor
from clipadapter.encoders.block_encoder import BackendEncoder
from clipadapter.encoders.toy import COLOURS
from clipadapter.errors import FingerprintError, InputError
from clipadapter.features import FeatureStore, extract


@pytest.fixture
def pair(opened):
    """Towers of different sizes: 32 and 224 pixels."""
    return open_blocks(opened("toy"), ["lite/final"], [opened("lite")])


def test_each_half_is_the_feature_of_its_encoder_and_text_and_scale_are_those_of_the_first(pair, opened, picture):
    images, toy = [picture(300, 200), picture(20, 50)], opened("toy")
    alone = torch.cat([opened(name).encode_images(images) for name in ("toy", "lite")], dim=1)
    assert torch.equal(pair.encode_images(images), alone)
    assert torch.equal(pair.encode_text(["a red thing"]), toy.encode_text(["a red thing"]))
    assert (pair.info.text_dim, pair.info.dim) == (32, 32 + 1280)
    assert (pair.info.logit_scale, pair.info.logit_bias) == (toy.info.logit_scale, toy.info.logit_bias)


def test_fingerprint_knows_both_and_their_order(opened):
    toy, lite = opened("toy"), opened("lite")
    pairs = ((toy, lite), (lite, toy), (toy, toy), (lite, lite))
    prints = {open_blocks(a, [f"{b.info.name}/final"], [b]).info.fingerprint for a, b in pairs}
    assert len(prints) == 4


def test_a_pass_loses_layers_but_in_int8_and_keeps_its_backend_and_precision(opened, picture):
    plain = create_encoder("lite[final,inner-mean,inner-mean@384]")
    whole = with_backend(plain, "torch", "bf16")
    cut = select_encoder_blocks(whole, ["final", "inner-mean@384"])
    assert [each.info.image_size for each in cut.passes()] == [224, 384]
    assert cut.info.precision == "bf16" and cut.passes()[1] is whole.passes()[1]
    assert cut.block_fingerprints() == tuple(whole.block_fingerprints()[i] for i in (0, 2))
    assert select_encoder_blocks(whole, ["final"]).info == with_backend(opened("lite"), "torch", "bf16").info
    calibrated = BackendEncoder(plain.passes()[0], plain.towers()[0], None, "openvino", "int8", "0" * 16)
    whole = plain.run_on([calibrated, plain.passes()[1]])
    assert select_encoder_blocks(whole, ["final"]) is calibrated


def test_some_blocks_need_the_passes_of_these_only(pair, opened):
    assert select_encoder_blocks(pair, ["final"]) is opened("toy")
    assert select_encoder_blocks(pair, ["lite/final", "final"]) is pair
    with pytest.raises(InputError, match="has no block 'inner'; it has final, lite/final"):
        select_encoder_blocks(pair, ["inner"])


def squares():
    colours = {"red": (255, 0, 0), "blue": (0, 0, 255)}
    return [Image.new("RGB", (40, 40), colours[name]) for name in ("red", "blue")], ["red", "blue"]


def test_a_saved_model_opens_both_again(tmp_path):
    images, labels = squares()
    model = FewShotClassifier(["toy", "toy"], "svl-adapter", cache=None, views=2).fit(images, labels)
    model.save(tmp_path / "model")
    again = FewShotClassifier.load(tmp_path / "model", cache=None)
    assert again.predict(images) == labels
    assert again.encoder_.info == model.encoder_.info
    np.testing.assert_array_equal(again.logits(images), model.logits(images))  # stored, not computed again
    assert FewShotClassifier.load(tmp_path / "model", encoder="toy", cache=None).predict(images) == labels
    with pytest.raises(FingerprintError):
        FewShotClassifier.load(tmp_path / "model", encoder="lite", cache=None)


def test_a_head_that_reads_the_final_feature_is_fitted_to_the_first_encoder():
    images, labels = squares()
    model = FewShotClassifier(["toy", "toy"], "clip-adapter", cache=None).fit(images, labels)
    assert model.encoder_.info.name == "toy" and model.predict(images) == labels


def test_the_store_keeps_blocks_apart(pair, opened, picture, tmp_path):
    """What one encoder stored is not computed again beside another."""
    images = [picture(40, 40), picture(50, 30)]
    with FeatureStore(tmp_path / "store.sqlite") as store:
        alone = extract(opened("toy"), images, store=store)
        assert len(store) == 2
        both = extract(pair, images, store=store)
        assert len(store) == 4 and both.computed == 2
        again = extract(pair, images, store=store)
    assert again.computed == 0
    np.testing.assert_array_equal(both.features, again.features)  # stored, not computed again
    np.testing.assert_array_equal(both.features[..., :32], alone.features)  # stored, not computed again


def test_zero_shot_finds_the_colour(opened):
    toy = opened("toy")
    images = toy.encode_images([Image.new("RGB", (50, 40), value) for value in COLOURS.values()])
    texts = toy.encode_text([f"a photo of a {name} square." for name in COLOURS])
    best = torch.cosine_similarity(images[:, None], texts[None], dim=-1).argmax(dim=1)
    assert best.tolist() == list(range(len(COLOURS)))


def test_blocks_of_two_sizes_and_of_mirrored_pictures_lie_side_by_side(opened, picture):
    toy, images = opened("toy"), [picture(48, 48), picture(90, 60)]
    encoder = open_blocks(toy, ["inner", "final@48+mirrored"])
    features = encoder.encode_images(images)
    assert [block.name for block in encoder.info.blocks] == ["final", "inner", "final@48+mirrored"]
    torch.testing.assert_close(features[:, :32], toy.encode_images(images))
    network = toy.layer_network(["final"], 48)
    plain = to_tensor(picture(48, 48), (0.5,) * 3, (0.5,) * 3)[None]
    expected = (network(plain) + network(plain.flip(3)))[0] / 2
    torch.testing.assert_close(features[0, -32:], expected)
    assert encoder.tower() is None and [tower.dim for tower in encoder.towers()] == [32 + 144, 32]


def with_unprojected(encoder):
    return open_blocks(encoder, unprojected_blocks(encoder))


@pytest.fixture
def timm(write_model, tmp_path):
    """A function that opens a small network of timm with the given end."""

    def make(**end):
        config = {
            "embed_dim": 32,
            "vision_cfg": {"timm_model_name": "test_vit", "image_size": 160, **end},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
        }
        folder = write_model(tmp_path / "timm", config, {"mean": [0.5] * 3, "std": [0.5] * 3})
        return create_encoder(f"open_clip:local-dir:{folder}")

    return make


@pytest.mark.parametrize(
    ("end", "bias"),
    [
        ({"timm_pool": "token", "timm_proj": "linear"}, False),
        ({"timm_pool": "avg", "timm_proj": "linear", "timm_proj_bias": True}, True),
        ({"timm_pool": "token", "timm_proj": ""}, True),
    ],
    ids=["head", "head with bias", "the network's own"],
)
def test_the_projection_makes_the_feature_of_what_comes_before_it(end, bias, timm, picture):
    plain = timm(**end)
    projection = plain.projection()
    p, d = projection.weight.shape
    encoder, images = with_unprojected(plain), [picture(200, 200), picture(30, 50)]
    features, before = encoder.encode_images(images).split([d, p], dim=1)
    assert ((projection.bias is not None), encoder.info.text_dim) == (bias, d)
    torch.testing.assert_close(features, plain.encode_images(images), rtol=1e-4, atol=1e-5)
    projected = torch.nn.functional.linear(before, projection.weight.T, projection.bias)
    torch.testing.assert_close(projected, features, rtol=1e-4, atol=1e-5)


def test_the_encoder_itself_is_unchanged(opened, picture):
    plain = opened("tiny")
    before = plain.encode_images([picture(60, 60)])
    encoder = with_unprojected(plain)
    assert encoder.info.name == f"{plain.info.name}[final,unprojected]"
    assert encoder.info.fingerprint != plain.info.fingerprint
    assert with_unprojected(encoder).info == encoder.info
    assert torch.equal(plain.encode_images([picture(60, 60)]), before)
    assert not plain.projection().weight.requires_grad


def test_an_identity_projection_changes_no_encoder_and_one_without_names_those_that_have_one(opened, timm):
    for end in ({"timm_pool": "map", "timm_proj": "none"}, {"timm_pool": "avg", "timm_proj": "mlp"}):
        assert timm(**end).projection() is None
    backend = with_backend(opened("lite"))
    assert with_unprojected(opened("lite")) is opened("lite") and with_unprojected(backend) is backend
    with pytest.raises(InputError, match=r"no linear projection.* lite, open_clip.* do, but for SigLIP"):
        with_unprojected(opened("SigLIP"))


@pytest.mark.parametrize(("backend", "precision", "gap"), [("torch", "bf16", 0.03), ("openvino", "fp32", 1e-4)])
def test_a_backend_runs_it_too(backend, precision, gap, opened, picture):
    plain = opened("tiny")
    encoder = with_unprojected(with_backend(plain, backend, precision))
    assert (encoder.info.backend, encoder.info.precision) == (backend, precision)
    expected = with_unprojected(plain).encode_images([picture(80, 80)])
    assert (encoder.encode_images([picture(80, 80)]) - expected).norm() < gap * expected.norm()
    assert with_unprojected(encoder).info == encoder.info


def test_without_the_pictures_of_its_calibration_int8_becomes_fp32(opened):
    plain = opened("tiny")
    backend = BackendEncoder(plain, plain.tower(), lambda squares: squares, "openvino", "int8", "0" * 16)
    assert with_unprojected(backend).info == with_unprojected(plain).info
