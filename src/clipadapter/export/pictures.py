"""Choose the pictures that a file is compared on, and those that calibrate int8."""

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
from clipadapter.utils.pixels import PixelSpec

MAX_COMPARED_PICTURES = {"fp32": 32, "int8": 64}
"""Number of pictures that a file is compared on, by precision."""
MAX_CALIBRATION_PICTURES = 64
MIN_CALIBRATION_PICTURES = 32
"""With fewer pictures left over, int8 is calibrated with those that the file is compared on."""
SYNTHETIC_PICTURES = 16
KINDS = {"given": "pictures that were given", "shots": "of the model's shots", "drawn": "drawn pictures"}
"""Where pictures come from, as in the metadata of a file, and in words."""


@dataclass(frozen=True)
class ExportPictures:
    """Pictures for one export."""

    kind: str  # one of `KINDS`
    comparison: Sequence[ImageSource]  # pictures that outputs are compared on
    calibration: Sequence[ImageSource]  # pictures that int8 is calibrated with


def choose_pictures(
    pictures: str | Path | Sequence[ImageSource] | None, support: FeatureSet, size: int, precision: str
) -> ExportPictures:
    """Take the given pictures; else the model's shots if their files still exist; else synthetic ones."""
    if pictures is not None:
        kind, sources = "given", _list_sources(pictures)
        if not sources:
            raise DataError(
                "there are no pictures to compare the file on: give pictures, or leave the option out to use the shots"
            )
    else:
        kind, sources = "shots", [Path(name) for name in support.provenance.get("sources", ()) if _is_file(name)]
    if not sources and precision == "int8":
        raise InputError(
            "int8 is calibrated with pictures, but the model's shots are not on this machine: give pictures like those "
            "that the model will see (pictures=..., or --pictures FOLDER); 64 are enough"
        )
    if not sources:
        synthetic = draw_pictures(SYNTHETIC_PICTURES, size)
        return ExportPictures("drawn", synthetic, synthetic)
    n_compared = MAX_COMPARED_PICTURES[precision]
    sources = _shuffle(sources)[: n_compared + MAX_CALIBRATION_PICTURES]
    comparison, others = sources[:n_compared], sources[n_compared:]
    return ExportPictures(kind, comparison, others if len(others) >= MIN_CALIBRATION_PICTURES else comparison)


def load_squares(sources: Sequence[ImageSource], pixels: PixelSpec) -> NDArray[np.uint8]:
    """Pictures as (n, s, s, 3), without those that can't be read."""
    squares = []
    for source in sources:
        try:
            squares.append(pixels.to_square(read_image(source)))
        except ImageError:
            continue  # the ranges of int8 values come from the others
    if not squares:
        raise DataError(f"none of the {len(sources)} pictures to calibrate int8 with can be read: give others")
    return np.stack(squares)


def draw_pictures(n: int, size: int) -> list[ImageSource]:
    """Synthetic pictures (s, s, 3): smooth coloured spots, coarse and fine."""
    rng = np.random.default_rng(0)
    pictures: list[ImageSource] = []
    for i in range(n):
        n_cells = 2 + i % 7
        cells = Image.fromarray(rng.integers(0, 256, (n_cells, n_cells, 3), dtype=np.uint8))
        spots = np.asarray(cells.resize((size, size), Image.Resampling.BICUBIC), np.int16)
        pictures.append(np.clip(spots + rng.integers(-8, 9, spots.shape), 0, 255).astype(np.uint8))
    return pictures


def _list_sources(pictures: str | Path | Sequence[ImageSource]) -> list[ImageSource]:
    if isinstance(pictures, str | Path):
        return list(read_listing(pictures).dataset.paths)
    if not isinstance(pictures, Sequence):
        raise InputError(
            f"pictures must be given as a list, a folder or a table, but came as {type(pictures).__name__}"
        )
    return list(pictures)


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False


def _shuffle(sources: Sequence[ImageSource]) -> list[ImageSource]:
    """Order sources by a hash of their names, which mixes the classes and is the same in every export."""
    keys = [blake2b(f"{source_name(source)} {i}".encode()).digest() for i, source in enumerate(sources)]
    return [sources[i] for i in sorted(range(len(sources)), key=keys.__getitem__)]
