"""The toy knows colours."""

import pytest
import torch
from PIL import Image

from clipadapter.encoders import create_encoder
from clipadapter.encoders.toy import COLOURS
from clipadapter.errors import InputError


def test_zero_shot_finds_the_colour(opened):
    toy = opened("toy")
    images = toy.encode_images([Image.new("RGB", (50, 40), value) for value in COLOURS.values()])
    texts = toy.encode_text([f"a photo of a {name} square." for name in COLOURS])
    best = torch.cosine_similarity(images[:, None], texts[None], dim=-1).argmax(dim=1)
    assert best.tolist() == list(range(len(COLOURS)))


def test_a_colour_counts_only_as_a_word(opened):
    reddish, red = opened("toy").encode_text(["a credit card", "a red card"])
    assert torch.cosine_similarity(reddish, red, dim=0) < 0.9


def test_there_are_no_variants():
    with pytest.raises(InputError, match="say 'toy'"):
        create_encoder("toy:big")
