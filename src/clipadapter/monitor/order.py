"""The order in which pictures were taken."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from clipadapter.data.images import get_max_pixels, image_bytes, open_image
from clipadapter.errors import InputError, brief

SortKey = Literal["time", "name"]
EXIF_BLOCK_TAG, DATE_TIME_ORIGINAL_TAG = 0x8769, 0x9003


def sort_pictures(paths: Sequence[Path], by: SortKey = "time") -> tuple[list[Path], list[float] | None]:
    """Sort pictures, the oldest first.

    Args:
        paths: of the pictures.
        by: "time" sorts by the date in the EXIF data of a photo, or by the file's last change if there is none;
            "name" sorts by path.

    Returns:
        Paths, and the time of each in seconds since 1970; None by name. Equal times are in the order of their paths.

    Raises:
        InputError: if there is no such order.
    """
    if by not in ("time", "name"):
        raise InputError(f"pictures are ordered by time or name, not by {brief(by)}")
    by_name = sorted(paths)
    if by == "name":
        return by_name, None
    by_time = sorted(((_picture_time(path), path) for path in by_name), key=lambda pair: pair[0])
    return [path for _, path in by_time], [seconds for seconds, _ in by_time]


def _picture_time(path: Path) -> float:
    """Seconds since 1970; 0 for a missing file, which is reported when it is read."""
    try:
        return _exif_time(path) or path.stat().st_mtime
    except OSError:
        return 0.0


def _exif_time(path: Path) -> float | None:
    """When a JPEG file says that it was taken, in this machine's time zone, since cameras store none."""
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        return None
    try:
        image, _ = open_image(image_bytes(path), path.name, get_max_pixels())
        text = str(image.getexif().get_ifd(EXIF_BLOCK_TAG).get(DATE_TIME_ORIGINAL_TAG, ""))
        return time.mktime(time.strptime(text.strip("\0 "), "%Y:%m:%d %H:%M:%S"))
    except Exception:  # PIL raises many types for damaged files, and the order does not depend on the date alone
        return None
