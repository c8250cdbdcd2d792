"""The interface for people and simple clients: pictures in, class names out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field
from pydantic_core import to_json

from clipadapter.serve.batching import Answer, Unreadable
from clipadapter.serve.body import JSON, load_picture
from clipadapter.serve.models import ServedModel
from clipadapter.serve.prediction_request import PredictionRequest, ServerState
from clipadapter.utils.prediction import unreadable

router = APIRouter(prefix="/v1")
MAX_INLINE_SCORES = 2000
"""Answers with more scores are written in a thread."""
Timeout = Annotated[
    float | None, Query(ge=0.001, le=3600, description="Seconds you wait; the server's deadline if shorter.")
]


# ---- Schemas of answers, for the OpenAPI document ----


class ErrorResponse(BaseModel):
    """Why a request failed; the same shape everywhere."""

    error: str = Field(description="What was wrong, what came, what to do.")


class ClassScore(BaseModel):
    """A class and its probability."""

    label: str
    score: float


class PicturePrediction(BaseModel):
    """The prediction for one picture; the fields of ``clipadapter predict --json``."""

    source: str = Field(description="The file's name as you sent it, or its position in the list.")
    label: str | None = Field(description="The predicted class; null if the picture is rejected or can't be read.")
    probability: float | None = Field(description="Of that class, or of `nearest`.")
    top: list[ClassScore] = Field(description="The best classes.")
    nearest: str | None = Field(description="The class that is predicted without rejection.")
    unlike_every_class: bool = Field(
        description="Whether the picture is unlike every class; it has a `label` all the same, unless it is rejected."
    )
    ood_score: float | None = Field(description="How unlike the classes it is; 0 for the mean held-out shot.")
    reason: str | None = Field(description="Why the picture is unlike every class.")
    labels: list[str] | None = Field(description="The prediction set, or the labels of a multi-label model.")
    error: str | None = Field(description="Why the picture can't be read.")


class PredictionResponse(BaseModel):
    """Predictions in the order of the pictures."""

    model: str
    version: str
    predictions: list[PicturePrediction]


class ModelCapabilities(BaseModel):
    """Options that a model supports."""

    reject: bool
    coverage: bool


class ModelAddresses(BaseModel):
    """Where to send requests."""

    pictures: str
    curl: str


class ModelDescription(BaseModel):
    """A model."""

    name: str
    version: str = Field(description="Start of the SHA-256 of its file.")
    loaded: str
    error: str | None = Field(description="Why a newer file could not be loaded; the previous one is served.")
    classes: list[str]
    task: str
    encoder: str | None
    licence: str | None
    head: str | None
    precision: str
    backend: str | None
    can: ModelCapabilities
    ask: ModelAddresses


class ModelList(BaseModel):
    """All models."""

    models: list[ModelDescription]


STATUS_DESCRIPTIONS = {
    400: "The request can't be parsed.",
    401: "The token is missing or wrong.",
    404: "No such model.",
    408: "The body did not come in time.",
    413: "Too many bytes, pictures or values.",
    415: "The type of the body, or the format of a picture, is not accepted.",
    421: "The header Host names another server.",
    422: "A value is wrong, or was not learned from the shots.",
    503: "The queue or the places for slow pictures are full, or the server is stopping; Retry-After says when to try "
    "again.",
    504: "No answer in time.",
}


def responses_of(schema: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Responses of a route, for FastAPI: the answer, and errors of these statuses, or of all."""
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorResponse, "description": STATUS_DESCRIPTIONS[status]}
        for status in statuses or STATUS_DESCRIPTIONS
    }
    return {200: {"model": schema}, **errors}


# ---- Routes ----


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
    pictures = await request.read_pictures()
    model, slot = request.take_slot(name)
    with slot:
        request.context.pictures = len(pictures.files)
        options = pictures.options.model_options()
        model.check_options(options)
        loaders = [partial(load_picture, model, file, request.state.limits) for file in pictures.files]
        names, top = pictures.names, pictures.options.top
        del pictures  # each loader has what it needs, and is dropped when its picture is loaded
        results = await request.predict(slot, loaders, options)
    if len(results) * min(top, len(model.predictor.class_names)) <= MAX_INLINE_SCORES:
        return _prediction_response(model, results, names, top)
    return await asyncio.to_thread(_prediction_response, model, results, names, top)


def _prediction_response(
    model: ServedModel, results: Sequence[Answer | Unreadable], sources: Sequence[str], top: int
) -> Response:
    class_names = model.predictor.class_names
    predictions = [
        unreadable(source, result.reason)
        if isinstance(result, Unreadable)
        else result.answers.prediction(result.row, source, class_names, top)
        for result, source in zip(results, sources, strict=True)
    ]
    records = [prediction.record() for prediction in predictions]
    content = {"model": model.name, "version": model.version, "predictions": records}
    return Response(to_json(content), media_type=JSON)


def describe_model(model: ServedModel) -> ModelDescription:
    """The description of a model."""
    predictor = model.predictor
    metadata = predictor.metadata
    address = f"/v1/models/{model.name}/predict"
    return ModelDescription(
        name=model.name,
        version=model.version,
        loaded=model.loaded_at.isoformat(timespec="seconds"),
        error=model.error,
        classes=list(predictor.class_names),
        task="multilabel" if predictor.is_multilabel else "single-label",
        encoder=metadata.encoder.get("name"),
        licence=metadata.encoder.get("licence"),
        head=metadata.head.get("name"),
        precision=predictor.precision,
        backend=predictor.backend,
        can=ModelCapabilities(
            reject=predictor.uncertainty.rejector is not None, coverage=predictor.uncertainty.conformal is not None
        ),
        ask=ModelAddresses(pictures=address, curl=f"curl -F images=@photo.jpg HOST{address}"),
    )
