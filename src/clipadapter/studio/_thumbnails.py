"""Small pictures for the page, which thereby asks for no file of the machine."""

from __future__ import annotations

import base64
import io
import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from clipadapter.data.images import read_image
from clipadapter.errors import ImageError
from clipadapter.studio._pictures import Picture, Stamp

KEPT = 4000
"""Small pictures that are kept in memory, of some kilobytes each."""
QUALITY = 75


class Thumbnails:
    """Makes each small picture once."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Stamp, int], str] = OrderedDict()

    def urls(self, pictures: Sequence[Picture], side: int) -> list[str]:
        """What ``src`` takes for each picture; empty for one that can't be read.

        Args:
            pictures: that are there.
            side: longest side in pixels.
        """
        missing = [one for one in pictures if (one.stamp, side) not in self._kept]
        if missing:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                made = list(pool.map(lambda one: _small(one, side), missing))
            self._kept.update(((one.stamp, side), url) for one, url in zip(missing, made, strict=True))
        found = [self._kept[one.stamp, side] for one in pictures]
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return found


def _small(picture: Picture, side: int) -> str:
    try:
        image = read_image(picture.path, shrink_to=side)
    except ImageError:
        return ""
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
