"""Pictures as they come over the wire, as what makes squares of them; no path or address in them is ever opened."""

from __future__ import annotations

import re
from functools import partial

from clipadapter.data.images import is_slow_file
from clipadapter.errors import ImageError
from clipadapter.serve.batching import Maker, Slow, Square
from clipadapter.serve.json_body import decode_base64
from clipadapter.serve.models import Model

DATA_URL = re.compile(r"data:[\w.+/\\-]{0,100};base64,")
HEAD = 200
"""Bytes in which a data: URL says what it is."""
SHOWN = 200
MAX_SLOW_SECONDS = 10.0
"""Processor time for a picture of a slow format, such as JPEG 2000."""


def from_bytes(model: Model, data: bytes | bytearray | memoryview, max_pixels: int) -> Maker:
    """Of a picture's file."""
    return partial(_square, model, data, max_pixels)


def from_base64(model: Model, text: str | memoryview, max_pixels: int) -> Maker:
    """Of a picture's file in base64, with or without ``data:...;base64,`` before it."""
    return partial(_unpack, model, text, max_pixels)


def _square(model: Model, data: bytes | bytearray | memoryview, max_pixels: int) -> Square:
    data = bytes(data)
    maker = partial(model.predictor.square, "picture", data=data, max_pixels=max_pixels, max_seconds=MAX_SLOW_SECONDS)
    if is_slow_file(data):
        raise Slow(maker)
    return maker()


def _unpack(model: Model, text: str | memoryview, max_pixels: int) -> Square:
    start = text[:HEAD] if isinstance(text, str) else bytes(text[:HEAD]).decode("latin-1")
    head = DATA_URL.match(start)
    try:
        data = decode_base64(text[head.end() :] if head else text)
    except ValueError as error:
        raise ImageError("picture", "no base64 of a picture's file; paths and addresses are not opened") from error
    return _square(model, data, max_pixels)


def shown(name: str) -> str:
    """A file's name as it is told back to who sent it."""
    return name if len(name) <= SHOWN else name[: SHOWN - 3] + "..."
