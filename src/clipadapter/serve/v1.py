"""The interface for people and simple clients: pictures in, class names out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic_core import to_json

from clipadapter.serve.batching import Answer, Unreadable
from clipadapter.serve.body import JSON, load_picture
from clipadapter.serve.models import ServedModel
from clipadapter.serve.prediction_request import PredictionRequest
from clipadapter.serve.schemas import (
    ModelAddresses,
    ModelCapabilities,
    ModelDescription,
    ModelList,
    PredictionResponse,
    responses_of,
)
from clipadapter.serve.state import ServerState
from clipadapter.utils.prediction import Prediction, unreadable

router = APIRouter(prefix="/v1")
MAX_INLINE_SCORES = 2000
"""Answers with more scores are written in a thread."""
Timeout = Annotated[
    float | None, Query(ge=0.001, le=3600, description="Seconds you wait; the server's deadline if shorter.")
]


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
