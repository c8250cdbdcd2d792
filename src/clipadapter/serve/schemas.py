"""Shapes of answers, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

LEAST = 1e-6
"""Of a rate that is asked for; no shots can set a smaller one."""


class Fault(BaseModel):
    """Why there is no answer; the same shape everywhere."""

    error: str = Field(description="What was wrong, what came, what to do.")


class Score(BaseModel):
    """A class and its probability."""

    label: str
    score: float


class Named(BaseModel):
    """What is said of a picture; the fields of ``clipadapter predict --json``."""

    source: str = Field(description="The file's name as you sent it, or its place in the list.")
    label: str | None = Field(description="Its class; null if it is none of them, or can't be read.")
    probability: float | None = Field(description="Of that class, or of the nearest.")
    top: list[Score] = Field(description="The best classes.")
    nearest: str | None = Field(description="The class that it would have been called.")
    reason: str | None = Field(description="Why it is none of the classes.")
    labels: list[str] | None = Field(description="Those it may be, or has if it may have several.")
    error: str | None = Field(description="Why it can't be read.")


class Predictions(BaseModel):
    """Answers in the order of the pictures."""

    model: str
    version: str
    predictions: list[Named]


class Can(BaseModel):
    """What a model can be asked for."""

    reject: bool
    coverage: bool


class Asking(BaseModel):
    """Where a model is asked."""

    pictures: str
    tensors: str
    curl: str


class Described(BaseModel):
    """A model."""

    name: str
    version: str = Field(description="Start of the SHA-256 of its file.")
    loaded: str
    error: str | None = Field(description="Why a newer file could not be loaded; the one before answers.")
    classes: list[str]
    task: str
    encoder: str | None
    licence: str | None
    head: str | None
    precision: str
    backend: str | None
    can: Can
    ask: Asking


class Listed(BaseModel):
    """All models."""

    models: list[Described]


class Tensor(BaseModel):
    """What a tensor is called and holds; -1 is any number."""

    name: str
    datatype: str
    shape: list[int]


class ServerFacts(BaseModel):
    """The server, in the Open Inference Protocol."""

    name: str
    version: str
    extensions: list[str]


class ModelFacts(BaseModel):
    """A model, in the Open Inference Protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class Live(BaseModel):
    """Whether the server lives."""

    live: bool


class Ready(Live):
    """Whether it takes requests."""

    ready: bool


class ModelReady(BaseModel):
    """Whether a model takes requests."""

    name: str
    ready: bool


class OutTensor(Tensor):
    """A tensor of an answer; its data are left out where they follow as bytes."""

    data: list[float] | list[str] | None = None
    parameters: dict[str, Any] | None = None


class Inferred(BaseModel):
    """An answer of the Open Inference Protocol."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutTensor]


REASONS = {
    400: "It can't be understood.",
    401: "The token is missing or wrong.",
    404: "No such model.",
    408: "The body did not come in time, or too slowly.",
    413: "Too many bytes, pictures or texts.",
    415: "The body is of a type that is not taken.",
    421: "The server is not called as the header Host says.",
    422: "A value is wrong, or was not learned from the shots.",
    503: "The queue is full, too many bodies come in, or the server is leaving; Retry-After says when to try again.",
    504: "No answer in time.",
}


def refusals(answer: type[BaseModel], *which: int) -> dict[int | str, dict[str, Any]]:
    """Answers of a route: the good one, and those that say why not."""
    kept = which or tuple(REASONS)
    return {200: {"model": answer}, **{code: {"model": Fault, "description": REASONS[code]} for code in kept}}


described = refusals(Described, 401, 404)
