"""Pictures in, names out: what a person would ask."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from clipadapter.prediction import Prediction, unreadable
from clipadapter.serve.batching import Maker
from clipadapter.serve.jobs import Answer, Bad
from clipadapter.serve.json_body import read_outline
from clipadapter.serve.limits import Limits, Refused
from clipadapter.serve.loaders import from_base64, from_bytes, shown
from clipadapter.serve.models import Model
from clipadapter.serve.multipart_body import Form, too_many
from clipadapter.serve.prediction_request import Guest, House
from clipadapter.serve.schemas import LEAST, Listed, Predictions, described, refusals

router = APIRouter(prefix="/v1")
MAX_TOP = 1000
MULTIPART, JSON = "multipart/form-data", "application/json"
INLINE_SCORES = 2000
"""Answers with more classes and probabilities are written in a thread."""
Timeout = Annotated[
    float | None, Query(ge=0.001, le=3600, description="Seconds you wait; the server's deadline if shorter.")
]


def _whole(value: Any) -> Any:
    """To JSON 5.0 is a whole number like 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Wanted(BaseModel):
    """What is asked for beside the best class; what is left out is the model's own."""

    model_config = ConfigDict(extra="forbid")
    top: Annotated[int, BeforeValidator(_whole)] = Field(5, ge=1, le=MAX_TOP, description="How many classes to name.")
    reject: float | None = Field(
        None, ge=LEAST, lt=1, description='Say "none of these"; of pictures that are one, about so often. Null: never.'
    )
    coverage: float | None = Field(
        None, ge=LEAST, lt=1, description="Name a set of classes that has the right one so often. Null: no set."
    )

    def asked(self) -> dict[str, float | None]:
        """For `RuntimeModel.answers`."""
        return {name: getattr(self, name) for name in ("reject", "coverage") if name in self.model_fields_set}


