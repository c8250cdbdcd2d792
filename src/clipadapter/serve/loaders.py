"""Loaders: functions that decode a picture of a request into a square. They never open a path or an address."""

from __future__ import annotations

import re
from functools import partial

from clipadapter.data.images import image_format, is_slow_file
from clipadapter.errors import ImageError
from clipadapter.serve.batching import Loader, SlowPicture, Square
from clipadapter.serve.json_body import decode_base64
from clipadapter.serve.limits import Limits, RequestRefused
from clipadapter.serve.models import ServedModel

DATA_URL = re.compile(r"data:[\w.+/\\-]{0,100};base64,")
MAX_DATA_URL_PREFIX_CHARS = 200
MAX_SLOW_SECONDS = 10.0
"""Processor time for a picture of a slow format, such as JPEG 2000."""


def bytes_loader(model: ServedModel, data: bytes | bytearray | memoryview, limits: Limits) -> Loader:
    """The loader of a picture's file."""
    return partial(_load_bytes, model, data, limits)


def base64_loader(model: ServedModel, text: str | memoryview, limits: Limits) -> Loader:
    """The loader of a picture's file in base64, with or without ``data:...;base64,`` before it."""
    return partial(_load_base64, model, text, limits)


def _load_bytes(model: ServedModel, data: bytes | bytearray | memoryview, limits: Limits) -> Square:
    data = bytes(data)
    kind = image_format(data)
    if limits.formats is not None and kind and kind not in limits.formats:
        accepted = ", ".join(limits.formats)
        raise RequestRefused(415, f"a picture is {kind}, but this server accepts {accepted}: convert it to one of them")
    loader = partial(
        model.predictor.preprocess, "picture", data=data, max_pixels=limits.max_pixels, max_seconds=MAX_SLOW_SECONDS
    )
    if is_slow_file(data, limits.max_pixels):
        raise SlowPicture(loader)
    return loader()


def _load_base64(model: ServedModel, text: str | memoryview, limits: Limits) -> Square:
    start = text[:MAX_DATA_URL_PREFIX_CHARS]
    prefix = DATA_URL.match(start if isinstance(start, str) else bytes(start).decode("latin-1"))
    try:
        data = decode_base64(text[prefix.end() :] if prefix else text)
    except ValueError as error:
        raise ImageError("picture", "no base64 of a picture's file; paths and addresses are not opened") from error
    return _load_bytes(model, data, limits)
