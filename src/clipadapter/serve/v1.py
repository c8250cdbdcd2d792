"""The interface for people and simple clients: pictures in, class names out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from clipadapter.prediction import Prediction, unreadable
from clipadapter.serve.batching import Answer, Loader, Unreadable
from clipadapter.serve.json_body import read_outline
from clipadapter.serve.limits import Limits, RequestRefused, too_many_pictures
from clipadapter.serve.loaders import base64_loader, bytes_loader
from clipadapter.serve.models import ServedModel
from clipadapter.serve.multipart_body import Form
from clipadapter.serve.prediction_request import PredictionRequest
from clipadapter.serve.schemas import (
    MIN_RATE,
    ModelAddresses,
    ModelCapabilities,
    ModelDescription,
    ModelList,
    PredictionResponse,
    responses_of,
)
from clipadapter.serve.state import ServerState

router = APIRouter(prefix="/v1")
MAX_TOP = 1000
MAX_SOURCE_CHARS = 200
MULTIPART, JSON = "multipart/form-data", "application/json"
MAX_INLINE_SCORES = 2000
"""Answers with more scores are written in a thread."""
Timeout = Annotated[
    float | None, Query(ge=0.001, le=3600, description="Seconds you wait; the server's deadline if shorter.")
]


def _float_to_int(value: Any) -> Any:
    """In JSON 5.0 is the same number as 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class PredictionOptions(BaseModel):
    """Options of a request; for those left out the model's own values hold."""

    model_config = ConfigDict(extra="forbid")
    top: Annotated[int, BeforeValidator(_float_to_int)] = Field(
        5, ge=1, le=MAX_TOP, description="How many classes to name."
    )
    reject: float | None = Field(
        None,
        ge=MIN_RATE,
        lt=1,
        description='Reject pictures as "none of these"; about this share of pictures of the classes is rejected too. '
        "Null: reject none.",
    )
    coverage: float | None = Field(
        None,
        ge=MIN_RATE,
        lt=1,
        description="Name a set of classes that has the right one with this probability. Null: no set.",
    )

    def model_options(self) -> dict[str, float | None]:
        """For `RuntimeModel.answer`."""
        return {name: getattr(self, name) for name in ("reject", "coverage") if name in self.model_fields_set}


class JsonPredictionBody(PredictionOptions):
    """A request in JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)
    images: list[str] = Field(min_length=1, description="Files of pictures in base64; data: URLs will do.")


def body_schema(max_pictures: int) -> dict[str, Any]:
    """The two kinds of bodies, for the OpenAPI document."""
    json_schema = JsonPredictionBody.model_json_schema()
    json_schema["properties"]["images"] |= {"maxItems": max_pictures}
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1, "maxItems": max_pictures}
    options = PredictionOptions.model_json_schema()["properties"]
    form_schema = {
        "type": "object",
        "properties": {"images": files, **{name: _without_null(schema) for name, schema in options.items()}},
        "required": ["images"],
        "additionalProperties": False,
    }
    return {"required": True, "content": {MULTIPART: {"schema": form_schema}, JSON: {"schema": json_schema}}}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A form can't express null."""
    if "anyOf" not in schema:
        return schema
    types = [option for option in schema["anyOf"] if option.get("type") != "null"]
    return {name: value for name, value in schema.items() if name not in ("anyOf", "default")} | types[0]


@router.post(
    "/predict",
    tags=["pictures"],
    responses=responses_of(PredictionResponse),
    summary="Predict classes with the only model",
)
async def predict_by_the_only_model(request: Request, timeout: Timeout = None) -> Response:
    """As `/v1/models/{name}/predict`, where one model is served."""
    return await _predict(PredictionRequest(request, timeout), None)


@router.post(
    "/models/{name}/predict", tags=["pictures"], responses=responses_of(PredictionResponse), summary="Predict classes"
)
async def predict(request: Request, name: str, timeout: Timeout = None) -> Response:
    """One prediction per picture, in their order; a picture that can't be read has an `error` and affects no other.

    Send files in a form (`curl -F images=@a.jpg -F images=@b.jpg -F top=3`), or JSON with base64.
    """
    return await _predict(PredictionRequest(request, timeout), name)


@router.get("/models", tags=["models"], summary="Models that are served")
async def models(request: Request) -> ModelList:
    """Each with its classes and addresses."""
    state: ServerState = request.app.state.server
    return ModelList(models=[describe_model(state.models.get(name)) for name in state.models.names])


@router.get("/models/{name}", tags=["models"], responses=responses_of(ModelDescription, 401, 404), summary="A model")
async def model(request: Request, name: str) -> ModelDescription:
    """Its classes, encoder, licence and addresses."""
    state: ServerState = request.app.state.server
    return describe_model(state.models.get(name))


