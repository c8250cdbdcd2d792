"""Small pictures for a page, up to a weight."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from clipadapter.data.images import read_image
from clipadapter.errors import ImageError

SIDE = 88
"""Long side of a small picture in pixels."""
QUALITY = 70
CHUNK = 64
"""Pictures that are read before the weight is looked at again."""


def thumbnails(paths: Sequence[Path], budget: int, side: int = SIDE) -> list[str]:
    """Small JPEGs in base64, each at its path's place; empty if it can't be read, or the budget was spent before.

    Args:
        paths: the most wanted first.
        budget: letters that all may have together.
        side: long side in pixels.
    """
    found: list[str] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), CHUNK):
            if budget <= 0:
                break
            for small in pool.map(lambda path: _thumbnail(path, side), paths[start : start + CHUNK]):
                budget -= len(small)
                found.append(small if budget >= 0 else "")
    return found + [""] * (len(paths) - len(found))


def _thumbnail(path: Path, side: int) -> str:
    try:
        image = read_image(path, shrink_to=side)
    except ImageError:
        return ""
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, optimize=True)
    return base64.b64encode(file.getvalue()).decode()
