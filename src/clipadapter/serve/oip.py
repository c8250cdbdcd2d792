"""The Open Inference Protocol, also called KServe V2: tensors in, tensors out, for machines.

Source: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, Request
from fastapi.responses import Response
from numpy.typing import NDArray
from pydantic_core import to_json

from clipadapter import __version__
from clipadapter.serve.jobs import Answer, Bad
from clipadapter.serve.limits import Refused
from clipadapter.serve.models import Model
from clipadapter.serve.prediction_request import Guest, House
from clipadapter.serve.schemas import Inferred, Live, ModelFacts, ModelReady, Ready, ServerFacts, refusals
from clipadapter.serve.tensors import IMAGES, SQUARES, Question, numbers, read_question, texts, written, wrong
from clipadapter.serve.v1 import Timeout

router = APIRouter(prefix="/v2", tags=["open inference protocol"])
USUAL = ("logits", "probabilities", "strangeness", "labels")
LABELS = "|"
"""Stands between labels where a picture may have several."""


@router.get("", responses={200: {"model": ServerFacts}}, summary="Server metadata")
@router.get("/", include_in_schema=False)
async def server() -> Response:
    """The server's name, version and extensions."""
    return _json({"name": "clipadapter", "version": __version__, "extensions": ["binary_tensor_data"]})


@router.get("/health/live", responses={200: {"model": Live}}, summary="Server live")
async def live() -> Response:
    """Whether the process answers."""
    return _json({"live": True})


@router.get("/health/ready", responses={200: {"model": Ready}, 503: {"model": Ready}}, summary="Server ready")
async def ready(request: Request) -> Response:
    """Whether requests are taken: not while the server is leaving."""
    house: House = request.app.state.house
    able = not house.leaving
    return _json({"live": True, "ready": able}, 200 if able else 503)


@router.get("/models/{name}/versions/{version}", responses=refusals(ModelFacts, 401, 404), summary="Model metadata")
@router.get("/models/{name}", responses=refusals(ModelFacts, 401, 404), summary="Model metadata")
async def facts(request: Request, name: str, version: str | None = None) -> Response:
    """Inputs and outputs. One of the two inputs is to be given; features are sent only if they are asked for."""
    model = _model(request.app.state.house, name, version)
    n, side, c = -1, model.side, len(model.predictor.class_names)
    outputs = {"logits": [n, c], "probabilities": [n, c], "strangeness": [n], "features": [n, -1], "labels": [n]}
    return _json(
        {
            "name": model.name,
            "versions": [model.version],
            "platform": f"clipadapter_{getattr(model.predictor, 'backend', 'runtime')}",
            "inputs": [
                {"name": SQUARES, "datatype": "UINT8", "shape": [n, side, side, 3]},
                {"name": IMAGES, "datatype": "BYTES", "shape": [n]},
            ],
            "outputs": [
                {"name": one, "datatype": "BYTES" if one == "labels" else "FP32", "shape": outputs[one]}
                for one in outputs
                if one in _able(model)
            ],
        }
    )


@router.get("/models/{name}/versions/{version}/ready", responses=refusals(ModelReady, 401, 404), summary="Model ready")
@router.get("/models/{name}/ready", responses=refusals(ModelReady, 401, 404), summary="Model ready")
async def model_ready(request: Request, name: str, version: str | None = None) -> Response:
    """Whether a model answers: it does if it is there."""
    return _json({"name": _model(request.app.state.house, name, version).name, "ready": True})


