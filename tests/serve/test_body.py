"""Bodies of requests: what they bring, what is refused, and the memory that they take."""

import asyncio
import base64
import gc
import random
import time
import tracemalloc

import pytest
from starlette.datastructures import Headers

from clipadapter.errors import ImageError
from clipadapter.serve import Limits
from clipadapter.serve.limits import RequestRefused
from clipadapter.serve.prediction_request import _decode, load_picture, parse_json, read_pictures

from .bombs import FORM_TYPE, bombs
from .colours import Colours, OpenedModels
from .test_prediction_request import ask

MIB = 1 << 20
OVERHEAD_BYTES = MIB
"""Bytes that a request may cost whatever its size."""


@pytest.fixture
def model(files):
    models = OpenedModels([str(files / "colours.onnx")], model=Colours())
    yield models.get()
    models.close()


def read(content_type, body, piece=16 << 10):
    """Read a body that comes in pieces."""

    async def pieces():
        for start in range(0, len(body), piece):
            yield body[start : start + piece]

    return asyncio.run(read_pictures(Headers({"content-type": content_type}), pieces(), Limits()))


def load_body(bomb, model):
    """Read a body as the server does, and make squares of its pictures."""
    try:
        files = read(bomb.content_type, bomb.body).files
    except RequestRefused:
        return
    while files:
        try:
            load_picture(model.predictor, files.pop(), Limits())
        except Exception as error:
            assert type(error).__name__ == "ImageError", error


BOMBS = {bomb.name: bomb for bomb in bombs(2 * MIB)}


@pytest.mark.parametrize("name", BOMBS)
def test_a_body_costs_at_most_three_times_its_size_besides_itself(model, name):
    bomb = BOMBS[name]
    load_body(bomb, model)  # the first one imports modules, which may have to be compiled
    tracemalloc.start()
    try:
        load_body(bomb, model)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 3 * len(bomb.body) + OVERHEAD_BYTES


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


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"[" * 400, 413, "384 values"),
        (b'{"images":[' + b'"",' * 400 + b'""]}', 413, "384 values"),
        (b'{"images":["' + b"\\ud83d\\ude00" + b'"]}', 422, "beyond ASCII"),
        ('{"images":["ü"]}'.encode(), 422, "beyond ASCII"),
        (b'{"images":["AAAA"],"top":' + b"9" * 9000 + b"}", 422, "out of range"),
        (b'{"images":["AAAA"', 422, "the body: Invalid JSON"),
    ],
)
def test_a_json_body_has_limits(body, status, words):
    with pytest.raises(RequestRefused, match=words) as refusal:
        parse_json(body, Limits())
    assert refusal.value.status == status


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "data:image/svg+xml;base64,"])
def test_base64_may_have_the_escapes_of_json_and_the_start_of_a_data_url(prefix):
    data = bytes(range(256))
    text = prefix + base64.b64encode(data).decode()
    escaped = text.replace("/", "\\/").replace("+", "\\u002b").replace("=", "\\u003D")
    pictures = parse_json(f'{{"images": ["{text}", "{escaped}"], "top": 3.0}}'.encode(), Limits())
    assert [_decode(file) for file in pictures.files] == [data, data]
    assert (pictures.names, pictures.options.top) == (["image 0", "image 1"], 3)


@pytest.mark.parametrize("text", ["AAA", "AA=A", "AA==AAAA", "AAA\\n", "AA\\u00e9A", "=", "AAA "])
def test_invalid_base64_is_the_fault_of_its_picture(model, text):
    (file,) = parse_json(f'{{"images": ["{text}"]}}'.encode(), Limits()).files
    with pytest.raises(ImageError, match="paths and addresses are not opened"):
        load_picture(model.predictor, file, Limits())


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_files_of_a_form_have_the_sent_content(piece):
    """Contents that look like the boundary, cut anywhere."""
    rng = random.Random(piece)
    for _ in range(20):
        contents = [
            b"".join(rng.choices([b"\r", b"\n", b"-", b"--", b"\r\n--", b"\r\n--x", b"x", b"\0", b"abc"], k=size))
            for size in rng.choices([0, 1, 2, 5, 40], k=3)
        ]
        boundary = b"xyz" + b"q" * rng.choice([0, 20])
        head = b'--%s\r\nContent-Disposition: form-data; name="images"; filename="%d"\r\n\r\n'
        body = b"".join(head % (boundary, i) + data + b"\r\n" for i, data in enumerate(contents))
        pictures = read(FORM_TYPE + boundary.decode(), body + b"--" + boundary + b"--\r\n", piece)
        assert (pictures.names, pictures.files) == (["0", "1", "2"], contents)
