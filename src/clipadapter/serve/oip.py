"""The Open Inference Protocol, also called KServe V2: tensors in, tensors out.

Sources: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md, and the extension
"binary_tensor_data": numbers in little-endian order, row by row; each text after its length in four bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, Request
from fastapi.responses import Response
from numpy.typing import NDArray
from pydantic_core import from_json, to_json

from clipadapter import __version__
from clipadapter.pixels import pack_squares
from clipadapter.runtime.metadata import MAX_INPUTS
from clipadapter.serve.batching import Answer, Loader, Unreadable
from clipadapter.serve.json_body import Outline, read_numbers, read_outline
from clipadapter.serve.limits import Limits, RequestRefused, too_many_pictures
from clipadapter.serve.loaders import base64_loader, bytes_loader
from clipadapter.serve.models import ServedModel
from clipadapter.serve.prediction_request import PredictionRequest
from clipadapter.serve.schemas import (
    MIN_RATE,
    InferenceResponse,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    responses_of,
)
from clipadapter.serve.state import ServerState
from clipadapter.serve.v1 import Timeout

router = APIRouter(prefix="/v2", tags=["open inference protocol"])
IMAGES = "images"
"""Name of the input with files of pictures; those with squares have the names of `ServedModel.square_shapes`."""
LOGITS, PROBABILITIES, OOD_SCORES, FEATURES, LABELS = "logits", "probabilities", "ood_scores", "features", "labels"
DEFAULT_OUTPUTS = (LOGITS, PROBABILITIES, OOD_SCORES, LABELS)
LABEL_SEPARATOR = "|"
"""Between labels where a picture may have several."""
MAX_ID_CHARS = 1000
JsonObject = Mapping[str, Any]
Tensor = tuple[dict[str, Any], bytes]
"""A tensor of an answer: its JSON, and its data if they follow the JSON as bytes."""


@router.get("", responses={200: {"model": ServerMetadata}}, summary="Server metadata")
@router.get("/", include_in_schema=False)
async def server() -> Response:
    """The server's name, version and extensions."""
    return _json_response({"name": "clipadapter", "version": __version__, "extensions": ["binary_tensor_data"]})


@router.get("/health/live", responses={200: {"model": ServerLive}}, summary="Server live")
async def live() -> Response:
    """Whether the process answers."""
    return _json_response({"live": True})


@router.get(
    "/health/ready", responses={200: {"model": ServerReady}, 503: {"model": ServerReady}}, summary="Server ready"
)
async def ready(request: Request) -> Response:
    """Whether requests are accepted: not while the server is stopping."""
    state: ServerState = request.app.state.server
    return _json_response({"live": True, "ready": not state.is_stopping}, 503 if state.is_stopping else 200)


@router.get(
    "/models/{name}/versions/{version}", responses=responses_of(ModelMetadata, 401, 404), summary="Model metadata"
)
@router.get("/models/{name}", responses=responses_of(ModelMetadata, 401, 404), summary="Model metadata")
async def facts(request: Request, name: str, version: str | None = None) -> Response:
    """Inputs and outputs. A request has `images`, or all others; features are sent only if they are requested."""
    model = _find_model(request.app.state.server, name, version)
    class_count = len(model.predictor.class_names)
    shapes = {
        LOGITS: [-1, class_count],
        PROBABILITIES: [-1, class_count],
        OOD_SCORES: [-1],
        FEATURES: [-1, -1],
        LABELS: [-1],
    }
    return _json_response(
        {
            "name": model.name,
            "versions": [model.version],
            "platform": f"clipadapter_{getattr(model.predictor, 'backend', 'runtime')}",
            "inputs": [
                *({"name": each, "datatype": "UINT8", "shape": [-1, *s]} for each, s in model.square_shapes.items()),
                {"name": IMAGES, "datatype": "BYTES", "shape": [-1]},
            ],
            "outputs": [
                {"name": output, "datatype": "BYTES" if output == LABELS else "FP32", "shape": shapes[output]}
                for output in _output_names(model)
            ],
        }
    )


@router.get(
    "/models/{name}/versions/{version}/ready", responses=responses_of(ModelReady, 401, 404), summary="Model ready"
)
@router.get("/models/{name}/ready", responses=responses_of(ModelReady, 401, 404), summary="Model ready")
async def model_ready(request: Request, name: str, version: str | None = None) -> Response:
    """Whether a model accepts requests: every model that is served does."""
    return _json_response({"name": _find_model(request.app.state.server, name, version).name, "ready": True})


