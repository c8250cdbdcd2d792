"""A body is counted while it comes in, refused before it fills the memory, and read as it was sent."""

import asyncio
import base64
import gc
import json
import time
import tracemalloc

import pytest
from starlette.datastructures import Headers

from clipadapter.errors import ImageError, InputError
from clipadapter.serve import Limits
from clipadapter.serve.limits import RequestRefused
from clipadapter.serve.prediction_request import _decode, load_picture, parse_json, read_pictures

from .bombs import FORM_TYPE, bombs
from .colours import RED, ask, base64_of, refused

JSON = [(b"content-type", b"application/json")]


def send(
    app, chunks, headers=(), path="/v1/predict", ends=True, on_receive=lambda: None, on_send=lambda: None, gone=None
):
    """Send a body by ASGI messages; gives the status, the answer, and how many chunks were read."""
    sent, taken = [], []

    async def receive():
        on_receive()
        if len(taken) < len(chunks):
            taken.append(chunks[len(taken)])
            more = len(taken) < len(chunks) or not ends
            return {"type": "http.request", "body": taken[-1], "more_body": more}
        if chunks:
            await (asyncio.to_thread(gone.wait, 20) if gone else asyncio.sleep(60))
        return {"type": "http.disconnect"}

    async def note(message):
        on_send()
        sent.append(message)

    headers = [*headers] if b"content-type" in dict(headers) else [*JSON, *headers]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    asyncio.run(app(scope, receive, note))
    body = b"".join(message.get("body", b"") for message in sent)
    return (sent[0]["status"] if sent else None), json.loads(body or b"null"), len(taken)


BODY = json.dumps({"images": [base64_of(RED)]}).encode()


@pytest.mark.parametrize(
    "wrong",
    [{"queue": 0}, {"deadline": 0}, {"header_timeout": -1}, {"max_pictures": 300}, {"deadline": float("nan")}]
    + [{"formats": ()}, {"formats": ("jpg",)}],
)
def test_invalid_limits_are_refused(wrong):
    with pytest.raises(InputError):
        Limits(**wrong)


@pytest.mark.parametrize(("length", "read"), [(b"1001", 0), (b"10", 4), (None, 4)])
def test_a_long_body_is_refused_before_it_is_read_or_when_its_bytes_are_too_many(serve, length, read):
    headers = [] if length is None else [(b"content-length", length)]
    status, answer, taken = send(serve(Limits(max_bytes=1000)).app, [b"x" * 300] * 50, headers)
    assert (status, taken) == (413, read) and "1000 bytes" in answer["error"]


@pytest.mark.parametrize("length", [b"x", b"-1", b"9" * 5000, b""])
def test_invalid_lengths_cause_no_server_error(client, length):
    status, _, _ = send(client.app, [BODY], [(b"content-length", length)])
    assert status in (200, 413)


def test_bodies_of_all_requests_have_a_limit_together(serve):
    client = serve()
    state = client.app.state.server
    state.buffered_bytes = 8 * state.models.limits.max_bytes
    large = BODY + b" " * (2 << 20)
    response = client.post("/v1/predict", content=large, headers={"content-type": "application/json"})
    assert refused(response, 503, "try again") and response.headers["retry-after"] == "1"
    assert ask(client, RED).status_code == 200  # a small one has room
    state.buffered_bytes = 16 * state.models.limits.max_bytes
    assert refused(ask(client, RED), 503, "try again")
    state.buffered_bytes = 0
    assert ask(client, RED).status_code == 200
    assert state.buffered_bytes == 0  # given back


def test_a_body_must_arrive_by_the_deadline(serve):
    status, answer, _ = send(serve(Limits(deadline=0.1)).app, [b"{"], ends=False)
    assert status == 408 and "0.1 seconds" in answer["error"]