@router.post("/models/{name}/versions/{version}/infer", responses=refusals(Inferred), summary="Inference")
@router.post("/models/{name}/infer", responses=refusals(Inferred), summary="Inference")
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

    `squares` are pixels (n, s, s, 3); `images` are files of pictures, in base64 or as bytes after the JSON. A picture
    that can't be read costs the request. Parameters: `reject`, `binary_data_output`.
    """
    guest = Guest(request, timeout)
    guest.check_room(_model(guest.house, name, version).name)
    body = await guest.body()
    model, place = guest.enter(name)
    with place:
        json_bytes = inference_header_content_length
        question = await guest.parse(len(body), read_question, body, json_bytes, model, guest.house.limits)
        del body
        guest.visit.pictures = len(question.makers)
        _check_outputs(question, model)
        model.check(question.asked)
        results = _sound(await guest.answers(place, question.makers, question.asked))
    return _answer(model, question, results)


def infer_schema(max_pictures: int) -> dict[str, Any]:
    """The body of `infer`, for the OpenAPI document."""
    named = {"name": {"type": "string"}, "parameters": {"type": "object"}}
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            **named,
            "name": {"enum": [SQUARES, IMAGES]},
            "datatype": {"enum": ["UINT8", "BYTES"]},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1, "maxItems": 4},
            "data": {"type": "array", "items": {}},
        },
    }
    output = {"type": "object", "required": ["name"], "properties": named}
    schema = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "items": tensor, "minItems": 1, "maxItems": 1},
            "outputs": {"type": "array", "items": output},
        },
        "example": {
            "inputs": [{"name": IMAGES, "shape": [1], "datatype": "BYTES", "data": ["iVBORw0KGgo..."]}],
            "outputs": [{"name": "labels"}, {"name": "probabilities"}],
        },
        "description": f"{max_pictures} pictures at most.",
    }
    octets = {"schema": {"type": "string", "format": "binary"}}
    return {
        "required": True,
        "content": {"application/json": {"schema": schema}, "application/octet-stream": octets},
    }


def _json(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")


def _model(house: House, name: str, version: str | None) -> Model:
    model = house.models.get(name)
    if version not in (None, model.version):
        raise Refused(404, f"{name} has the version {model.version}, not {str(version)[:50]!r}")
    return model


def _able(model: Model) -> list[str]:
    """Outputs that a model has."""
    strange = model.predictor.uncertainty.rejector is not None
    return ["logits", "probabilities", *(["strangeness"] if strange else []), "features", "labels"]


def _check_outputs(question: Question, model: Model) -> None:
    for name, _ in question.outputs or ():
        if name not in _able(model):
            raise wrong(f"there is no output {name[:50]!r}, but {', '.join(_able(model))}")


def _sound(results: Sequence[Answer | Bad]) -> list[Answer]:
    for i, result in enumerate(results):
        if isinstance(result, Bad):
            raise Refused(422, f"picture {i} can't be read: {result.reason}; leave it out, or ask /v1, which skips it")
    return [result for result in results if isinstance(result, Answer)]


def _answer(model: Model, question: Question, results: list[Answer]) -> Response:
    usual = [(name, question.binary) for name in USUAL if name in _able(model)]
    tensors = []
    for name, binary in question.outputs or usual:
        if name == "labels":
            tensors.append(texts(name, [_label(one, model) for one in results], binary))
        else:
            tensors.append(numbers(name, np.stack([_row(one, name, model) for one in results]), binary))
    answer = {"model_name": model.name, "model_version": model.version}
    body, head = written(answer if question.id is None else answer | {"id": question.id}, tensors)
    if head is None:
        return Response(body, media_type="application/json")
    return Response(body, media_type="application/octet-stream", headers={"Inference-Header-Content-Length": str(head)})


def _row(one: Answer, name: str, model: Model) -> NDArray[Any]:
    """What an output says of a picture."""
    if name == "probabilities":
        return np.asarray(one.answers.probabilities[one.row])
    if name == "strangeness" and one.outputs.strangeness is None:
        rejector, parts = model.predictor.uncertainty.rejector, one.outputs.parts
        assert rejector is not None and parts is not None
        return np.asarray(rejector.total(parts[one.row : one.row + 1])[0])
    return np.asarray(getattr(one.outputs, name)[one.row])


def _label(one: Answer, model: Model) -> str:
    """The class, "" for none of them; all of them where there may be several."""
    found = one.answers.prediction(one.row, "", model.predictor.class_names, 1)
    return LABELS.join(found.labels or ()) if model.predictor.several else found.label or ""
