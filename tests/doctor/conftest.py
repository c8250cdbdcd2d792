from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from clipadapter.doctor import Picture

COLOURS = ("blue", "green", "red")


def scene(seed: int, colour: str = "grey", size: tuple[int, int] = (96, 80)) -> Image.Image:
    """A picture of blurred patches, like no other, in shades about a colour, with some fine grain."""
    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    mixed = 0.5 * np.asarray(patches, np.float32) + 0.5 * np.array(ImageColor.getrgb(colour))
    grain = rng.normal(0, 6, mixed.shape)
    return Image.fromarray(np.clip(mixed + grain, 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def draw():
    """A function that draws a picture: seed, colour, size."""
    return scene


@pytest.fixture
def scenes(tmp_path):
    """A folder with train/ and test/ of scenes in three colours, six and two, no two alike."""
    root = tmp_path / "scenes"
    for part, count, first in (("train", 6, 0), ("test", 2, 100)):
        for k, colour in enumerate(COLOURS):
            (root / part / colour).mkdir(parents=True)
            for i in range(count):
                scene(first + 10 * k + i, colour).save(root / part / colour / f"{i}.png")
    return root


@pytest.fixture
def shown():
    """A function that makes pictures from labels, all in one part unless told."""

    def make(labels, splits=None):
        splits = splits or ["all"] * len(labels)
        return [
            Picture(Path(f"{i}.png"), f"{i}.png", label, split)
            for i, (label, split) in enumerate(zip(labels, splits, strict=True))
        ]

    return make
