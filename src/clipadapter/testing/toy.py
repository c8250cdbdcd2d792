"""Toy features on which heads are checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clipadapter.heads import TextFeatures
from clipadapter.utils.towers import WordTower

Array = NDArray[Any]
CLASSES = ("cat", "dog", "owl")


def toy_features(
    counts: tuple[int, ...] = (4, 4, 4),
    d: int = 16,
    noise: float = 0.3,
    seed: int = 0,
    names: tuple[str, ...] = CLASSES,
) -> tuple[Array, Array, TextFeatures]:
    """Separable features of three classes, with text features near the mean of each class.

    Args:
        counts: shots of each class.
        d: width.
        noise: spread of the pictures, relative to the distance of the classes.
        seed: of the draw.
        names: of the three classes.

    Returns:
        X (n, d) of length about 9, y (n,) names, text features with a text tower that knows the names.
    """
    rng = np.random.default_rng(seed)
    means = np.eye(len(names), d)
    X = np.concatenate([means[i] + noise / np.sqrt(d) * rng.standard_normal((n, d)) for i, n in enumerate(counts)])
    y = np.repeat(names, counts)
    rows = means + 0.1 * rng.standard_normal(means.shape)
    words = WordTower(dict(zip(names, torch.from_numpy(rows), strict=True)), d)
    text = TextFeatures(names, rows, logit_scale=20.0, tower=lambda: words)
    return (9 * X).astype(np.float32), y, text