def test_a_body_that_is_being_received_takes_no_slot(client):
    waiting, batcher = [], client.app.state.server.models.get().batcher
    chunks = [BODY[:20], BODY[20:40], BODY[40:]]
    assert send(client.app, chunks, on_receive=lambda: waiting.append(batcher.pending))[0] == 200
    assert waiting[:3] == [0, 0, 0]


def test_an_unread_answer_does_not_count_its_body_as_buffered(client):
    held, state = [], client.app.state.server
    assert send(client.app, [BODY], on_send=lambda: held.append(state.buffered_bytes))[0] == 200
    assert set(held) == {0}


def test_compressed_bodies_are_refused(client):
    status, answer, taken = send(client.app, [BODY], [(b"content-encoding", b"gzip")])
    assert (status, taken) == (415, 0) and "Content-Encoding" in answer["error"]


def test_a_client_that_disconnects_while_it_sends_gets_no_answer(serve):
    client = serve()
    assert send(client.app, [])[0] is None
    assert 'status="499"} 1.0' in client.get("/metrics").text


MIB = 1 << 20
OVERHEAD_BYTES = MIB
"""Bytes that a request may cost whatever its size."""


def read(content_type, body, piece=16 << 10):
    """Read a body that comes in pieces."""

    async def pieces():
        for start in range(0, len(body), piece):
            yield body[start : start + piece]

    return asyncio.run(read_pictures(Headers({"content-type": content_type}), pieces(), Limits()))


def load_body(bomb, predictor):
    """Read a body as the server does, and make squares of its pictures."""
    try:
        files = read(bomb.content_type, bomb.body).files
    except RequestRefused:
        return
    while files:
        try:
            load_picture(predictor, files.pop(), Limits())
        except Exception as error:
            assert type(error).__name__ == "ImageError", error


BOMBS = {bomb.name: bomb for bomb in bombs(2 * MIB)}


@pytest.mark.parametrize("name", BOMBS)
def test_a_body_costs_at_most_three_times_its_size_besides_itself(colours, name):
    bomb = BOMBS[name]
    load_body(bomb, colours)  # the first one imports modules, which may have to be compiled
    tracemalloc.start()
    try:
        load_body(bomb, colours)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 3 * len(bomb.body) + OVERHEAD_BYTES


@pytest.mark.parametrize("name", ["ints", "dicts", "keys", "form-crlf"])
def test_the_event_loop_does_not_parse_long_bodies(client, monkeypatch, name):
    """Measured in processor time of the loop's thread, which does not depend on what else the machine does."""
    bomb, times, run = BOMBS[name], [], asyncio.Handle._run

    def timed(handle):
        began = time.thread_time()
        run(handle)
        times.append(time.thread_time() - began)

    monkeypatch.setattr(asyncio.Handle, "_run", timed)
    headers = [(b"content-type", bomb.content_type.encode())]
    chunks = [bomb.body[at : at + (64 << 10)] for at in range(0, len(bomb.body), 64 << 10)]
    gc.collect()
    gc.disable()  # a collection of all objects of the test session can take longer than what is measured
    try:
        status, _, _ = send(client.app, chunks, headers, bomb.path)
    finally:
        gc.enable()
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
def test_invalid_base64_is_the_fault_of_its_picture(colours, text):
    (file,) = parse_json(f'{{"images": ["{text}"]}}'.encode(), Limits()).files
    with pytest.raises(ImageError, match="paths and addresses are not opened"):
        load_picture(colours, file, Limits())


@pytest.mark.parametrize("piece", [1, 1000])
def test_files_of_a_form_have_the_sent_content(piece):
    """Contents that look like the boundary, in pieces."""
    contents = [b"", b"\r\n--x", b"--xyz\r\n-\0abc"]
    head = b'--xyz\r\nContent-Disposition: form-data; name="images"; filename="%d"\r\n\r\n'
    body = b"".join(head % i + data + b"\r\n" for i, data in enumerate(contents)) + b"--xyz--\r\n"
    pictures = read(f"{FORM_TYPE}xyz", body, piece)
    assert (pictures.names, pictures.files) == (["0", "1", "2"], contents)
