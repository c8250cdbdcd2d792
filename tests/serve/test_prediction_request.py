"""A body is counted while it comes in, and refused before it fills the memory."""

import asyncio
import json

import pytest

from clipadapter.errors import InputError
from clipadapter.serve import Limits

from .colours import RED, base64_of, refused

JSON = [(b"content-type", b"application/json")]


def ask(app, chunks, headers=(), wait=0.0, path="/v1/predict"):
    """Send a body by ASGI messages; gives the status, the answer, and how many chunks were read."""
    sent, taken = [], []

    async def receive():
        if len(taken) < len(chunks):
            taken.append(chunks[len(taken)])
            return {"type": "http.request", "body": taken[-1], "more_body": len(taken) < len(chunks)}
        await asyncio.sleep(wait or 60)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [*headers] if b"content-type" in dict(headers) else [*JSON, *headers],
        "app": app,
        "http_version": "1.1",
        "scheme": "http",
        "server": ("test", 80),
    }
    asyncio.run(app(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    return (sent[0]["status"] if sent else None), json.loads(body or b"null"), len(taken)


BODY = json.dumps({"images": [base64_of(RED)]}).encode()


@pytest.mark.parametrize(
    "wrong",
    [{"queue": 0}, {"deadline": 0}, {"max_wait": -1}, {"max_pictures": 300}, {"deadline": float("nan")}]
    + [{"formats": ()}, {"formats": ("jpg",)}],
)
def test_invalid_limits_are_refused(wrong):
    with pytest.raises(InputError):
        Limits(**wrong)


def test_a_length_above_the_limit_is_refused_before_a_byte_is_read(serve):
    client = serve(Limits(max_bytes=1000))
    status, answer, taken = ask(client.app, [b"x" * 10], [(b"content-length", b"1001")])
    assert (status, taken) == (413, 0) and "1000 bytes" in answer["error"]


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"10")]])
def test_a_body_without_a_length_or_with_a_wrong_one_is_counted(serve, headers):
    status, _, taken = ask(serve(Limits(max_bytes=1000)).app, [b"x" * 300] * 50, headers)
    assert (status, taken) == (413, 4)


@pytest.mark.parametrize("length", [b"x", b"-1", b"9" * 5000, b""])
def test_invalid_lengths_cause_no_server_error(serve, length):
    status, _, _ = ask(serve().app, [BODY], [(b"content-length", length)])
    assert status in (200, 413)


def test_bodies_of_all_requests_have_a_limit_together(serve):
    client = serve()
    state = client.app.state.server
    state.buffered_bytes = state.limits.max_buffered_bytes
    large = BODY + b" " * (2 << 20)
    response = client.post("/v1/predict", content=large, headers={"content-type": "application/json"})
    assert refused(response, 503, "try again") and response.headers["retry-after"] == "1"
    assert client.post("/v1/predict", json={"images": [base64_of(RED)]}).status_code == 200  # a small one has room
    state.buffered_bytes = 2 * state.limits.max_buffered_bytes
    assert refused(client.post("/v1/predict", json={"images": [base64_of(RED)]}), 503, "try again")
    state.buffered_bytes = 0
    assert client.post("/v1/predict", json={"images": [base64_of(RED)]}).status_code == 200
    assert state.buffered_bytes == 0  # given back


def test_a_body_must_arrive_by_the_deadline(serve):
    status, answer, _ = ask(_unending(serve(Limits(deadline=0.1)).app), [b"{"])
    assert status == 408 and "0.1 seconds" in answer["error"]


def test_a_body_that_is_being_received_takes_no_slot(serve):
    client = serve()
    waiting = []

    async def watched(scope, receive, send):
        async def look():
            waiting.append(client.app.state.server.models.get().batcher.pending)
            return await receive()

        await client.app(scope, look, send)

    status, _, _ = ask(watched, [BODY[:20], BODY[20:40], BODY[40:]])
    assert status == 200 and waiting[:3] == [0, 0, 0]


def test_an_unread_answer_does_not_count_its_body_as_buffered(serve):
    client = serve()
    held = []

    async def watched(scope, receive, send):
        async def slow(message):
            held.append(client.app.state.server.buffered_bytes)
            await send(message)

        await client.app(scope, receive, slow)

    assert ask(watched, [BODY])[0] == 200
    assert set(held) == {0}


def _unending(app):
    """The app, with bodies that never end."""

    async def wrapped(scope, receive, send):
        async def more():
            return {**await receive(), "more_body": True}

        await app(scope, more, send)

    return wrapped


def test_compressed_bodies_are_refused(serve):
    status, answer, taken = ask(serve().app, [BODY], [(b"content-encoding", b"gzip")])
    assert (status, taken) == (415, 0) and "Content-Encoding" in answer["error"]


def test_a_client_that_disconnects_while_it_sends_gets_no_answer(serve):
    client = serve()

    async def leaving(scope, receive, send):
        async def gone():
            return {"type": "http.disconnect"}

        await client.app(scope, gone, send)

    assert ask(leaving, [])[0] is None
    assert 'status="499"} 1.0' in client.get("/metrics").text
