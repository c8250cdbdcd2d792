import inspect
import math
import random
from hashlib import blake2b
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as torchvision

from clipadapter.errors import InputError, UnknownNameError
from clipadapter.features import ViewSpec, augment

RATIO = (3 / 4, 4 / 3)
"""Of torchvision's RandomResizedCrop by default."""


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def by_the_rule(image, spec, i, digest, size):
    """torchvision's RandomResizedCrop and RandomHorizontalFlip(0.5), drawing from the view's own stream."""
    seed = int.from_bytes(blake2b(f"{spec.seed} {i} ".encode() + digest, digest_size=16).digest(), "big")
    draw = random.Random(seed).random
    width, height = image.size
    top = None
    for _ in range(10):
        target_area = width * height * (spec.scale[0] + (spec.scale[1] - spec.scale[0]) * draw())
        low, high = math.log(RATIO[0]), math.log(RATIO[1])
        aspect = math.exp(low + (high - low) * draw())
        w = int(round(math.sqrt(target_area * aspect)))
        h = int(round(math.sqrt(target_area / aspect)))
        if 0 < w <= width and 0 < h <= height:
            top = math.floor(draw() * (height - h + 1))
            left = math.floor(draw() * (width - w + 1))
            break
    if top is None:
        in_ratio = width / height
        if in_ratio < min(RATIO):
            w, h = width, int(round(width / min(RATIO)))
        elif in_ratio > max(RATIO):
            h, w = height, int(round(height * max(RATIO)))
        else:
            w, h = width, height
        top, left = (height - h) // 2, (width - w) // 2
    bicubic = torchvision.InterpolationMode.BICUBIC
    view = torchvision.resized_crop(image, top, left, h, w, [size, size], bicubic)
    return torchvision.hflip(view) if draw() < 0.5 else view


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    low=st.floats(0.05, 1.0),
    seed=st.integers(0, 2**40),
    i=st.integers(1, 20),
    digest=st.binary(min_size=1, max_size=32),
)
def test_a_view_follows_the_rule_of_torchvision(width, height, low, seed, i, digest):
    spec = ViewSpec(count=21, scale=(low, 1.0), seed=seed)
    image = noise(width, height)
    expected = by_the_rule(image, spec, i, digest, 24)
    np.testing.assert_array_equal(np.asarray(augment(image, spec, i, digest, 24)), np.asarray(expected))


def test_views_differ_by_number_seed_and_picture_and_view_zero_is_the_picture_itself():
    image = noise(64, 64)
    assert augment(image, ViewSpec(), 0, b"digest", 8) is image
    which = product((0, 1), (1, 2), (b"a", b"b"))
    views = {augment(image, ViewSpec(count=3, seed=seed), i, digest, 16).tobytes() for seed, i, digest in which}
    assert len(views) == 8


def test_everything_that_determines_a_view_is_in_its_key_and_default_views_have_those_of_existing_stores():
    specs = [ViewSpec(count=3), ViewSpec(count=3, scale=(0.4, 1.0)), ViewSpec(count=3, seed=1)]
    assert len({spec.key(i) for spec in specs for i in (1, 2)}) == 6
    assert {spec.key(0) for spec in specs} == {"plain"}
    assert ViewSpec(count=3).key(1) == ViewSpec(count=9, scale=(0.5, 1)).key(1)
    key = "crop-1 scale=0.5-1.0 ratio=0.75-1.3333333333333333 flip=1 seed=0 view=1"
    assert ViewSpec(count=2).key(1) == ViewSpec.from_crop("tip", count=2).key(1) == key


def test_crop_scales_of_papers_have_names():
    default = inspect.signature(transforms.RandomResizedCrop).parameters["scale"].default
    coop, tip = (ViewSpec.from_crop(name, count=4, seed=2) for name in ("coop", "tip"))
    assert coop == ViewSpec(count=4, scale=default, seed=2)  # the CoOp family takes torchvision's
    assert tip == ViewSpec(count=4, scale=(0.5, 1.0), seed=2)
    assert not {coop.key(i) for i in (1, 2, 3)} & {tip.key(i) for i in (1, 2, 3)}
    assert (coop.crop, tip.crop, ViewSpec(scale=(0.3, 1)).crop) == ("coop", "tip", "0.3-1.0")
    with pytest.raises(UnknownNameError, match="no crop is called 'coo'. Did you mean 'coop'"):
        ViewSpec.from_crop("coo")


def test_a_coop_crop_may_take_a_small_part_of_the_picture():
    # A picture whose left half is black and right half is white: only a crop below half its area is of one colour.
    halves = np.zeros((60, 60, 3), np.uint8)
    halves[:, 30:] = 255
    image = Image.fromarray(halves)

    def of_one_colour(crop):
        spec = ViewSpec.from_crop(crop, count=200)
        views = [np.asarray(augment(image, spec, i, b"digest", 8)) for i in range(1, 200)]
        return sum(bool(np.ptp(view) == 0) for view in views)

    assert of_one_colour("tip") == 0
    assert of_one_colour("coop") > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "count is 0"),
        ({"scale": (0.0, 1.0)}, "scale of views must be"),
        ({"scale": (0.9, 0.5)}, "scale of views must be"),
        ({"scale": (0.5, 1.5)}, "scale of views must be"),
        ({"scale": (math.nan, 1.0)}, "scale of views must be"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        ViewSpec(**values)
