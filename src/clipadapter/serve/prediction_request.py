"""A request with pictures: admission, reading and parsing its body, waiting for its results, and its answer.

A body is a form with files, or JSON with base64. Nothing is written to disk, no address is opened. Starlette reads
forms while they arrive. A JSON body is parsed as a whole, after its commas and brackets are counted: the parser makes
an object of every value and holds Python's lock, so that a body of many small values would take hundreds of times its
size in memory and stop all other requests.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import re
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import anyio
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import to_json
from python_multipart.exceptions import FormParserError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from clipadapter.data.images import image_format, is_slow_file
from clipadapter.errors import ImageError
from clipadapter.runtime import Predictor
from clipadapter.serve.batching import Job, Loader, Result, Square
from clipadapter.serve.limits import BUFFERED_BODIES, SMALL_BODY_BYTES, Limits, RequestRefused
from clipadapter.serve.models import ServedModel, ServedModels
from clipadapter.utils.prediction import unreadable

MULTIPART, JSON = "multipart/form-data", "application/json"
CURL_HINT = "send files as curl does with -F images=@photo.jpg"
MAX_FIELDS = 20
MAX_FIELD_BYTES = 1024
MAX_OTHER_VALUES = 256  # values in a JSON body besides the pictures
MAX_INLINE_BYTES, MAX_INLINE_SCORES = 64 << 10, 2000
"""Longer JSON bodies are parsed in a thread, and answers with more scores are written in one."""
MAX_TOP = 1000
MIN_RATE = 1e-6  # smallest rejection rate or coverage of a request; no number of shots supports a smaller one
MAX_SOURCE_CHARS = 200
MAX_SLOW_SECONDS = 10.0  # processor time for a picture of a slow format, such as JPEG 2000
DATA_URL = re.compile(r"data:[\w.+/-]{0,100};base64,")


@dataclass(eq=False)
class ServerState:
    """What all requests share."""

    models: ServedModels
    buffered_bytes: int = 0  # of all bodies in memory
    # Names in the header Host that are answered besides this machine's; None for all
    allowed_hosts: frozenset[str] | None = None
    is_stopping: bool = False  # the server was asked to stop


@dataclass
class RequestContext:
    """What the log and the metrics say about a request."""

    id: str  # in logs and in the answer's header
    started_at: float = field(default_factory=time.monotonic)  # on the clock of `time.monotonic`
    body_bytes: int = 0  # received
    model: str = ""  # its name; "" for none. Not the model: a connection keeps this until its next request
    pictures: int = 0  # in the request
    unreadable: int = 0  # of these pictures
    refusal_reason: str = ""  # one word, if the request was refused because of load or time


async def answer_pictures(request: Request, name: str | None, timeout: float | None) -> Response:
    """The predictions for the pictures of a request, by the model of a name or the only one."""
    state: ServerState = request.app.state.server
    context: RequestContext = request.scope["clipadapter"]
    try:
        return await _answer(request, state, context, name, timeout)
    finally:  # not after the answer: a client may read it slowly
        state.buffered_bytes -= context.body_bytes


async def _answer(
    request: Request, state: ServerState, context: RequestContext, name: str | None, timeout: float | None
) -> Response:
    limits = state.models.limits
    seconds = min(timeout or math.inf, limits.deadline)
    deadline = context.started_at + seconds

    def find_model() -> ServedModel:
        model = state.models.get(name)
        context.model = model.name
        return model

    find_model().batcher.check_room()  # before the body is read
    with anyio.move_on_after(deadline - time.monotonic()) as reading:
        pictures = await read_pictures(request.headers, _count_chunks(request.stream(), state, context), limits)
        context.pictures = len(pictures.files)
    if reading.cancelled_caught:
        raise RequestRefused(408, f"the body did not come within {seconds:g} seconds", reason="deadline")
    model, names, top = find_model(), pictures.names, pictures.options.top  # another one may have replaced it
    options = pictures.options.model_dump(include={"reject", "coverage"}, exclude_unset=True)
    if options:  # those that the model does not support are refused before its pictures run
        model.predictor.answer(model.no_outputs, **options)
    loaders = [partial(load_picture, model.predictor, file, limits) for file in pictures.files]
    job = model.batcher.submit(loaders, options, deadline)  # not before: a slow body holds no slot of the queue
    del pictures, loaders  # the job drops each when its picture is loaded
    watching = asyncio.ensure_future(_refuse_if_disconnected(request, job))
    try:
        with anyio.move_on_after(deadline - time.monotonic()):
            await job.done.wait()
    finally:
        job.abandon()
        watching.cancel()
    if job.refusal is not None:
        raise job.refusal
    results = [result for result in job.results if result is not None]
    if len(results) < len(job.results):
        text = f"no answer within {seconds:g} seconds: send fewer pictures, or fewer requests at a time"
        raise RequestRefused(504, text, reason="deadline")
    context.unreadable = sum(isinstance(result, ImageError) for result in results)
    if len(results) * min(top, len(model.predictor.class_names)) <= MAX_INLINE_SCORES:
        return _response(model, results, names, top)
    return await asyncio.to_thread(_response, model, results, names, top)


async def _count_chunks(
    chunks: AsyncIterator[bytes], state: ServerState, context: RequestContext
) -> AsyncGenerator[bytes, None]:
    limits = state.models.limits
    async for chunk in chunks:
        context.body_bytes += len(chunk)
        state.buffered_bytes += len(chunk)
        if context.body_bytes > limits.max_bytes:
            raise _body_too_long(limits)
        is_small = context.body_bytes <= SMALL_BODY_BYTES
        if state.buffered_bytes > BUFFERED_BODIES * limits.max_bytes * (2 if is_small else 1):
            text = "too many large requests are under way: try again soon"
            raise RequestRefused(503, text, reason="memory", retry_after=1)
        yield chunk


async def _refuse_if_disconnected(request: Request, job: Job) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.refuse(ClientDisconnect())


def _response(model: ServedModel, results: Sequence[Result], sources: Sequence[str], top: int) -> Response:
    predictions = []
    for result, source in zip(results, sources, strict=True):
        if isinstance(result, ImageError):
            prediction = unreadable(source, result.reason)
        else:
            answers, row = result
            prediction = answers.prediction(row, source, model.predictor.class_names, top)
        predictions.append(prediction.record())
    content = {"model": model.name, "version": model.version, "predictions": predictions}
    return Response(to_json(content), media_type=JSON)


def _body_too_long(limits: Limits) -> RequestRefused:
    text = f"the body may have {limits.max_bytes} bytes: send fewer pictures at a time, or smaller ones"
    return RequestRefused(413, text)


# ---- Bodies ----


class PredictionOptions(BaseModel):
    """Options of a request; for those left out the model's own values hold."""

    model_config = ConfigDict(extra="forbid")
    # In JSON 5.0 is the same number as 5.
    top: Annotated[int, BeforeValidator(lambda x: int(x) if isinstance(x, float) and x.is_integer() else x)] = Field(
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


class JsonPredictionBody(PredictionOptions):
    """A request in JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)
    images: list[Annotated[str, Field(json_schema_extra={"pattern": "^[ -~]*$"})]] = Field(
        min_length=1, description="Files of pictures in base64; data: URLs will do.", repr=False
    )


@dataclass(frozen=True)
class Pictures:
    """What a body asks for."""

    options: PredictionOptions  # of the request
    names: list[str]  # of the pictures, as the answer repeats them
    # Of the pictures; texts are in base64. Not in the repr, here and in `images`: asyncio makes that of a task's result
    files: Sequence[bytes | str] = field(repr=False)


async def read_pictures(headers: Headers, chunks: AsyncGenerator[bytes, None], limits: Limits) -> Pictures:
    """What a body asks for."""
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestRefused(415, "the body is packed by a Content-Encoding: send it as it is")
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limits.max_bytes:
        raise _body_too_long(limits)
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == MULTIPART:
        return await _read_form(headers, chunks, limits)
    if media_type != JSON:
        text = f"the body is {media_type[:100] or 'of no type'}, but must be {MULTIPART} with files, or {JSON}"
        raise RequestRefused(415, text)
    body = bytearray()
    async for chunk in chunks:
        body += chunk
    if len(body) <= MAX_INLINE_BYTES:
        return parse_json(body, limits)
    return await run_in_threadpool(parse_json, body, limits)


class _FormParser(MultiPartParser):
    """Starlette's, which keeps files in memory and notices a form that breaks off."""

    spool_max_size = 0  # none is written to disk
    has_ended = False

    def on_end(self) -> None:
        self.has_ended = True


async def _read_form(headers: Headers, chunks: AsyncGenerator[bytes, None], limits: Limits) -> Pictures:
    async def until_the_end() -> AsyncGenerator[bytes, None]:
        async for chunk in chunks:
            yield chunk
        if not parser.has_ended:
            raise MultiPartException("it breaks off")

    parser = _FormParser(
        headers, until_the_end(), max_files=limits.max_pictures, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
    )
    try:
        items = (await parser.parse()).multi_items()
    except (MultiPartException, FormParserError) as error:  # the second is that of older versions of Starlette
        reason = str(getattr(error, "message", error)).rstrip(".")
        if reason.startswith("Too many files"):
            raise RequestRefused(413, f"{_at_most(limits)} send them in several requests") from error
        raise RequestRefused(400, f"the body is no multipart form ({reason}): {CURL_HINT}") from error
    fields = {name: value for name, value in items if isinstance(value, str)}
    uploads = [value for _, value in items if isinstance(value, UploadFile)]
    files = []
    for upload in uploads:
        with upload.file as file:
            files.append(file.read())
    if text := fields.get("images"):
        raise RequestRefused(422, f"images came as the text {text[:100]!r}: to send a file say -F images=@photo.jpg")
    with _refuse_invalid_values(PredictionOptions):
        options = PredictionOptions.model_validate(fields)
    if not files:
        raise RequestRefused(422, "the form has no file: send one or more, as curl does with -F images=@photo.jpg")
    names = [upload.filename or "" for upload in uploads]
    names = [name if len(name) <= MAX_SOURCE_CHARS else f"{name[: MAX_SOURCE_CHARS - 3]}..." for name in names]
    return Pictures(options, names, files)


def parse_json(body: bytes | bytearray, limits: Limits) -> Pictures:
    """Parse a JSON body."""
    allowed = 2 * limits.max_pictures + MAX_OTHER_VALUES  # a data: URL has a comma
    if sum(map(body.count, (b",", b"[", b"{"))) > allowed:
        raise RequestRefused(
            413,
            f"the JSON has more than {allowed} values: send {limits.max_pictures} pictures at most at a time, as texts "
            "in base64, and nothing but the fields of this address",
        )
    # One wide character makes four bytes of each character of a text. An escape may stand for one: \u0041 is narrow.
    if not body.isascii() or body.count(b"\\u") > body.count(b"\\u00"):
        raise RequestRefused(422, "the JSON has characters beyond ASCII: send pictures as texts in base64")
    with _refuse_invalid_values(JsonPredictionBody):
        parsed = JsonPredictionBody.model_validate_json(body)
    if len(parsed.images) > limits.max_pictures:
        raise RequestRefused(413, f"{_at_most(limits)} {len(parsed.images)} came: send them in several requests")
    names = [f"image {i}" for i in range(len(parsed.images))]
    return Pictures(parsed, names, parsed.images)


def load_picture(predictor: Predictor, file: bytes | str, limits: Limits) -> Square | Loader:
    """Decode a picture into a square; a loader that does so if that is slow."""
    try:
        data = _decode(file) if isinstance(file, str) else file
    except ValueError as error:
        raise ImageError("picture", "no base64 of a picture's file; paths and addresses are not opened") from error
    kind = image_format(data)
    if limits.formats is not None and kind and kind not in limits.formats:
        accepted = ", ".join(limits.formats)
        raise RequestRefused(415, f"a picture is {kind}, but this server accepts {accepted}: convert it to one of them")
    loader = partial(
        predictor.preprocess, "picture", data=data, max_pixels=limits.max_pixels, max_seconds=MAX_SLOW_SECONDS
    )
    return loader if is_slow_file(data, limits.max_pixels) else loader()


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


def _decode(text: str) -> bytes:
    """The bytes of a text in base64, with or without ``data:...;base64,`` before it."""
    prefix = DATA_URL.match(text)
    text = text[prefix.end() :] if prefix else text
    if sys.version_info >= (3, 11):
        return binascii.a2b_base64(text, strict_mode=True)  # makes no copy of the text
    return base64.b64decode(text, validate=True)


@contextmanager
def _refuse_invalid_values(schema: type[BaseModel]) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))[:100] or "the body"
        known = ", ".join(schema.model_fields)
        came = "" if first["type"] in ("missing", "json_invalid") else f" (it is {str(first['input'])[:40]!r})"
        raise RequestRefused(422, f"{where}: {first['msg']}{came}; the fields are: {known}") from error


def _at_most(limits: Limits) -> str:
    return f"a request may bring {limits.max_pictures} pictures at most;"
