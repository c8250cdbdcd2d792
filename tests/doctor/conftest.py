from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from clipadapter.doctor import Picture

COLOURS = ("blue", "green", "red")


def scene(seed: int, colour: str = "grey", size: tuple[int, int] = (96, 80)) -> Image.Image:
    """A picture of blurred patches in shades of a colour, with fine noise; each seed gives a different one."""
    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    mixture = 0.5 * np.asarray(patches, np.float32) + 0.5 * np.array(ImageColor.getrgb(colour))
    noise = rng.normal(0, 6, mixture.shape)
    return Image.fromarray(np.clip(mixture + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def draw():
    """A function that draws a picture: seed, colour, size."""
    return scene


@pytest.fixture
def scenes(tmp_path):
    """A folder with train/ and test/ of scenes in three colours, six and two of each, without duplicates."""
    root = tmp_path / "scenes"
    for split, count, first in (("train", 6, 0), ("test", 2, 100)):
        for k, colour in enumerate(COLOURS):
            (root / split / colour).mkdir(parents=True)
            for i in range(count):
                scene(first + 10 * k + i, colour).save(root / split / colour / f"{i}.png")
    return root


@pytest.fixture
def make_pictures():
    """A function that makes pictures from labels, in one split if no splits are given."""

    def make(labels, splits=None):
        splits = splits or ["all"] * len(labels)
        return [
            Picture(Path(f"{i}.png"), f"{i}.png", label, split)
            for i, (label, split) in enumerate(zip(labels, splits, strict=True))
        ]

    return make
