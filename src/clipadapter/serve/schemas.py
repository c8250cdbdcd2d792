"""Schemas of answers, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

MIN_RATE = 1e-6
"""Smallest rejection rate or coverage of a request; no number of shots supports a smaller one."""


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