class Ask(Wanted):
    """A request in JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)
    images: list[str] = Field(min_length=1, description="Files of pictures in base64; data: URLs will do.")


def body_schema(max_pictures: int) -> dict[str, Any]:
    """The two bodies that are taken, for the OpenAPI document."""
    ask = Ask.model_json_schema()
    ask["properties"]["images"] |= {"maxItems": max_pictures}
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1, "maxItems": max_pictures}
    fields = {name: _without_null(prop) for name, prop in Wanted.model_json_schema()["properties"].items()}
    form = {
        "type": "object",
        "properties": {"images": files, **fields},
        "required": ["images"],
        "additionalProperties": False,
    }
    return {
        "required": True,
        "content": {"multipart/form-data": {"schema": form}, "application/json": {"schema": ask}},
    }


def _without_null(prop: dict[str, Any]) -> dict[str, Any]:
    """A form has no way to say null."""
    if "anyOf" not in prop:
        return prop
    kinds = [kind for kind in prop["anyOf"] if kind.get("type") != "null"]
    return {name: value for name, value in prop.items() if name not in ("anyOf", "default")} | kinds[0]


@router.post("/predict", tags=["pictures"], responses=refusals(Predictions), summary="Name pictures, by the only model")
async def predict_by_the_only_model(request: Request, timeout: Timeout = None) -> Response:
    """As `/v1/models/{name}/predict`, where one model is served."""
    return await _predict(Guest(request, timeout), None)


@router.post("/models/{name}/predict", tags=["pictures"], responses=refusals(Predictions), summary="Name pictures")
async def predict(request: Request, name: str, timeout: Timeout = None) -> Response:
    """One answer a picture, in their order; a picture that can't be read has an `error` and costs no other.

    Send files in a form (`curl -F images=@a.jpg -F images=@b.jpg -F top=3`), or JSON with base64.
    """
    return await _predict(Guest(request, timeout), name)


@router.get("/models", tags=["models"], responses={200: {"model": Listed}}, summary="Models that are served")
async def models(request: Request) -> Response:
    """Each with its classes, and how to ask it."""
    house: House = request.app.state.house
    found = [describe(house.models.get(name)) for name in house.models.names]
    return Response(to_json({"models": found}), media_type="application/json")


@router.get("/models/{name}", tags=["models"], responses=described, summary="A model")
async def model(request: Request, name: str) -> Response:
    """Its classes, encoder and licence, and how to ask it."""
    house: House = request.app.state.house
    return Response(to_json(describe(house.models.get(name))), media_type="application/json")


async def _predict(guest: Guest, name: str | None) -> Response:
    guest.check_room(name)
    content_type = _content_type(guest)
    body = await guest.body()
    model, place = guest.enter(name)
    with place:
        wanted, names, makers = await guest.parse(len(body), _read, content_type, body, model, guest.house.limits)
        del body
        guest.visit.pictures = len(makers)
        model.check(wanted.asked())
        results = await guest.answers(place, makers, wanted.asked())
    if len(results) * min(wanted.top, len(model.predictor.class_names)) <= INLINE_SCORES:
        return _answer(model, results, names, wanted.top)
    return await asyncio.to_thread(_answer, model, results, names, wanted.top)


def _answer(model: Model, results: Sequence[Answer | Bad], names: Sequence[str], top: int) -> Response:
    predictions = [one.record() for one in _told(model, results, names, top)]
    answer = {"model": model.name, "version": model.version, "predictions": predictions}
    return Response(to_json(answer), media_type="application/json")


def _content_type(guest: Guest) -> str:
    """The header, if it is one of the two types that are taken."""
    content_type = guest.request.headers.get("content-type", "")
    base = _base_type(content_type)
    if base not in (MULTIPART, JSON):
        raise Refused(
            415,
            f"the body is {base[:100] or 'of no type'}, but must be {MULTIPART} with files, or {JSON}",
        )
    return content_type


def _base_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _read(
    content_type: str, body: bytes | bytearray, model: Model, limits: Limits
) -> tuple[Wanted, list[str], list[Maker]]:
    """What is asked for, and each picture's name and maker."""
    if _base_type(content_type) == MULTIPART:
        form = Form(content_type, body, limits.max_pictures)
        if text := form.fields.get("images"):
            raise Refused(422, f"images came as the text {text[:100]!r}: to send a file say -F images=@photo.jpg")
        wanted = _checked(Wanted, lambda: Wanted.model_validate(form.fields))
        if not form.files:
            raise Refused(422, "the form has no file: send one or more, as curl does with -F images=@photo.jpg")
        makers = [from_bytes(model, data, limits.max_pixels) for _, data in form.files]
        return wanted, [shown(name) for name, _ in form.files], makers
    outline = read_outline(body, limits.max_pictures)
    ask = _checked(Ask, lambda: Ask.model_validate_json(outline.text))
    if len(ask.images) > limits.max_pictures:
        raise too_many(limits.max_pictures, len(ask.images))
    makers = [from_base64(model, outline.texts.get(text, text), limits.max_pixels) for text in ask.images]
    return ask, [f"image {i}" for i in range(len(makers))], makers


def _checked(kind: type[Any], read: Any) -> Any:
    try:
        return read()
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        known = ", ".join(kind.model_fields)
        came = "" if first["type"] in ("missing", "json_invalid") else f" (it is {str(first['input'])[:40]!r})"
        raise Refused(422, f"{where}: {first['msg']}{came}; what can be said is: {known}") from error


def _told(model: Model, results: Sequence[Answer | Bad], names: Sequence[str], top: int) -> list[Prediction]:
    classes = model.predictor.class_names
    return [
        unreadable(name, one.reason) if isinstance(one, Bad) else one.answers.prediction(one.row, name, classes, top)
        for one, name in zip(results, names, strict=True)
    ]


def describe(model: Model) -> dict[str, Any]:
    """What is told of a model."""
    about, predictor = model.about, model.predictor
    encoder = {} if about is None else about.encoder
    return {
        "name": model.name,
        "version": model.version,
        "loaded": model.loaded.isoformat(timespec="seconds"),
        "error": model.error,
        "classes": list(predictor.class_names),
        "task": "multilabel" if predictor.several else "single-label",
        "encoder": encoder.get("name"),
        "licence": encoder.get("licence"),
        "head": None if about is None else about.head.get("name"),
        "precision": predictor.precision,
        "backend": getattr(predictor, "backend", None),
        "can": {
            "reject": predictor.uncertainty.rejector is not None,
            "coverage": predictor.uncertainty.conformal is not None,
        },
        "ask": {
            "pictures": f"/v1/models/{model.name}/predict",
            "tensors": f"/v2/models/{model.name}/infer",
            "curl": f"curl -F images=@photo.jpg HOST/v1/models/{model.name}/predict",
        },
    }
