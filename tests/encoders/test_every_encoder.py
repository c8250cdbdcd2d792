"""Every encoder keeps every rule, and a broken one is caught."""

import pytest
import torch

from clipadapter.encoders import list_encoders, open_blocks, unprojected_blocks
from clipadapter.encoders.toy import ToyEncoder
from clipadapter.testing import ENCODER_CHECKS, check_encoder
from clipadapter.utils.functional import unit

from ..failed_checks import names_of_failed_checks

NAMES = ["toy", "lite", "RN50", "ViT-B-32", "SigLIP", "toy[final,lite/final]"]


@pytest.mark.parametrize("check", ENCODER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_encoder_keeps_the_rule(name, check, opened):
    check(opened(name))


@pytest.mark.parametrize("check", ENCODER_CHECKS, ids=lambda check: check.__name__)
def test_with_what_comes_before_its_projection_it_keeps_the_rule(check, opened):
    check(open_blocks(opened("ViT-B-32"), unprojected_blocks(opened("ViT-B-32"))))


def test_all_schemes_are_found():
    assert list_encoders() == [
        "auto",
        "efficientnet-lite1",
        "efficientnet-lite2",
        "hf",
        "hf-hub",
        "lite",
        "open_clip",
        "simclr",
        "timm",
        "toy",
    ]


class Normalised(ToyEncoder):
    def encode_pixels(self, pixels):
        return unit(super().encode_pixels(pixels))


class Sorted(ToyEncoder):
    def encode_text(self, texts, batch_size=256):
        return super().encode_text(sorted(texts), batch_size)


class Resizing(ToyEncoder):
    def preprocess(self, image):
        width, height = image.size
        return super().preprocess(image.resize((width + 8, height + 8)))


class BatchMinded(ToyEncoder):
    def encode_pixels(self, pixels):
        features = super().encode_pixels(pixels)
        return features - features.mean(dim=0) / 2 if len(features) else features


class Half(ToyEncoder):
    def encode_text(self, texts, batch_size=256):
        return super().encode_text(texts, batch_size).half()


class Drawing(ToyEncoder):
    def encode_pixels(self, pixels):
        torch.rand(1)
        return super().encode_pixels(pixels)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (Normalised, "check_picture_features_are_raw_float32"),
        (Sorted, "check_text_order"),
        (Resizing, "check_square_is_not_resized"),
        (BatchMinded, "check_picture_batch_does_not_matter"),
        (Half, "check_text_features_are_raw_float32"),
        (Drawing, "check_global_randomness_is_untouched"),
    ],
)
def test_a_broken_encoder_is_caught(broken, check):
    (own,) = [rule for rule in ENCODER_CHECKS if rule.__name__ == check]
    assert names_of_failed_checks([own], broken, AssertionError) == [check]
    with pytest.raises(AssertionError, match="^toy, check_"):
        check_encoder(broken())
