"""The FastAPI application: its routes, its document, and what starts and stops with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import generate_latest
from pydantic import BaseModel, Field

from clipadapter import __version__
from clipadapter.serve.middleware import ERROR_HANDLERS, RequestMiddleware
from clipadapter.serve.models import ServedModel, ServedModels
from clipadapter.serve.prediction_request import ServerState, answer_pictures, body_schema

DESCRIPTION = (
    'Predicts the classes of pictures with models that `clipadapter export` wrote. Errors are `{"error": "why"}`.'
)
PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src blob:; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""The page talks to this server alone, and no other page frames it."""
Timeout = Annotated[
    float | None, Query(ge=0.001, le=3600, description="Seconds you wait; the server's deadline if shorter.")
]
router = APIRouter()


def create_app(models: ServedModels, token: str | None = None) -> FastAPI:
    """An app that serves models; any ASGI server runs it.

    Args:
        models: that are served; they are closed when the app stops.
        token: that requests must have, except for health and documentation; None for none.

    Example::

        app = create_app(ServedModels(["pets.onnx"]))
    """
    state = ServerState(models)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(models.watch())
        yield
        state.is_stopping = True
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await asyncio.to_thread(models.close)

    # Offline: the documentation page has its own scripts. Telemetry can't be turned on by an environment variable.
    app = FastAPIOffline(
        title="clipadapter",
        version=__version__,
        description=DESCRIPTION,
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers=ERROR_HANDLERS,
        swagger_ui_parameters={"validatorUrl": None},
        telemetry={"auto_configure": False},
    )
    app.state.server = state
    app.include_router(router)
    app.openapi = lambda: _document(app, models.limits.max_pictures, token is not None)  # type: ignore[method-assign]
    app.add_middleware(RequestMiddleware, state=state, token=token)
    return app


def _document(app: FastAPI, max_pictures: int, needs_token: bool) -> dict[str, Any]:
    """The OpenAPI document. Bodies are added here: routes read them as streams, so FastAPI does not know them."""
    document = FastAPI.openapi(app)  # which keeps it
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path.endswith("/predict"):
                operation["requestBody"] = body_schema(max_pictures)
            if needs_token and "/health/" not in path:
                operation["security"] = [{"token": []}]
    if needs_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return document


# ---- Schemas of answers ----


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


class ModelDescription(BaseModel):
    """A model."""

    name: str
    version: str = Field(description="Start of the SHA-256 that its file ends with.")
    loaded: str
    error: str | None = Field(description="Why a newer file could not be loaded; the previous one is served.")
    classes: list[str]
    task: str
    encoder: str | None
    licence: str | None
    head: str | None
    precision: str
    backend: str | None
    can: dict[str, bool] = Field(description="Whether it supports the options `reject` and `coverage`.")
    ask: dict[str, str] = Field(description="`pictures` is the address to send pictures to, `curl` does so.")


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
PREDICTION_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": PredictionResponse},
    **{status: {"model": ErrorResponse, "description": text} for status, text in STATUS_DESCRIPTIONS.items()},
}


# ---- Routes ----


@router.post(
    "/v1/predict", tags=["pictures"], responses=PREDICTION_RESPONSES, summary="Predict classes with the only model"
)
async def predict_by_the_only_model(request: Request, timeout: Timeout = None) -> Response:
    """As `/v1/models/{name}/predict`, where one model is served."""
    return await answer_pictures(request, None, timeout)


@router.post("/v1/models/{name}/predict", tags=["pictures"], responses=PREDICTION_RESPONSES, summary="Predict classes")
async def predict(request: Request, name: str, timeout: Timeout = None) -> Response:
    """One prediction per picture, in their order; a picture that can't be read has an `error` and affects no other.

    Send files in a form (`curl -F images=@a.jpg -F images=@b.jpg -F top=3`), or JSON with base64.
    """
    return await answer_pictures(request, name, timeout)


@router.get("/v1/models", tags=["models"], responses={401: PREDICTION_RESPONSES[401]}, summary="Models that are served")
async def models(request: Request) -> ModelList:
    """Each with its classes, encoder, licence and addresses."""
    served: ServedModels = request.app.state.server.models
    return ModelList(models=[_describe(served.get(name)) for name in served.names])


@router.get("/v2/health/live", tags=["running"], summary="Server live")
async def live() -> dict[str, bool]:
    """Whether the process answers."""
    return {"live": True}


@router.get("/v2/health/ready", tags=["running"], summary="Server ready", responses={503: {}})
async def ready(request: Request, response: Response) -> dict[str, bool]:
    """Whether requests are accepted: not while the server is stopping."""
    is_ready = not request.app.state.server.is_stopping
    response.status_code = 200 if is_ready else 503
    return {"live": True, "ready": is_ready}


@router.get("/metrics", tags=["running"], summary="Metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Counts and times, in the text format of Prometheus."""
    registry = request.app.state.server.models.metrics.registry
    return Response(generate_latest(registry), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/", include_in_schema=False)
async def root() -> Response:
    """The page on which a picture can be dropped."""
    package = files("clipadapter")
    style = (package / "rendering" / "templates" / "base.css").read_text(encoding="utf-8")
    page = (package / "serve" / "templates" / "page.html").read_text(encoding="utf-8")
    return HTMLResponse(page.replace("/* base.css */", style), headers={"Content-Security-Policy": PAGE_POLICY})


def _describe(model: ServedModel) -> ModelDescription:
    predictor, address = model.predictor, f"/v1/models/{model.name}/predict"
    encoder, uncertainty = predictor.metadata.encoder, predictor.uncertainty
    return ModelDescription(
        name=model.name,
        version=model.version,
        loaded=model.loaded_at.isoformat(timespec="seconds"),
        error=model.error,
        classes=list(predictor.class_names),
        task="multilabel" if predictor.is_multilabel else "single-label",
        encoder=encoder.get("name"),
        licence=encoder.get("licence"),
        head=predictor.metadata.head.get("name"),
        precision=predictor.precision,
        backend=predictor.backend,
        can={"reject": uncertainty.rejector is not None, "coverage": uncertainty.conformal is not None},
        ask={"pictures": address, "curl": f"curl -F images=@photo.jpg HOST{address}"},
    )
