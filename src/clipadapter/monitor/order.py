"""Pictures in the order in which they came."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from clipadapter.data.images import MAX_PIXELS, image_bytes, open_image
from clipadapter.errors import InputError

By = Literal["time", "name"]
EXIF, TAKEN = 0x8769, 0x9003
"""Numbers of EXIF's own block, and of the date in it at which a picture was taken."""


def in_order(paths: Sequence[Path], by: By = "time") -> tuple[list[Path], list[float] | None]:
    """Pictures, the oldest first, and when each came.

    Args:
        paths: of the pictures.
        by: "time" for when a photo was taken as EXIF says, else when the file was last written; "name" for the order of
            their paths.

    Returns:
        Paths, and seconds since 1970 of each; None by name. Equal times are in the order of their paths.

    Raises:
        InputError: if there is no such order.
    """
    if by not in ("time", "name"):
        raise InputError(f"pictures are ordered by time or name, not by {by!r}")
    names = sorted(paths)
    if by == "name":
        return names, None
    came = sorted(((_when(path), path) for path in names), key=lambda pair: pair[0])
    return [path for _, path in came], [when for when, _ in came]


def _when(path: Path) -> float:
    """Seconds since 1970; 0 for a file that can't be looked at, which is told when it is read."""
    try:
        return _taken(path) or path.stat().st_mtime
    except OSError:
        return 0.0


def _taken(path: Path) -> float | None:
    """When a JPEG file says that it was taken, by the clock of this machine's zone as cameras know none."""
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        return None
    try:
        image, _ = open_image(image_bytes(path), path.name, MAX_PIXELS)
        text = str(image.getexif().get_ifd(EXIF).get(TAKEN, ""))
        return time.mktime(time.strptime(text.strip("\0 "), "%Y:%m:%d %H:%M:%S"))
    except Exception:  # of a damaged file PIL raises whatever it likes, and the date is but a help
        return None
