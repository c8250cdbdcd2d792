"""Augmented views of a picture: a random resized crop and a flip, the same on every machine and in any order.

The random generator of a view is seeded by the seed, the number of the view and the bytes of the picture. So a view
depends neither on other pictures nor on the thread that makes it, and its feature can be stored by name.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from types import MappingProxyType

from PIL import Image
from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.utils.formatting import format_count, format_seconds
from clipadapter.utils.pixels import uniform
from clipadapter.utils.registry import unknown

CROPS: Mapping[str, tuple[float, float]] = MappingProxyType({"tip": (0.5, 1.0), "coop": (0.08, 1.0)})
"""Crop scales of the papers by name, see `ViewSpec.from_crop`; that of "coop" is torchvision's default."""

RATIO = (3 / 4, 4 / 3)  # smallest and largest width / height of a crop, in all these papers
PER_EPOCH = "per-epoch"
"""Instead of a number of views: one augmented view for each epoch of the head's training."""
MAX_FEATURE_BYTES = 4 * 2**30
"""Maximum size of the features of views for each epoch. Training needs one to three copies in addition."""


@dataclass(frozen=True)
class ViewSpec:
    """The views of each picture.

    Args:
        count: v, number of views; view 0 is the plain picture, the other v - 1 are augmented.
        scale: smallest and largest fraction of the picture's area in a crop; see `from_crop` for those of papers.
        seed: another seed gives other views.

    Raises:
        InputError: if a value is out of range.

    >>> ViewSpec(count=3).key(0)
    'plain'
    """

    count: int = 1
    scale: tuple[float, float] = CROPS["tip"]
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"views must be 1 (the plain picture alone) or more, but count is {self.count}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"the scale of views must be (low, high) with 0 < low <= high <= 1, but is {self.scale}")

    @classmethod
    def from_crop(cls, crop: str, count: int = 1, seed: int = 0) -> Self:
        """Views with the crop scale of a family of papers.

        Args:
            crop: "tip" for (0.5, 1), the default, as in the code of Tip-Adapter, LP++ and GDA; "coop" for (0.08, 1), as
                in that of CoOp, TaskRes and CLIP-LoRA.
            count: number of views, the plain picture included.
            seed: another seed gives other views.

        Raises:
            UnknownNameError: if no scale has this name.
            InputError: if ``count`` is below 1.

        >>> ViewSpec.from_crop("coop", count=10).scale
        (0.08, 1.0)
        """
        if crop not in CROPS:
            raise unknown("crop", crop, sorted(CROPS))
        return cls(count=count, scale=CROPS[crop], seed=seed)

    @property
    def crop(self) -> str:
        """Name of the crop scale, or the scale itself, such as "0.3-1.0", if it has no name."""
        low, high = (float(fraction) for fraction in self.scale)
        return next((name for name, scale in CROPS.items() if scale == (low, high)), f"{low!r}-{high!r}")

    def key(self, i: int) -> str:
        """Name of view i in the feature store. It includes everything that determines the view, except the picture."""
        if i == 0:
            return "plain"
        scale, ratio = (f"{float(low)!r}-{float(high)!r}" for low, high in (self.scale, RATIO))
        return f"crop-1 scale={scale} ratio={ratio} flip=1 seed={self.seed} view={i}"


@dataclass(frozen=True)
class PerEpochViews:
    """A new augmented view of each picture for each epoch of training, as in the papers.

    The number of epochs depends on the head and on the number of pictures.

    Args:
        base: crop scale and seed of the views; its count is not used.

    >>> PerEpochViews(ViewSpec.from_crop("coop")).for_epochs(200).count
    201
    """

    base: ViewSpec = ViewSpec()

    def for_epochs(self, epochs: int) -> ViewSpec:
        """The plain picture, and one augmented view for each epoch."""
        return replace(self.base, count=1 + epochs)


@dataclass(frozen=True)
class ViewCost:
    """The cost of the views of some pictures, before they are computed. ``str()`` gives it as sentences.

    Args:
        pictures: n.
        views: v, views of each picture, the plain one included.
        dim: d, width of a feature.
        cached: whether the features are stored.
        rate: views that this machine encodes per second; None if it was not measured.

    >>> cost = ViewCost(pictures=16, views=201, dim=512, rate=50.0)
    >>> cost.n_bytes, round(cost.seconds)
    (6586368, 64)
    """

    pictures: int
    views: int
    dim: int
    cached: bool = True
    rate: float | None = None

    @property
    def n_images(self) -> int:
        """Images to encode, if none is stored."""
        return self.pictures * self.views

    @property
    def n_bytes(self) -> int:
        """Bytes of the float32 features (n, v, d)."""
        return 4 * self.n_images * self.dim

    @property
    def time(self) -> str:
        """`seconds` as text; empty without a measured rate."""
        return "" if self.seconds is None else f"{format_seconds(self.seconds)} at {self.rate:.3g} images per second"

    @property
    def seconds(self) -> float | None:
        """Seconds to encode all images at the measured rate; None without one."""
        return None if self.rate is None else self.n_images / self.rate

    def check(self) -> None:
        """Check the memory that the features take.

        Raises:
            InputError: if they take more than 4 GiB.
        """
        if self.n_bytes > MAX_FEATURE_BYTES:
            raise InputError(
                f"features of {self.views} views of {format_count(self.pictures, 'picture')} take "
                f"{_format_bytes(self.n_bytes)}, but at most {_format_bytes(MAX_FEATURE_BYTES)} are allowed: give "
                "fewer views, such as views=10 (--views 10), fewer epochs if each has a view, or fewer pictures"
            )

    def __str__(self) -> str:
        count = f"{self.n_images:,} images to encode ({self.pictures:,} pictures x {self.views} views)"
        caching = "They are cached: an interrupted run continues from there, and the next run uses them."
        return (
            f"{count}; their features take {_format_bytes(self.n_bytes)} of memory (in training two to four times "
            f"that), and of disk in a model that keeps its shots. {caching if self.cached else 'They are not cached.'}"
        )


def augment(image: Image.Image, spec: ViewSpec, i: int, digest: bytes, size: int) -> Image.Image:
    """View i of a picture.

    Args:
        image: RGB picture of any size.
        spec: the views.
        i: number of the view; 0 is the unchanged picture.
        digest: hash of the picture's bytes; part of the seed.
        size: side of the result in pixels, for i > 0.

    Returns:
        RGB picture (size, size): torchvision's ``RandomResizedCrop`` rule, bicubic, then the flip.

    >>> augment(Image.new("RGB", (300, 200)), ViewSpec(count=2), 1, b"digest", 224).size
    (224, 224)
    """
    if i == 0:
        return image
    seed = blake2b(f"{spec.seed} {i} ".encode() + digest, digest_size=16).digest()
    rng = random.Random(int.from_bytes(seed, "big"))
    box = _crop_box(rng, image.width, image.height, spec)
    # Not `resize(box=)`: there, pixels outside the box contribute to the edge.
    view = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return view


def _format_bytes(n_bytes: int) -> str:
    """Such as 3.1 MiB or 4.0 GiB."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"


def _crop_box(rng: random.Random, width: int, height: int, spec: ViewSpec) -> tuple[int, int, int, int]:
    """Left, upper, right, lower: a random box, or the largest central box allowed if ten draws don't fit."""
    low, high = RATIO
    for _ in range(10):
        area = width * height * uniform(rng, *spec.scale)
        aspect = math.exp(uniform(rng, math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.random() * (height - h + 1))
            left = int(rng.random() * (width - w + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < low:
        h = round(width / low)
    elif width / height > high:
        w = round(height * high)
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
