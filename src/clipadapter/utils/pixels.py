"""From a picture of any shape to the square that an image tower takes, described by a few values that can be saved.

This module needs NumPy and Pillow only, so that a saved model predicts without loading other libraries.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipadapter.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_UNCROPPED_ASPECT_RATIO = 8
"""Pictures of a larger ratio of long to short side are cropped to their centre while they are scaled."""
MIN_JPEG_SIDE_RATIO = 4
"""Minimum short side of a JPEG that is shrunk while it is decoded, as a multiple of the side of the square."""
RESAMPLING_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RESIZE_MODES = ("shortest", "squash")
MIN_CROP = 0.5  # a smaller fraction would scale pictures to much larger squares than the one that is kept


@dataclass(frozen=True)
class PixelSpec:
    """How a picture becomes the input of an image tower.

    Raises:
        InputError: if a value is out of range.
    """

    size: int  # side s of the square in pixels
    mean: tuple[float, ...]  # mean of each channel, subtracted from values in 0 .. 1
    std: tuple[float, ...]  # standard deviation of each channel; the differences are divided by it
    # "shortest" scales the short side to s and crops the centre; "squash" scales both sides to s
    resize: str = "shortest"
    resample: str = "bicubic"  # "bicubic" or "bilinear", both with antialiasing
    # Fraction of the scaled side that is kept: sides are scaled to s / crop instead of s, and the centre is cropped,
    # as the models of timm state it (``crop_pct``). A picture of size (s, s) is kept as it is
    crop: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.size <= 4096 or len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(f"pixels need a size from 1 to 4096 and three means and deviations, but are {self}")
        if self.resize not in RESIZE_MODES or self.resample not in RESAMPLING_FILTERS:
            raise InputError(
                f"pixels are resized by {' or '.join(RESIZE_MODES)} and {' or '.join(RESAMPLING_FILTERS)}, "
                f"but by {self.resize} and {self.resample} here"
            )
        if not MIN_CROP <= self.crop <= 1:
            raise InputError(f"the fraction that is cropped must be {MIN_CROP} to 1, but is {self.crop}")

    @property
    def scaled_size(self) -> int:
        """Side in pixels that pictures are scaled to before the centre is cropped."""
        return math.floor(self.size / self.crop)  # rounded down as in timm

    def to_square(self, image: Image.Image) -> NDArray[np.uint8]:
        """Convert a picture of any size and mode to (s, s, 3), as torchvision's Resize and CenterCrop do.

        A long strip is cropped while it is scaled: to scale all of a 1 x 5000 strip would take 750 MB.
        """
        resample, size, scaled_side = RESAMPLING_FILTERS[self.resample], self.size, self.scaled_size
        image = image if image.mode == "RGB" else image.convert("RGB")  # a conversion would copy it
        if self.resize == "squash" and image.size != (size, size):
            image = image.resize((scaled_side, scaled_side), resample)
        if image.size == (size, size):
            return np.asarray(image)
        width, height = image.size
        short_side = min(width, height)
        # torchvision rounds the long side down to whole pixels before it scales.
        scaled_width, scaled_height = int(scaled_side * width / short_side), int(scaled_side * height / short_side)
        left, top = round((scaled_width - size) / 2), round((scaled_height - size) / 2)
        if max(width, height) <= MAX_UNCROPPED_ASPECT_RATIO * short_side:
            scaled = image.resize((scaled_width, scaled_height), resample)
            return np.asarray(scaled.crop((left, top, left + size, top + size)))
        scale_x, scale_y = width / scaled_width, height / scaled_height
        box = (left * scale_x, top * scale_y, (left + size) * scale_x, (top + size) * scale_y)
        return np.asarray(image.resize((size, size), resample, box=box))

    def normalize(self, squares: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Convert squares (n, s, s, 3) to the input of a torch tower, (n, 3, s, s)."""
        mean, std = (np.array(values, np.float32) for values in (self.mean, self.std))
        return np.ascontiguousarray(((squares / np.float32(255) - mean) / std).transpose(0, 3, 1, 2), np.float32)

    def to_dict(self) -> dict[str, Any]:
        """The fields as values that JSON can hold; `from_dict` is the inverse.

        ``crop`` is left out if it is 1: the fingerprints of encoders are made of this text.
        """
        return {name: value for name, value in asdict(self).items() if (name, value) != ("crop", 1)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The spec that `to_dict` was called on."""
        try:
            return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
        except (KeyError, TypeError) as error:
            raise InputError(f"these facts describe no pixels: {dict(fields)}") from error


def different_squares(specs: Sequence[PixelSpec]) -> tuple[tuple[PixelSpec, ...], tuple[int, ...]]:
    """The different squares that some image towers take, so that each is made once, and the number of each tower's."""
    keys = [replace(spec, mean=(0.0,) * 3, std=(1.0,) * 3) for spec in specs]  # these two do not change a square
    different = list(dict.fromkeys(keys))
    return tuple(specs[keys.index(key)] for key in different), tuple(map(different.index, keys))


def pack_squares(squares: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The squares (s, s, 3) of one picture as one array: a single square itself, several flattened to (l,)."""
    return squares[0] if len(squares) == 1 else np.concatenate([square.reshape(-1) for square in squares])


def packed_shape(specs: Sequence[PixelSpec]) -> tuple[int, ...]:
    """Shape of the result of `pack_squares` for these squares."""
    return (specs[0].size, specs[0].size, 3) if len(specs) == 1 else (sum(3 * spec.size**2 for spec in specs),)


def unpack_squares(pictures: NDArray[np.uint8], specs: Sequence[PixelSpec]) -> list[NDArray[np.uint8]]:
    """The squares (n, s, s, 3) of each spec of n pictures (n, ...) that `pack_squares` packed; copies nothing."""
    if len(specs) == 1:
        return [pictures]
    ends = np.cumsum([3 * spec.size**2 for spec in specs])
    parts = np.split(pictures, ends[:-1], axis=1)
    return [part.reshape(-1, spec.size, spec.size, 3) for part, spec in zip(parts, specs, strict=True)]


def min_jpeg_side(precision: str, size: int) -> int | None:
    """Minimum short side of a JPEG that is shrunk while it is decoded, for towers that run in this precision.

    In full precision pixels are exact. In the other precisions they may differ by about two levels of 255; the cosine
    to the feature of the picture in full size stays above 0.999.
    """
    return None if precision == "fp32" else MIN_JPEG_SIDE_RATIO * size


def uniform(rng: random.Random, low: float, high: float) -> float:
    """A number between two others, the same in every Python version: only `random()` is guaranteed to be that."""
    return low + (high - low) * rng.random()
