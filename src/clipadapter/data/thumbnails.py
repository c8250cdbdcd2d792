"""Thumbnails as text, so that a page needs no other file."""

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

MAX_THREADS = 8
CHUNK_PICTURES = 64  # pictures that are encoded between two checks of the budget


def encode_thumbnails(paths: Sequence[Path], side: int, quality: int, max_letters: int | None = None) -> list[str]:
    """JPEG files in base64, one per path; those of unreadable pictures and beyond `max_letters` together are empty."""
    thumbnails: list[str] = []
    n_letters = 0
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), CHUNK_PICTURES):
            if max_letters is not None and n_letters >= max_letters:
                break
            for text in pool.map(lambda path: _encode(path, side, quality), paths[start : start + CHUNK_PICTURES]):
                n_letters += len(text)
                thumbnails.append(text if max_letters is None or n_letters <= max_letters else "")
    return thumbnails + [""] * (len(paths) - len(thumbnails))


def thumbnail_url(thumbnail: str) -> str:
    """The address of a thumbnail, which contains it; empty if the thumbnail is empty."""
    return f"data:image/jpeg;base64,{thumbnail}" if thumbnail else ""


def _encode(path: Path, side: int, quality: int) -> str:
    try:
        image = read_image(path, shrink_to=side)
    except ImageError:
        return ""
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True)
    return base64.b64encode(file.getvalue()).decode()
