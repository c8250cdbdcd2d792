"""From a picture of any shape to the square a tower takes, as data: what is done is in a few facts that can be saved.

Needs numpy and Pillow only, so that a saved model can answer without loading anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipadapter.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self

LONG_RATIO = 8
"""Pictures longer than this, side to side, are cut to their middle before they are scaled."""
ROOM = 4
"""Short side, in sides of the square, that is left at least of a JPEG that is shrunk while it is unpacked."""
RESAMPLES = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RESIZES = ("shortest", "squash")


@dataclass(frozen=True)
class PixelSpec:
    """How a picture becomes the input of a tower.

    Args:
        size: side s of the square in pixels.
        mean: of each channel, subtracted from values in 0 .. 1.
        std: of each channel, what is divided by then.
        resize: "shortest" scales the short side to s and cuts out the middle; "squash" scales both sides to s.
        resample: "bicubic" or "bilinear", both with antialiasing.

    Raises:
        InputError: if a fact makes no sense.

    >>> PixelSpec(4, (0.5,) * 3, (0.5,) * 3).square(Image.new("RGB", (9, 6), "red"))[0, 0]
    array([255,   0,   0], dtype=uint8)
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str = "shortest"
    resample: str = "bicubic"

    def __post_init__(self) -> None:
        if not 0 < self.size <= 4096 or len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(f"pixels need a size from 1 to 4096 and three means and deviations, but are {self}")
        if self.resize not in RESIZES or self.resample not in RESAMPLES:
            raise InputError(
                f"pixels are resized by {' or '.join(RESIZES)} and {' or '.join(RESAMPLES)}, "
                f"but by {self.resize} and {self.resample} here"
            )

    def square(self, image: Image.Image) -> NDArray[np.uint8]:
        """A picture of any size and mode to (s, s, 3)."""
        resample = RESAMPLES[self.resample]
        image = as_rgb(image)
        if self.resize == "shortest":
            image = centre_square(image, self.size, resample)
        elif image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), resample)
        return np.asarray(image)

    def normalised(self, squares: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Squares (n, s, s, 3) as what towers of torch take, (n, 3, s, s).

        >>> PixelSpec(1, (0.5,) * 3, (0.25,) * 3).normalised(np.full((1, 1, 1, 3), 255, np.uint8)).ravel()
        array([2., 2., 2.], dtype=float32)
        """
        mean, std = (np.array(values, np.float32) for values in (self.mean, self.std))
        return np.ascontiguousarray(((squares / np.float32(255) - mean) / std).transpose(0, 3, 1, 2), np.float32)

    def facts(self) -> dict[str, Any]:
        """As JSON can hold it; `from_facts` is the way back."""
        return asdict(self)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Self:
        """The spec that `facts` came from.

        Raises:
            InputError: if something is missing, unknown, or makes no sense.
        """
        try:
            return cls(**{**facts, "mean": tuple(facts["mean"]), "std": tuple(facts["std"])})
        except (KeyError, TypeError) as error:
            raise InputError(f"these facts describe no pixels: {dict(facts)}") from error


def shrink_to(precision: str, size: int) -> int | None:
    """How small the short side of a JPEG may become while it is unpacked, for towers that run in this precision.

    In full precision pixels are exact. In the others they may be off by about two levels of 255, which leaves cosines
    to features of whole pictures above 0.999.

    Args:
        precision: "fp32", "bf16" or "int8".
        size: side of the square in pixels.

    Returns:
        ``shrink_to`` of ``clipadapter.data.read_image``.

    >>> shrink_to("fp32", 224), shrink_to("bf16", 224)
    (None, 896)
    """
    return None if precision == "fp32" else ROOM * size


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
