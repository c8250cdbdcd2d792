"""Noisy squares of colours, as shots and as new pictures."""

import numpy as np

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220)}


def squares(each=4, seed=0, colours=COLOURS, noise=25):
    """Pictures of each colour, and their names."""
    rng = np.random.default_rng(seed)
    names = [name for name in colours for _ in range(each)]
    shades = (np.array(colours[name]) + rng.integers(-noise, noise + 1, (16, 16, 3)) for name in names)
    return [np.clip(shade, 0, 255).astype(np.uint8) for shade in shades], names
