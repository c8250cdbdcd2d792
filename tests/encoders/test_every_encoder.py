"""Every encoder keeps every rule, and a broken one is caught."""

from functools import partial

import pytest
import torch

from clipadapter.encoders import list_encoders, open_blocks, unprojected_blocks
from clipadapter.encoders.toy import ToyEncoder
from clipadapter.testing import ENCODER_CHECKS, check_encoder
from clipadapter.utils.functional import unit

from ..failed_checks import names_of_failed_checks


@pytest.mark.parametrize("name", ["toy", "lite", "RN50", "ViT-B-32", "SigLIP", "toy[final,lite/final]"])
def test_it_keeps_every_rule(name, opened):
    check_encoder(opened(name))


def test_with_what_comes_before_its_projection_it_keeps_every_rule(opened):
    check_encoder(open_blocks(opened("ViT-B-32"), unprojected_blocks(opened("ViT-B-32"))))


def test_all_schemes_are_found():
    assert " ".join(list_encoders()) == (
        "auto efficientnet-lite1 efficientnet-lite2 hf hf-hub lite open_clip simclr timm toy"
    )


def features_of(change):
    """`encode_pixels` of the toy with its result changed."""
    return {"encode_pixels": lambda self, pixels: change(ToyEncoder.encode_pixels(self, pixels))}


def texts_of(change):
    """`encode_text` of the toy, changed."""
    return {"encode_text": lambda self, texts, *_: change(partial(ToyEncoder.encode_text, self), texts)}


BROKEN = [
    ("check_features_are_raw_float32", features_of(unit)),
    ("check_features_are_raw_float32", texts_of(lambda encode, texts: encode(texts).half())),
    ("check_text_order", texts_of(lambda encode, texts: encode(sorted(texts)))),
    (
        "check_square_is_not_resized",
        {
            "preprocess": lambda self, image: ToyEncoder.preprocess(
                self, image.resize([side + 8 for side in image.size])
            )
        },
    ),
    ("check_batch_does_not_matter", features_of(lambda rows: rows - rows.mean(dim=0) / 2 if len(rows) else rows)),
    ("check_global_randomness_is_untouched", features_of(lambda rows: rows + 0 * torch.rand(1))),
]


@pytest.mark.parametrize(("check", "fault"), BROKEN)
def test_a_broken_encoder_is_caught(check, fault):
    broken = type("Broken", (ToyEncoder,), fault)
    (own,) = [rule for rule in ENCODER_CHECKS if rule.__name__ == check]
    assert names_of_failed_checks([own], broken, AssertionError) == [check]
    with pytest.raises(AssertionError, match="^toy, check_"):
        check_encoder(broken())
