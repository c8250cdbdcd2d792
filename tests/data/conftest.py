from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RED, BLUE, GREEN = (200, 30, 30), (30, 30, 200), (30, 180, 30)


@pytest.fixture
def picture() -> Image.Image:
    """160x120: red above, blue below, a green square at the upper left; which way is up can be told."""
    pixels = np.empty((120, 160, 3), np.uint8)
    pixels[:60], pixels[60:] = RED, BLUE
    pixels[10:40, 10:40] = GREEN
    return Image.fromarray(pixels)


def put(path: Path, value: int = 0) -> Path:
    """A small valid picture; equal values give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value, value, value)).save(path)
    return path


@pytest.fixture(name="put")
def put_fixture():
    return put