@router.post("/models/{name}/versions/{version}/infer", responses=responses_of(InferenceResponse), summary="Inference")
@router.post("/models/{name}/infer", responses=responses_of(InferenceResponse), summary="Inference")
async def infer(
    request: Request,
    name: str,
    version: str | None = None,
    timeout: Timeout = None,
    inference_header_content_length: Annotated[
        int | None, Header(description="Length of the JSON, if tensors follow it as bytes.")
    ] = None,
) -> Response:
    """Tensors in, tensors out.

    `squares` are pixels (n, s, s, 3); `images` are files of pictures, in base64 or as bytes after the JSON. A model of
    several sizes takes squares of each, such as `squares` and `squares_384`. If one picture can't be read, the request
    fails. Parameters: `reject`, `binary_data_output`.
    """
    prediction = PredictionRequest(request, timeout)
    prediction.check_queue(_find_model(prediction.state, name, version).name)
    body = await prediction.read_body()
    model, slot = prediction.take_slot(name)
    with slot:
        parsed = await prediction.parse(
            len(body), parse_request, body, inference_header_content_length, model, prediction.state.limits
        )
        del body  # the loaders have views of what they need
        prediction.context.pictures = len(parsed.loaders)
        _check_outputs(parsed, model)
        model.check_options(parsed.options)
        results = _check_readable(await prediction.predict(slot, parsed.loaders, parsed.options))
    return _inference_response(model, parsed, results)


def body_schema(max_pictures: int) -> dict[str, Any]:
    """The body of `infer`, for the OpenAPI document."""
    name_and_parameters = {"name": {"type": "string"}, "parameters": {"type": "object"}}
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            **name_and_parameters,
            "name": {"type": "string", "pattern": r"^(images|squares(_\d+){0,2})$"},
            "datatype": {"enum": ["UINT8", "BYTES"]},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1, "maxItems": 4},
            "data": {"type": "array", "items": {}},
        },
    }
    output = {"type": "object", "required": ["name"], "properties": name_and_parameters}
    schema = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "items": tensor, "minItems": 1, "maxItems": MAX_INPUTS},
            "outputs": {"type": "array", "items": output},
        },
        "example": {
            "inputs": [{"name": IMAGES, "shape": [1], "datatype": "BYTES", "data": ["iVBORw0KGgo..."]}],
            "outputs": [{"name": LABELS}, {"name": PROBABILITIES}],
        },
        "description": f"{max_pictures} pictures at most.",
    }
    octets = {"schema": {"type": "string", "format": "binary"}}
    return {
        "required": True,
        "content": {"application/json": {"schema": schema}, "application/octet-stream": octets},
    }


def _json_response(content: Any, status: int = 200) -> Response:
    return Response(to_json(content), status, media_type="application/json")


def _find_model(state: ServerState, name: str, version: str | None) -> ServedModel:
    model = state.models.get(name)
    if version not in (None, model.version):
        raise RequestRefused(404, f"{name} has the version {model.version}, not {str(version)[:50]!r}")
    return model


def _output_names(model: ServedModel) -> list[str]:
    """Outputs of a model, in the order of its metadata."""
    can_reject = model.predictor.uncertainty.rejector is not None
    return [LOGITS, PROBABILITIES, *([OOD_SCORES] if can_reject else []), FEATURES, LABELS]


@dataclass(frozen=True, eq=False)
class InferenceRequest:
    """A parsed request.

    Args:
        id: from its client, or None.
        loaders: of the pictures.
        outputs: (name, as bytes) of each requested output; None for the default outputs.
        is_binary: whether the default outputs are sent as bytes.
        options: for `RuntimeModel.answer`.
    """

    id: str | None
    loaders: list[Loader]
    outputs: list[tuple[str, bool]] | None
    is_binary: bool
    options: dict[str, float]


