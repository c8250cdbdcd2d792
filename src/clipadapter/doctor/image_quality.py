"""What a picture looks like by simple measures: read and decoded once, in threads; a few numbers a picture are kept."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from clipadapter.data.images import image_bytes, read_image
from clipadapter.errors import ImageError, require

SIDE = 256
"""Short side at which measures are taken; smaller pictures are left as they are."""
_HASHED = 32
"""Side of what the perceptual hash reads."""
_CHUNK = 1024


@dataclass(frozen=True)
class Look:
    """Measures of one picture; grey values are 0 to 255.

    Args:
        digest: of the file's bytes.
        width: in pixels, upright; of a large JPEG a half, a quarter or an eighth of it.
        height: the same.
        low: first percentile of grey.
        high: 99th percentile of grey.
        sharpness: see `sharpness`.
        code: perceptual hash, 64 bits.
        mirrored: perceptual hash of the mirrored picture.
    """

    digest: bytes
    width: int
    height: int
    low: float
    high: float
    sharpness: float
    code: int
    mirrored: int


def looks(paths: Sequence[Path], progress: bool = False) -> list[Look | None]:
    """Look at every picture.

    Args:
        paths: of the files.
        progress: show a bar on stderr.

    Returns:
        What each looks like; None if it can't be read.

    Raises:
        MissingExtraError: if ImageHash is not installed.
    """
    hashing = require("imagehash", "doctor", "looking for near duplicates")

    def one(path: Path) -> Look | None:
        try:
            return look(path, hashing)
        except ImageError:
            return None

    found: list[Look | None] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        bar = tqdm(total=len(paths), desc="looks", unit="img", file=sys.stderr, disable=not progress)
        for start in range(0, len(paths), _CHUNK):
            found += pool.map(one, paths[start : start + _CHUNK])
            bar.update(len(found) - bar.n)
        bar.close()
    return found


def look(path: Path, hashing: ModuleType) -> Look:
    """Look at one picture.

    Raises:
        ImageError: if it can't be read.
    """
    data = image_bytes(path)
    image = read_image(path, data=data, shrink_to=2 * SIDE)
    grey = shrunk(image).convert("L")
    values = np.asarray(grey, np.float32)
    low, high = np.percentile(values, [1, 99])
    tile = grey.resize((_HASHED, _HASHED), Image.Resampling.LANCZOS)
    code, mirrored = (_code(hashing, each) for each in (tile, ImageOps.mirror(tile)))
    digest = blake2b(data, digest_size=16).digest()
    return Look(digest, *image.size, float(low), float(high), sharpness(values), code, mirrored)


def shrunk(image: Image.Image, side: int = SIDE) -> Image.Image:
    """The picture with a short side of ``side`` pixels, or as it is if that is less.

    >>> shrunk(Image.new("L", (300, 1000)), 30).size, shrunk(Image.new("L", (20, 40)), 30).size
    ((30, 100), (20, 40))
    """
    factor = side / min(image.size)
    if factor >= 1:
        return image
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def sharpness(grey: np.ndarray) -> float:
    """How steep the steepest edges are: the 99th percentile of the Laplacian's size over the spread of grey.

    Unlike the Laplacian's variance it does not fall with contrast, nor with how much of the picture is empty.

    Args:
        grey: (h, w), 0 to 255.

    Returns:
        4 for a checkerboard of single pixels, below 0.1 for what has no sharp edge; 1 for a picture without room or
        contrast to tell.

    >>> sharpness(np.indices((8, 8)).sum(axis=0) % 2 * 255.0)
    4.0
    """
    low, high = np.percentile(grey, [1, 99])
    if min(grey.shape) < 3 or high - low < 1:
        return 1.0
    inner = grey[1:-1, 1:-1]
    edges = 4 * inner - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return float(np.percentile(np.abs(edges), 99) / (high - low))


def _code(hashing: ModuleType, tile: Image.Image) -> int:
    bits = np.packbits(hashing.phash(tile).hash.ravel())
    return int.from_bytes(bits.tobytes(), "big")
