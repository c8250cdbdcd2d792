"""Two encoders side by side are each what they are alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from clipadapter import FewShotClassifier
from clipadapter.encoders import create_encoder
from clipadapter.encoders.pair import PairEncoder, _split_uris
from clipadapter.errors import FingerprintError, InputError, UnknownNameError


@pytest.fixture
def pair(opened):
    """Towers of different sizes: 32 and 224 pixels."""
    return PairEncoder(opened("toy"), opened("lite"))


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
    prints = {PairEncoder(*both).info.fingerprint for both in ((toy, lite), (lite, toy), (toy, toy), (lite, lite))}
    assert len(prints) == 4


@pytest.mark.parametrize(
    ("rest", "halves"),
    [
        ("toy+lite", ("toy", "lite")),
        ("lite+open_clip:local-dir:/a+b/c", ("lite", "open_clip:local-dir:/a+b/c")),
        ("open_clip:local-dir:/a+b/c+toy", ("open_clip:local-dir:/a+b/c", "toy")),
        ("lite+pair:toy+lite", ("lite", "pair:toy+lite")),
    ],
)
def test_a_plus_sign_in_a_path_does_not_split_it(rest, halves):
    assert _split_uris(rest) == halves


@pytest.mark.parametrize("rest", ["", "toy", "toy+", "+toy", "toy+lit"])
def test_anything_but_two_encoders_is_refused(rest):
    with pytest.raises(InputError, match="say pair:FIRST"):
        create_encoder(f"pair:{rest}")


def test_an_unknown_first_encoder_is_refused_with_the_closest_name():
    with pytest.raises(UnknownNameError, match="Did you mean 'lite'"):
        create_encoder("pair:light+toy")


def squares():
    colours = {"red": (255, 0, 0), "blue": (0, 0, 255)}
    return [Image.new("RGB", (40, 40), colours[name]) for name in ("red", "blue")], ["red", "blue"]


def test_a_saved_model_opens_both_again(tmp_path):
    images, labels = squares()
    model = FewShotClassifier("pair:toy+toy", "svl-adapter", cache=None, views=2).fit(images, labels)
    model.save(tmp_path / "model")
    again = FewShotClassifier.load(tmp_path / "model", cache=None)
    assert again.predict(images) == labels
    assert again.encoder_.info == model.encoder_.info
    np.testing.assert_array_equal(again.logits(images), model.logits(images))
    with pytest.raises(FingerprintError):
        FewShotClassifier.load(tmp_path / "model", encoder="toy", cache=None)


def test_a_head_for_one_encoder_names_a_suitable_head():
    images, labels = squares()
    with pytest.raises(InputError, match=r"width 64 but class text has width 32.*need a head for two"):
        FewShotClassifier("pair:toy+toy", "clip-adapter", cache=None).fit(images, labels)
