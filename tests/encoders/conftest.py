"""Pictures to encode, and the sizes that Pillow scales them to."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture():
    """A function that makes a picture with smooth and sharp parts, the same for the same size."""

    def make(width: int, height: int) -> Image.Image:
        y, x = np.mgrid[:height, :width]
        waves = [np.sin(x / 7 + k) * np.cos(y / 11 - k) * 100 + 128 for k in range(3)]
        waves[1][(x // 13 + y // 17) % 5 == 0] = 255
        return Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))

    return make


@pytest.fixture
def resized_to(monkeypatch):
    """The sizes of all later calls of ``Image.resize``."""
    sizes = []
    resize = Image.Image.resize

    def record(self, size, *args, **kwargs):
        sizes.append(size)
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", record)
    return sizes