async def _predict(request: PredictionRequest, name: str | None) -> Response:
    request.check_queue(name)
    content_type = _check_content_type(request)
    body = await request.read_body()
    model, slot = request.take_slot(name)
    with slot:
        options, sources, loaders = await request.parse(
            len(body), _parse_body, content_type, body, model, request.state.limits
        )
        del body  # the loaders have views of what they need
        request.context.pictures = len(loaders)
        model.check_options(options.model_options())
        results = await request.predict(slot, loaders, options.model_options())
    if len(results) * min(options.top, len(model.predictor.class_names)) <= MAX_INLINE_SCORES:
        return _prediction_response(model, results, sources, options.top)
    return await asyncio.to_thread(_prediction_response, model, results, sources, options.top)


def _check_content_type(request: PredictionRequest) -> str:
    """The header Content-Type, if it is one of the two that are supported."""
    content_type = request.request.headers.get("content-type", "")
    media_type = _media_type(content_type)
    if media_type not in (MULTIPART, JSON):
        text = f"the body is {media_type[:100] or 'of no type'}, but must be {MULTIPART} with files, or {JSON}"
        raise RequestRefused(415, text)
    return content_type


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _parse_body(
    content_type: str, body: bytes | bytearray, model: ServedModel, limits: Limits
) -> tuple[PredictionOptions, list[str], list[Loader]]:
    """Options, and each picture's name and loader."""
    if _media_type(content_type) == MULTIPART:
        form = Form(content_type, body, limits.max_pictures)
        if text := form.fields.get("images"):
            raise RequestRefused(
                422, f"images came as the text {text[:100]!r}: to send a file say -F images=@photo.jpg"
            )
        options = _validate(PredictionOptions, PredictionOptions.model_validate, form.fields)
        if not form.files:
            raise RequestRefused(422, "the form has no file: send one or more, as curl does with -F images=@photo.jpg")
        loaders = [bytes_loader(model, content, limits) for _, content in form.files]
        return options, [_shorten(name) for name, _ in form.files], loaders
    outline = read_outline(body, limits.max_pictures)
    parsed = _validate(JsonPredictionBody, JsonPredictionBody.model_validate_json, outline.text)
    if len(parsed.images) > limits.max_pictures:
        raise too_many_pictures(limits.max_pictures, len(parsed.images))
    loaders = [base64_loader(model, outline.texts.get(text, text), limits) for text in parsed.images]
    return parsed, [f"image {i}" for i in range(len(loaders))], loaders


_Schema = TypeVar("_Schema", bound=BaseModel)


def _validate(schema: type[_Schema], validate: Callable[[Any], _Schema], value: Any) -> _Schema:
    try:
        return validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        known = ", ".join(schema.model_fields)
        came = "" if first["type"] in ("missing", "json_invalid") else f" (it is {str(first['input'])[:40]!r})"
        raise RequestRefused(422, f"{where}: {first['msg']}{came}; the fields are: {known}") from error


def _shorten(name: str) -> str:
    """A file's name as the answer repeats it."""
    return name if len(name) <= MAX_SOURCE_CHARS else name[: MAX_SOURCE_CHARS - 3] + "..."


def _prediction_response(
    model: ServedModel, results: Sequence[Answer | Unreadable], sources: Sequence[str], top: int
) -> Response:
    predictions = [prediction.record() for prediction in _predictions(model, results, sources, top)]
    content = {"model": model.name, "version": model.version, "predictions": predictions}
    return Response(to_json(content), media_type=JSON)


def _predictions(
    model: ServedModel, results: Sequence[Answer | Unreadable], sources: Sequence[str], top: int
) -> list[Prediction]:
    class_names = model.predictor.class_names
    return [
        unreadable(source, result.reason)
        if isinstance(result, Unreadable)
        else result.answers.prediction(result.row, source, class_names, top)
        for result, source in zip(results, sources, strict=True)
    ]


def describe_model(model: ServedModel) -> ModelDescription:
    """The description of a model."""
    metadata, predictor = model.metadata, model.predictor
    encoder = {} if metadata is None else metadata.encoder
    address = f"/v1/models/{model.name}/predict"
    return ModelDescription(
        name=model.name,
        version=model.version,
        loaded=model.loaded_at.isoformat(timespec="seconds"),
        error=model.error,
        classes=list(predictor.class_names),
        task="multilabel" if predictor.is_multilabel else "single-label",
        encoder=encoder.get("name"),
        licence=encoder.get("licence"),
        head=None if metadata is None else metadata.head.get("name"),
        precision=predictor.precision,
        backend=getattr(predictor, "backend", None),
        can=ModelCapabilities(
            reject=predictor.uncertainty.rejector is not None, coverage=predictor.uncertainty.conformal is not None
        ),
        ask=ModelAddresses(pictures=address, curl=f"curl -F images=@photo.jpg HOST{address}"),
    )
