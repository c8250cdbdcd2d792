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


def features_of(change):
    """`encode_pixels` of the toy with its result changed."""
    return {"encode_pixels": lambda self, pixels: change(ToyEncoder.encode_pixels(self, pixels))}


BROKEN = {
    "check_picture_features_are_raw_float32": features_of(unit),
    "check_text_order": {"encode_text": lambda self, texts, *size: ToyEncoder.encode_text(self, sorted(texts))},
    "check_square_is_not_resized": {
        "preprocess": lambda self, image: ToyEncoder.preprocess(self, image.resize([side + 8 for side in image.size]))
    },
    "check_picture_batch_does_not_matter": features_of(lambda rows: rows - rows.mean(dim=0) / 2 if len(rows) else rows),
    "check_text_features_are_raw_float32": {
        "encode_text": lambda self, texts, *size: ToyEncoder.encode_text(self, texts).half()
    },
    "check_global_randomness_is_untouched": features_of(lambda rows: rows + 0 * torch.rand(1)),
}


@pytest.mark.parametrize("check", BROKEN)
def test_a_broken_encoder_is_caught(check):
    broken = type("Broken", (ToyEncoder,), BROKEN[check])
    (own,) = [rule for rule in ENCODER_CHECKS if rule.__name__ == check]
    assert names_of_failed_checks([own], broken, AssertionError) == [check]
    with pytest.raises(AssertionError, match="^toy, check_"):
        check_encoder(broken())
