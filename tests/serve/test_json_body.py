"""JSON bodies are checked before they are parsed; the memory that bodies of all kinds take."""

import base64
import gc
import json
import random
import time
import tracemalloc

import pytest

from clipadapter.serve import Limits, ServedModels, json_body
from clipadapter.serve.json_body import decode_base64, read_outline
from clipadapter.serve.limits import RequestRefused
from clipadapter.serve.v1 import _parse_body

from .bombs import bombs
from .colours import Colours
from .test_prediction_request import ask

MIB = 1 << 20
OVERHEAD_BYTES = MIB
"""Bytes that a request may cost whatever its size."""


@pytest.fixture
def model(files):
    models = ServedModels([str(files / "colours.onnx")], opener=lambda path: Colours())
    yield models.get()
    models.close()


def load_body(bomb, model):
    """Parse a body as the server does, and make squares of its pictures."""
    try:
        _, _, loaders = _parse_body(bomb.content_type, bomb.body, model, Limits())
    except RequestRefused:
        return
    while loaders:
        try:
            loaders.pop()()
        except Exception as error:
            assert type(error).__name__ == "ImageError", error


BOMBS = {bomb.name: bomb for bomb in bombs(2 * MIB)}


@pytest.mark.parametrize("name", BOMBS)
def test_a_body_costs_at_most_three_times_its_size(model, name):
    bomb = BOMBS[name]
    tracemalloc.start()
    try:
        load_body(bomb, model)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 2 * len(bomb.body) + OVERHEAD_BYTES  # once more it is there itself


@pytest.fixture
def no_garbage_collection():
    """A collection of all objects of the test session can take longer than what a test measures."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("name", ["ints", "dicts", "keys", "form-crlf"])
def test_the_event_loop_does_not_parse_long_bodies(serve, monkeypatch, no_garbage_collection, name):
    """Measured in processor time of the loop's thread, which does not depend on what else the machine does."""
    import asyncio

    client, bomb, times, run = serve(), BOMBS[name], [], asyncio.Handle._run

    def timed(handle):
        began = time.thread_time()
        run(handle)
        times.append(time.thread_time() - began)

    monkeypatch.setattr(asyncio.Handle, "_run", timed)
    headers = [(b"content-type", bomb.content_type.encode())]
    chunks = [bomb.body[at : at + (64 << 10)] for at in range(0, len(bomb.body), 64 << 10)]
    status, _, _ = ask(client.app, chunks, headers, path=bomb.path)
    assert status is not None and status < 500
    assert max(times) < 0.1


def test_an_outline_has_short_texts_and_names_long_ones():
    long = "A" * 5000
    outline = read_outline(json.dumps({"images": [long, "short"], long: 1}).encode(), 64)
    parsed = json.loads(outline.text)
    first, second = parsed["images"]
    assert second == "short" and bytes(outline.texts[first]).decode() == long
    assert len(outline.text) < 300 and len(outline.texts) == 2


@pytest.mark.parametrize("text", ['a"b', "a\\", '\\"', "\\\\", '"', "ü😀", "\u2028"])
def test_texts_end_where_they_end_in_json(text):
    for filler in ("", "x" * 3000):
        body = json.dumps({"a": [text + filler, 1], "b": filler + text}).encode()
        outline = read_outline(body, 64)
        raw = {name: json.loads(b'"' + bytes(view) + b'"') for name, view in outline.texts.items()}
        parsed = json.loads(outline.text)
        assert raw.get(parsed["a"][0], parsed["a"][0]) == text + filler
        assert raw.get(parsed["b"], parsed["b"]) == filler + text


def test_placeholders_can_not_be_guessed():
    long = "A" * 5000
    names = {next(iter(read_outline(json.dumps([long]).encode(), 64).texts)) for _ in range(20)}
    assert len(names) == 20


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"[" * 257, 400, "256 lists"),
        (b"[" + b"{}," * 300 + b"1]", 400, "256 lists"),
        (b"[" + b'"",' * 400 + b'""]', 413, "320 texts"),
        (b"[" + b"1," * 9000 + b"1]", 400, "16384 bytes"),
        (b" " * 20000 + b"[]", 400, "16384 bytes"),
        (b'["' + b'\\"' * 2000 + b'"]', 400, "1000 quotation marks"),
    ],
)
def test_the_outline_has_limits(body, status, words):
    with pytest.raises(RequestRefused, match=words) as refusal:
        read_outline(body, 64)
    assert refusal.value.status == status


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, 49152, 49153, 200_000])
def test_long_base64_is_decoded_as_by_the_standard_library(size):
    data = random.Random(size).randbytes(size)
    text = base64.b64encode(data).decode()
    escaped = text.replace("/", "\\/").replace("+", "\\u002b").replace("=", "\\u003D")
    assert decode_base64(text) == data
    assert decode_base64(memoryview(text.encode())) == data
    assert decode_base64(memoryview(escaped.encode())) == data


@pytest.mark.parametrize(
    "text",
    [
        b"AAA", b"AA=A", b"AA==AAAA", b"A" * json_body.BLOCK_BYTES + b"A",
        b"A" * (json_body.BLOCK_BYTES - 1) + b"=AAAA",
        b"AAA\\n", b"AAA\\", b"AAA\\u00", b"AA\\u00e9A", "AAA😀".encode(), b"AAA\\ud83d", b"=", b"AAA ",
    ],
)  # fmt: skip
def test_invalid_base64_is_refused(text):
    with pytest.raises(ValueError):
        decode_base64(memoryview(text))