def parse_request(
    body: bytes | bytearray, json_bytes: int | None, model: ServedModel, limits: Limits
) -> InferenceRequest:
    """Parse the body of `infer`.

    Args:
        body: of the request.
        json_bytes: length of the JSON at its start, from the header Inference-Header-Content-Length; None if the whole
            body is JSON.
        model: that is requested.
        limits: of a request.

    Raises:
        RequestRefused: if something is wrong; the message says what.
    """
    if json_bytes is not None and not 0 < json_bytes <= len(body):
        raise _bad_request(f"Inference-Header-Content-Length is {json_bytes}, but the body has {len(body)} bytes")
    outline = read_outline(body, limits.max_pictures, b"data", json_bytes)
    request = _parse_json(outline.text)
    tail = memoryview(b"" if json_bytes is None else body)[json_bytes or 0 :]
    request_id, parameters = request.get("id"), _parameters(request, "the request")
    is_short = isinstance(request_id, str) and len(request_id) <= MAX_ID_CHARS and request_id not in outline.texts
    if request_id is not None and not is_short:
        raise _bad_request(f"id must be a text of {MAX_ID_CHARS} characters at most")
    loaders = _input_loaders(_read_inputs(request, model), outline, tail, model, limits)
    is_binary = _read_flag(parameters, "binary_data_output", False)
    return InferenceRequest(
        request_id, loaders, _read_outputs(request, is_binary), is_binary, _read_options(parameters)
    )


def _bad_request(text: str) -> RequestRefused:
    return RequestRefused(400, f"{text}; GET the model's address for its inputs and outputs")


