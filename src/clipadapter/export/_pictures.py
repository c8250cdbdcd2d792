"""Pictures that a file is compared on, and that int8 is calibrated with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipadapter.data.images import ImageSource, read_image, source_name
from clipadapter.data.load import read_listing
from clipadapter.errors import DataError, ImageError, InputError
from clipadapter.features import FeatureSet
from clipadapter.pixels import PixelSpec

MOST = {"fp32": 32, "int8": 64}
"""Pictures that a file in this precision is compared on."""
CALIBRATED = 64
"""Pictures that int8 is calibrated with."""
ENOUGH = 32
"""As many must be left for calibration, else it takes those that the file is compared on."""
DRAWN = 16
"""Pictures that are drawn where there are none."""
KINDS = {"given": "pictures that were given", "shots": "of the model's shots", "drawn": "drawn pictures"}


@dataclass(frozen=True)
class Pictures:
    """Where they come from.

    Args:
        kind: one of `KINDS`.
        compared: those that answers are compared on.
        calibrating: those that int8 is calibrated with.
    """

    kind: str
    compared: Sequence[ImageSource]
    calibrating: Sequence[ImageSource]


def find_pictures(
    given: str | Path | Sequence[ImageSource] | None, support: FeatureSet, pixels: PixelSpec, precision: str
) -> Pictures:
    """The pictures given; else the model's shots, if their files are still there; else drawn ones.

    Args:
        given: a folder, a table, or pictures.
        support: the model's shots.
        pixels: how big drawn ones are.
        precision: of the file.

    Raises:
        InputError: if int8 has nothing to be calibrated with, or there are no pictures where they were said to be.
    """
    kind, sources = "given", _listed(given)
    if given is None:
        kind = "shots"
        sources = [Path(name) for name in support.provenance.get("sources", ()) if _is_file(name)]
    if given is not None and not sources:
        raise DataError("there are no pictures to compare the file on: give some, or none for the model's own shots")
    if not sources and precision == "int8":
        raise InputError(
            "int8 is calibrated with pictures, but the model's shots are not on this machine: give pictures such as "
            "will come by (pictures=..., or --pictures FOLDER); 64 are plenty"
        )
    if not sources:
        drawn = draw(DRAWN, pixels.size)
        return Pictures("drawn", drawn, drawn)
    sources = _shuffled(sources)[: MOST[precision] + CALIBRATED]
    compared, rest = sources[: MOST[precision]], sources[MOST[precision] :]
    return Pictures(kind, compared, rest if len(rest) >= ENOUGH else compared)


def squares_of(sources: Sequence[ImageSource], pixels: PixelSpec) -> NDArray[np.uint8]:
    """Pictures as (n, s, s, 3), but for those that can't be read.

    Raises:
        DataError: if none can.
    """
    found = []
    for source in sources:
        try:
            found.append(pixels.to_square(read_image(source)))
        except ImageError:
            continue  # it says nothing of a range
    if not found:
        raise DataError(f"none of the {len(sources)} pictures to calibrate int8 with can be read: give others")
    return np.stack(found)


def draw(n: int, size: int, seed: int = 0) -> list[ImageSource]:
    """Pictures (s, s, 3) of soft coloured spots, coarse and fine."""
    rng = np.random.default_rng(seed)
    found: list[ImageSource] = []
    for i in range(n):
        cells = 2 + i % 7
        spots = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        soft = np.asarray(spots.resize((size, size), Image.Resampling.BICUBIC), np.int16)
        found.append(np.clip(soft + rng.integers(-8, 9, soft.shape), 0, 255).astype(np.uint8))
    return found


def _listed(given: str | Path | Sequence[ImageSource] | None) -> list[ImageSource]:
    if given is None:
        return []
    if isinstance(given, str | Path):
        return list(read_listing(given).dataset.paths)
    if not isinstance(given, Sequence):
        raise InputError(f"pictures must be given as a list, a folder or a table, but came as {type(given).__name__}")
    return list(given)


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False


def _shuffled(sources: Sequence[ImageSource]) -> list[ImageSource]:
    """By a hash of their names, so that all classes come early and the same come every time."""
    keys = [blake2b(f"{source_name(source)} {i}".encode()).digest() for i, source in enumerate(sources)]
    return [sources[i] for i in sorted(range(len(sources)), key=keys.__getitem__)]
