"""Pictures that encoders are tuned on in these tests: noisy squares of colours that zero-shot can't tell apart."""

import numpy as np
from PIL import Image

COLOURS = {"blue": (30, 30, 220), "green": (30, 180, 30), "red": (220, 30, 30)}
TEXTS = ["a photo of a cat.", "two dogs on a very long sofa"]


def squares(each=4, seed=0):
    """Noisy coloured squares and their names."""
    rng = np.random.default_rng(seed)
    images = [
        np.clip(np.array(colour) + rng.integers(-25, 26, (16, 16, 3)), 0, 255).astype(np.uint8)
        for colour in COLOURS.values()
        for _ in range(each)
    ]
    return images, [name for name in COLOURS for _ in range(each)]


def picture(width, height):
    """A picture with smooth and sharp parts."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 7 + k) * np.cos(y / 11 - k) * 100 + 128 for k in range(3)], axis=-1)
    waves[(x // 13 + y // 17) % 5 == 0, 1] = 255
    return Image.fromarray(waves.astype(np.uint8))
