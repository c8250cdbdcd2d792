"""Pixels of a square picture to the input of a tower in torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


def to_tensor(image: ArrayLike, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """An RGB picture (h, w, 3), values 0 .. 255, to (3, h, w) float32, ``(value / 255 - mean) / std`` in each channel.

    >>> to_tensor(np.full((2, 2, 3), 255), mean=(0.5,) * 3, std=(0.5,) * 3)[:, 0, 0]
    tensor([1., 1., 1.])
    """
    values = np.asarray(image, dtype=np.float32) / 255
    scaled = (values - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))