def _parse_json(text: bytes) -> dict[str, Any]:
    try:
        value = from_json(text, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise _bad_request(f"the body is no JSON ({str(error)[:100]})") from error
    if not isinstance(value, dict):
        raise _bad_request("the body must be a JSON object")
    return value


def _parameters(value: JsonObject, where: str) -> dict[str, Any]:
    parameters = value.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise _bad_request(f"parameters of {where} must be an object")
    return parameters or {}


def _read_flag(parameters: JsonObject, name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise _bad_request(f"the parameter {name} must be true or false")
    return value


def _read_options(parameters: JsonObject) -> dict[str, float]:
    rate = parameters.get("reject")
    if rate is None:
        return {}
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not MIN_RATE <= rate < 1:
        raise _bad_request("the parameter reject must be a share between 0 and 1")
    return {"reject": float(rate)}


def _read_outputs(request: JsonObject, is_binary: bool) -> list[tuple[str, bool]] | None:
    outputs = request.get("outputs")
    if outputs is None:
        return None
    if not isinstance(outputs, list) or not all(
        isinstance(output, dict) and isinstance(output.get("name"), str) for output in outputs
    ):
        raise _bad_request("outputs must be a list of objects with a name")
    requested = [
        (output["name"], _read_flag(_parameters(output, output["name"][:50]), "binary_data", is_binary))
        for output in outputs
    ]
    if len({name for name, _ in requested}) < len(requested):
        raise _bad_request("an output is requested twice")
    return requested or None


def _read_inputs(request: JsonObject, model: ServedModel) -> list[JsonObject]:
    """The input tensors: pictures, or the squares of each size in the order of the request."""
    inputs, squares = request.get("inputs"), list(model.square_shapes)
    of_squares = f"{squares[0]!r}" if len(squares) == 1 else f"all of {', '.join(map(repr, squares))}"
    is_list = isinstance(inputs, list) and inputs and all(isinstance(each, dict) for each in inputs)
    if not is_list or len(inputs) > len(squares):  # type: ignore[arg-type]
        number = "one tensor" if len(squares) == 1 else "tensors"
        raise _bad_request(f"inputs must be a list of {number}, {of_squares} or {IMAGES!r}")
    names = [each.get("name") for each in inputs]  # type: ignore[union-attr]
    unknown = next((name for name in names if not isinstance(name, str) or name not in (*squares, IMAGES)), None)
    if unknown is not None or None in names:
        known = " and ".join(map(repr, (*squares, IMAGES)))
        raise _bad_request(f"there is no input {str(unknown)[:50]!r}, but {known}")
    if names != [IMAGES] and sorted(names) != sorted(squares):
        raise _bad_request(f"inputs must be {of_squares}, each once, or {IMAGES!r} alone, but are {', '.join(names)}")
    return inputs  # type: ignore[return-value]


def _input_loaders(
    tensors: Sequence[JsonObject], outline: Outline, tail: memoryview, model: ServedModel, limits: Limits
) -> list[Loader]:
    """Loaders of the pictures of the input tensors."""
    counts = {str(tensor["name"]): _read_count(tensor, model, limits) for tensor in tensors}
    count = next(iter(counts.values()))
    if len(set(counts.values())) > 1:
        given = ", ".join(f"{n} of {name}" for name, n in counts.items())
        raise _bad_request(f"all inputs must have the same number of pictures, but there are {given}")
    data = dict(zip(counts, _split_tail(tensors, tail), strict=True))
    if IMAGES in data:
        content = data[IMAGES]
        if content is None:
            return _base64_loaders(tensors[0].get("data"), count, outline, model, limits)
        return [bytes_loader(model, each, limits.max_pixels) for each in _split_texts(content, count)]
    squares: dict[str, NDArray[np.uint8]] = {}
    for tensor in tensors:
        name = str(tensor["name"])
        shape = (count, *model.square_shapes[name])
        content = data[name]
        numbers = _json_numbers(name, tensor.get("data"), shape, outline) if content is None else content
        squares[name] = _as_squares(name, numbers, shape)
    ordered = [squares[name] for name in model.square_shapes]
    return [partial(pack_squares, [each[i] for each in ordered]) for i in range(count)]


def _read_count(tensor: JsonObject, model: ServedModel, limits: Limits) -> int:
    """The number of pictures of a tensor, whose datatype and shape are checked."""
    name, shape = tensor["name"], tensor.get("shape")
    datatype, picture_shape = ("BYTES", ()) if name == IMAGES else ("UINT8", model.square_shapes[name])
    if tensor.get("datatype") != datatype:
        raise _bad_request(f"{name} must have the datatype {datatype}")
    # type() instead of isinstance: True and 2.0 are no lengths.
    is_valid = isinstance(shape, list) and shape and all(type(n) is int and n >= 0 for n in shape)
    if not is_valid or tuple(shape[1:]) != picture_shape or not shape[0]:  # type: ignore[index]
        raise _bad_request(
            f"{name} must have the shape {['n', *picture_shape]} with n from 1, but has {str(shape)[:100]}"
        )
    count = int(shape[0])  # type: ignore[index]
    if count > limits.max_pictures:
        raise too_many_pictures(limits.max_pictures, count)
    return count


def _split_tail(tensors: Sequence[JsonObject], tail: memoryview) -> list[memoryview | None]:
    """The bytes of each tensor, which follow the JSON in the order of the tensors; None for data in the JSON."""
    parts: list[memoryview | None] = []
    start = 0
    for tensor in tensors:
        size = _parameters(tensor, str(tensor["name"])).get("binary_data_size")
        if size is None:
            parts.append(None)
            continue
        if type(size) is not int or not 0 <= size <= len(tail) - start:
            rest = f"{len(tail) - start} bytes follow the JSON"
            raise _bad_request(f"binary_data_size of {tensor['name']} is {str(size)[:30]}, but {rest}")
        parts.append(tail[start : start + size])
        start += size
    if start < len(tail) and any(part is not None for part in parts):
        raise _bad_request(f"binary_data_size of all inputs is {start}, but {len(tail)} bytes follow the JSON")
    return parts


def _base64_loaders(data: Any, count: int, outline: Outline, model: ServedModel, limits: Limits) -> list[Loader]:
    contents: list[str] = data if isinstance(data, list) else []
    if not contents or not all(isinstance(text, str) for text in contents):
        raise _bad_request(f"data of {IMAGES} must be a list of texts: files of pictures in base64")
    if len(contents) != count:
        raise _bad_request(f"data of {IMAGES} are {len(contents)} values, but its shape [{count}] has {count}")
    return [base64_loader(model, outline.texts.get(text, text), limits.max_pixels) for text in contents]


def _json_numbers(name: str, data: Any, shape: tuple[int, ...], outline: Outline) -> memoryview:
    """The numbers of a list that the outline left in the body."""
    text = outline.numbers.get(data) if isinstance(data, str) else None
    if text is None:
        raise _bad_request(f"data of {name} must be a list of whole numbers from 0 to 255")
    try:
        return memoryview(read_numbers(text, shape))
    except ValueError as error:
        raise _bad_request(f"data of {name} {error}") from error


def _as_squares(name: str, data: memoryview, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if len(data) != math.prod(shape):
        raise _bad_request(f"{name} are {len(data)} bytes, but the shape {list(shape)} has {math.prod(shape)}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _split_texts(data: memoryview, count: int) -> list[memoryview]:
    """Texts, each of which follows its length."""
    texts: list[memoryview] = []
    start = 0
    while start < len(data) and len(texts) < count:
        if start + 4 > len(data):
            raise _bad_request(f"{IMAGES} break off within a length")
        (size,) = struct.unpack_from("<I", data, start)
        if start + 4 + size > len(data):
            raise _bad_request(f"{IMAGES} break off: {size} bytes are announced, {len(data) - start - 4} are there")
        texts.append(data[start + 4 : start + 4 + size])
        start += 4 + size
    if len(texts) != count or start != len(data):
        raise _bad_request(f"{IMAGES} are not the {count} that the shape says")
    return texts


def _check_outputs(request: InferenceRequest, model: ServedModel) -> None:
    for name, _ in request.outputs or ():
        if name not in _output_names(model):
            raise _bad_request(f"there is no output {name[:50]!r}, but {', '.join(_output_names(model))}")


def _check_readable(results: Sequence[Answer | Unreadable]) -> list[Answer]:
    """Refuse a request with an unreadable picture: a tensor has no place for its reason."""
    for i, result in enumerate(results):
        if isinstance(result, Unreadable):
            text = f"picture {i} can't be read: {result.reason}; leave it out, or send it to /v1, which skips it"
            raise RequestRefused(422, text)
    return [result for result in results if isinstance(result, Answer)]


def _inference_response(model: ServedModel, request: InferenceRequest, results: list[Answer]) -> Response:
    default_outputs = [(name, request.is_binary) for name in DEFAULT_OUTPUTS if name in _output_names(model)]
    tensors = []
    for name, is_binary in request.outputs or default_outputs:
        if name == LABELS:
            tensors.append(text_tensor(name, [_label(result, model) for result in results], is_binary))
        else:
            rows = np.stack([_output_row(result, name, model) for result in results])
            tensors.append(float_tensor(name, rows, is_binary))
    fields: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if model.adaptation is not None:
        fields["parameters"] = {"adaptation": model.adaptation["method"]}
    if request.id is not None:
        fields["id"] = request.id
    body, json_bytes = encode_response(fields, tensors)
    if json_bytes is None:
        return Response(body, media_type="application/json")
    headers = {"Inference-Header-Content-Length": str(json_bytes)}
    return Response(body, media_type="application/octet-stream", headers=headers)


def _output_row(result: Answer, name: str, model: ServedModel) -> NDArray[Any]:
    """The row of an output for one picture."""
    outputs, row = result.outputs, result.row
    if name == PROBABILITIES:  # of the decisions: a graph need not have any
        return np.asarray(result.answers.probabilities[row])
    if name == OOD_SCORES:
        if outputs.ood_scores is not None:
            return np.asarray(outputs.ood_scores[row])
        rejector, parts = model.predictor.uncertainty.rejector, outputs.ood_score_parts
        assert rejector is not None and parts is not None
        return np.asarray(rejector.weighted_sum(parts[row : row + 1])[0])
    return np.asarray((outputs.logits if name == LOGITS else outputs.features)[row])


def _label(result: Answer, model: ServedModel) -> str:
    """The class, "" for a rejected picture; all labels of a multi-label model."""
    prediction = result.answers.prediction(result.row, "", model.predictor.class_names, 1)
    return LABEL_SEPARATOR.join(prediction.labels or ()) if model.predictor.is_multilabel else prediction.label or ""


def float_tensor(name: str, array: NDArray[Any], is_binary: bool) -> Tensor:
    """A tensor of floats.

    Args:
        name: of the tensor.
        array: of any shape.
        is_binary: send the values as bytes.
    """
    values = np.ascontiguousarray(array, "<f4")
    tensor: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
    return _with_data(tensor, lambda: values.ravel().tolist(), values.tobytes() if is_binary else None)


def text_tensor(name: str, values: Sequence[str], is_binary: bool) -> Tensor:
    """A tensor of texts (n,)."""
    tensor: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": [len(values)]}
    encoded = [text.encode() for text in values] if is_binary else []
    data = b"".join(struct.pack("<I", len(text)) + text for text in encoded) if is_binary else None
    return _with_data(tensor, lambda: list(values), data)


def _with_data(tensor: dict[str, Any], values: Callable[[], list[Any]], data: bytes | None) -> Tensor:
    if data is None:
        return tensor | {"data": values()}, b""
    return tensor | {"parameters": {"binary_data_size": len(data)}}, data


def encode_response(fields: Mapping[str, Any], tensors: Sequence[Tensor]) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON if bytes follow."""
    head = to_json({**fields, "outputs": [tensor for tensor, _ in tensors]})
    tail = b"".join(data for _, data in tensors)
    has_bytes = any("data" not in tensor for tensor, _ in tensors)
    return head + tail, len(head) if has_bytes else None
