"""Tensors of the Open Inference Protocol, in JSON and as bytes after it.

Sources: https://github.com/kserve/open-inference-protocol, inference_rest.md, and the extension "binary_tensor_data":
numbers in little-endian order, row by row; texts each behind its length in four bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json, to_json

from clipadapter.serve.batching import Maker
from clipadapter.serve.json_body import Outline, read_numbers, read_outline
from clipadapter.serve.limits import Limits, Refused
from clipadapter.serve.loaders import from_base64, from_bytes
from clipadapter.serve.models import Model
from clipadapter.serve.multipart_body import too_many
from clipadapter.serve.schemas import LEAST

SQUARES, IMAGES = "squares", "images"
MAX_ID = 1000
Raw = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Question:
    """A request, understood.

    Args:
        id: that its client gave it, or None.
        makers: of the squares.
        outputs: (name, as bytes) of what is asked for; None for the usual.
        binary: whether the usual are sent as bytes.
        asked: for `RuntimeModel.answers`.
    """

    id: str | None
    makers: list[Maker]
    outputs: list[tuple[str, bool]] | None
    binary: bool
    asked: dict[str, float]


def read_question(body: bytes | bytearray, json_bytes: int | None, model: Model, limits: Limits) -> Question:
    """Understand a request.

    Args:
        body: of the request.
        json_bytes: length of the JSON at its start, from the header Inference-Header-Content-Length; None for all.
        model: that is asked.
        limits: how many pictures it may bring.

    Raises:
        Refused: if it is wrong, with what is.
    """
    if json_bytes is not None and not 0 < json_bytes <= len(body):
        raise wrong(f"Inference-Header-Content-Length is {json_bytes}, but the body has {len(body)} bytes")
    outline = read_outline(body, limits.max_pictures, b"data", json_bytes)
    raw = _parsed(outline.text)
    tail = memoryview(b"" if json_bytes is None else body)[json_bytes or 0 :]
    identity, parameters = raw.get("id"), _parameters(raw, "the request")
    short = isinstance(identity, str) and len(identity) <= MAX_ID and identity not in outline.texts
    if identity is not None and not short:
        raise wrong(f"id must be a text of {MAX_ID} characters at most")
    inputs = raw.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise wrong(f"inputs must be a list of one tensor, {SQUARES!r} or {IMAGES!r}")
    makers = _makers(inputs[0], outline, tail, model, limits)
    binary = _flag(parameters, "binary_data_output", False)
    return Question(identity, makers, _outputs(raw, binary), binary, _asked(parameters))


def numbers(name: str, array: NDArray[Any], binary: bool) -> tuple[dict[str, Any], bytes]:
    """A tensor of an answer, as JSON and what follows it as bytes.

    Args:
        name: of the tensor.
        array: of any shape, floats.
        binary: send the values as bytes.
    """
    values = np.ascontiguousarray(array, "<f4")
    tensor: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
    return _with_data(tensor, lambda: values.ravel().tolist(), values.tobytes() if binary else None)


def texts(name: str, values: Sequence[str], binary: bool) -> tuple[dict[str, Any], bytes]:
    """The same of texts (n,)."""
    tensor: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": [len(values)]}
    coded = [text.encode() for text in values] if binary else []
    data = b"".join(struct.pack("<I", len(text)) + text for text in coded) if binary else None
    return _with_data(tensor, lambda: list(values), data)


def written(answer: Mapping[str, Any], tensors: Sequence[tuple[dict[str, Any], bytes]]) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON if bytes follow."""
    head = to_json({**answer, "outputs": [tensor for tensor, _ in tensors]})
    tail = b"".join(data for _, data in tensors)
    binary = any("data" not in tensor for tensor, _ in tensors)
    return head + tail, len(head) if binary else None


def wrong(text: str) -> Refused:
    """What to raise for a request that can't be understood."""
    return Refused(400, f"{text}; GET the model's address for what it takes")


