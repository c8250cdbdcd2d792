"""Blocks of several encoders side by side are each what they are alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from clipadapter import FewShotClassifier
from clipadapter.encoders import create_encoder, open_blocks, select_encoder_blocks, with_backend
from clipadapter.encoders.block_encoder import BackendEncoder
from clipadapter.errors import FingerprintError, InputError
from clipadapter.features import FeatureStore, extract


@pytest.fixture
def pair(opened):
    """Towers of different sizes: 32 and 224 pixels."""
    return open_blocks(opened("toy"), ["lite/final"], [opened("lite")])


def test_each_half_is_the_feature_of_its_encoder(pair, opened, picture):
    images = [picture(300, 200), picture(20, 50)]
    alone = torch.cat([opened(name).encode_images(images) for name in ("toy", "lite")], dim=1)
    assert torch.equal(pair.encode_images(images), alone)


def test_text_scale_and_bias_are_those_of_the_first(pair, opened):
    toy = opened("toy")
    assert torch.equal(pair.encode_text(["a red thing"]), toy.encode_text(["a red thing"]))
    assert (pair.info.text_dim, pair.info.dim) == (32, 32 + 1280)
    assert (pair.info.logit_scale, pair.info.logit_bias) == (toy.info.logit_scale, toy.info.logit_bias)


def test_fingerprint_knows_both_and_their_order(opened):
    toy, lite = opened("toy"), opened("lite")
    pairs = ((toy, lite), (lite, toy), (toy, toy), (lite, lite))
    prints = {open_blocks(a, [f"{b.info.name}/final"], [b]).info.fingerprint for a, b in pairs}
    assert len(prints) == 4


def test_a_pass_loses_layers_but_keeps_its_backend_and_precision(opened, picture):
    whole = with_backend(create_encoder("lite[final,inner-mean,inner-mean@384]"), "torch", "bf16")
    cut = select_encoder_blocks(whole, ["final", "inner-mean@384"])
    assert [each.info.image_size for each in cut.passes()] == [224, 384]
    assert cut.info.precision == "bf16" and cut.passes()[1] is whole.passes()[1]
    assert cut.block_fingerprints() == tuple(whole.block_fingerprints()[i] for i in (0, 2))
    assert select_encoder_blocks(whole, ["final"]).info == with_backend(opened("lite"), "torch", "bf16").info


def test_a_pass_in_int8_keeps_all_its_layers(opened):
    plain = create_encoder("lite[final,inner-mean,inner-mean@384]")
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
    np.testing.assert_array_equal(again.logits(images), model.logits(images))
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
    np.testing.assert_array_equal(both.features, again.features)
    np.testing.assert_array_equal(both.features[..., :32], alone.features)
