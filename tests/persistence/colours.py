"""Pictures of three colours."""

import numpy as np

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220)}


def squares(each=4, seed=0):
    """Noisy squares, and their colours."""
    rng = np.random.default_rng(seed)
    pairs = [
        (name, rng.integers(-25, 26, (16, 16, 3)) + colour) for name, colour in COLOURS.items() for _ in range(each)
    ]
    return [np.clip(pixels, 0, 255).astype(np.uint8) for _, pixels in pairs], [name for name, _ in pairs]
