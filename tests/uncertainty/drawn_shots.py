"""Shots and pictures drawn around the means of some classes."""

import numpy as np

from clipadapter.utils.prediction import unit_rows

D = 12


def world(seed=0, c=5, counts=(4,) * 5, other=3, noise=0.25):
    """Shots of c classes, pictures of them, pictures of other classes, and the text of both."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((c + other, D)) + 1.0
    draw = lambda y: means[y] + noise * np.sqrt(D) * rng.standard_normal((len(y), D)) * np.linspace(0.4, 1.4, D)  # noqa: E731
    labels = np.repeat(np.arange(c), counts)
    known, unknown = rng.integers(c, size=300), c + rng.integers(other, size=300)
    text = unit_rows(means + 0.4 * rng.standard_normal(means.shape))
    return draw(labels), labels, draw(known), draw(unknown), text[:c], text[c:]
