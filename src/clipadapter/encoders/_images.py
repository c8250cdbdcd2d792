"""Fitting a picture of any shape into a square, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LONG_RATIO = 8
"""Pictures longer than this, side to side, are cut to their middle before they are scaled."""


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture itself if it is RGB, which a conversion would copy; else converted."""
    return image if image.mode == "RGB" else image.convert("RGB")


def centre_square(image: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
    """Scale the short side to ``size`` and cut out the middle, as torchvision's Resize and CenterCrop do.

    A long strip is cut to its middle while it is scaled: scaling a 1 x 5000 strip whole would take 750 MB.

    Args:
        image: any size.
        size: side of the result in pixels.
        resample: interpolation, with antialiasing.

    Returns:
        (size, size); the picture itself if it has that size already.

    >>> centre_square(Image.new("RGB", (300, 200)), 32).size
    (32, 32)
    """
    width, height = image.size
    if (width, height) == (size, size):
        return image
    short = min(width, height)
    # torchvision cuts the long side down to whole pixels before it scales.
    new_width, new_height = int(size * width / short), int(size * height / short)
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    if max(width, height) <= LONG_RATIO * short:
        scaled = image.resize((new_width, new_height), resample)
        return scaled.crop((left, top, left + size, top + size))
    step_x, step_y = width / new_width, height / new_height
    box = (left * step_x, top * step_y, (left + size) * step_x, (top + size) * step_y)
    return image.resize((size, size), resample, box=box)


def to_tensor(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """An RGB picture (h, w) to (3, h, w) float32, ``(value / 255 - mean) / std`` in each channel.

    >>> to_tensor(Image.new("RGB", (2, 2), "white"), mean=(0.5,) * 3, std=(0.5,) * 3)[:, 0, 0]
    tensor([1., 1., 1.])
    """
    values = np.asarray(image, dtype=np.float32) / 255
    scaled = (values - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))