def _with_data(
    tensor: dict[str, Any], plain: Callable[[], list[Any]], data: bytes | None
) -> tuple[dict[str, Any], bytes]:
    if data is None:
        return tensor | {"data": plain()}, b""
    return tensor | {"parameters": {"binary_data_size": len(data)}}, data


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        raw = from_json(text, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise wrong(f"the body is no JSON ({str(error)[:100]})") from error
    if not isinstance(raw, dict):
        raise wrong("the body must be a JSON object")
    return raw


def _parameters(raw: Raw, where: str) -> dict[str, Any]:
    found = raw.get("parameters")
    if found is not None and not isinstance(found, dict):
        raise wrong(f"parameters of {where} must be an object")
    return found or {}


def _flag(parameters: Raw, name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise wrong(f"the parameter {name} must be true or false")
    return value


def _asked(parameters: Raw) -> dict[str, float]:
    rate = parameters.get("reject")
    if rate is None:
        return {}
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not LEAST <= rate < 1:
        raise wrong("the parameter reject must be a share between 0 and 1")
    return {"reject": float(rate)}


def _outputs(raw: Raw, binary: bool) -> list[tuple[str, bool]] | None:
    given = raw.get("outputs")
    if given is None:
        return None
    if not isinstance(given, list) or not all(
        isinstance(one, dict) and isinstance(one.get("name"), str) for one in given
    ):
        raise wrong("outputs must be a list of objects with a name")
    found = [(one["name"], _flag(_parameters(one, one["name"][:50]), "binary_data", binary)) for one in given]
    if len({name for name, _ in found}) < len(found):
        raise wrong("an output is asked for twice")
    return found or None


def _makers(tensor: Raw, outline: Outline, tail: memoryview, model: Model, limits: Limits) -> list[Maker]:
    name, shape, side = tensor.get("name"), tensor.get("shape"), model.side
    wanted = {SQUARES: ("UINT8", (side, side, 3)), IMAGES: ("BYTES", ())}
    if not isinstance(name, str) or name not in wanted:
        raise wrong(f"there is no input {str(name)[:50]!r}, but {SQUARES!r} and {IMAGES!r}")
    datatype, rest = wanted[name]
    if tensor.get("datatype") != datatype:
        raise wrong(f"{name} must have the datatype {datatype}")
    sound = isinstance(shape, list) and shape and all(type(n) is int and n >= 0 for n in shape)
    if not sound or tuple(shape[1:]) != rest or not shape[0]:  # type: ignore[index]
        raise wrong(f"{name} must have the shape {['n', *rest]} with n from 1, but has {str(shape)[:100]}")
    count = int(shape[0])  # type: ignore[index]
    if count > limits.max_pictures:
        raise too_many(limits.max_pictures, count)
    size = _parameters(tensor, name).get("binary_data_size")
    if size is None:
        if name == IMAGES:
            return _images(tensor.get("data"), count, outline, model, limits)
        return _squares(_numbers(tensor.get("data"), (count, *rest), outline), (count, *rest))
    if type(size) is not int or size != len(tail):
        raise wrong(f"binary_data_size of {name} is {str(size)[:30]}, but {len(tail)} bytes follow the JSON")
    if name == SQUARES:
        return _squares(tail, (count, *rest))
    return [from_bytes(model, data, limits.max_pixels) for data in _split(tail, count)]


def _images(data: Any, count: int, outline: Outline, model: Model, limits: Limits) -> list[Maker]:
    """Of texts in base64."""
    texts: list[str] = data if isinstance(data, list) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise wrong(f"data of {IMAGES} must be a list of texts: files of pictures in base64")
    if len(texts) != count:
        raise wrong(f"data of {IMAGES} are {len(texts)} values, but its shape [{count}] has {count}")
    return [from_base64(model, outline.texts.get(text, text), limits.max_pixels) for text in texts]


def _numbers(data: Any, shape: tuple[int, ...], outline: Outline) -> memoryview:
    """Of a list that was left in the body, nested as its shape says or not at all."""
    text = outline.numbers.get(data) if isinstance(data, str) else None
    if text is None:
        raise wrong(f"data of {SQUARES} must be a list of whole numbers from 0 to 255")
    try:
        return memoryview(read_numbers(text, shape))
    except ValueError as error:
        raise wrong(f"data of {SQUARES} {error}") from error


def _squares(data: memoryview, shape: tuple[int, ...]) -> list[Maker]:
    if len(data) != math.prod(shape):
        raise wrong(f"{SQUARES} are {len(data)} bytes, but the shape {list(shape)} has {math.prod(shape)}")
    array = np.frombuffer(data, np.uint8).reshape(shape)
    return [partial(array.__getitem__, i) for i in range(len(array))]


def _split(data: memoryview, count: int) -> list[memoryview]:
    """Texts, each behind its length."""
    found: list[memoryview] = []
    at = 0
    while at < len(data) and len(found) < count:
        if at + 4 > len(data):
            raise wrong(f"{IMAGES} break off within a length")
        (size,) = struct.unpack_from("<I", data, at)
        if at + 4 + size > len(data):
            raise wrong(f"{IMAGES} break off: {size} bytes are announced, {len(data) - at - 4} are there")
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    if len(found) != count or at != len(data):
        raise wrong(f"{IMAGES} are not the {count} that the shape says")
    return found
