"""The configuration of uvicorn, and limits of a connection; test_process.py has signals and shutdown."""

import asyncio
import socket

import h11
import pytest
import uvicorn
from uvicorn.server import ServerState

from clipadapter.errors import InputError
from clipadapter.serve import Limits, create_app, server
from clipadapter.serve.server import MAX_HEAD_BYTES, LimitedProtocol

from .colours import Colours, OpenedModels


@pytest.fixture
def configured(monkeypatch, files):
    """The configuration that `run` gives uvicorn, and the app."""
    configs = []
    monkeypatch.setattr(server.Server, "run", lambda self, sockets: configs.append(self.config))

    def start(host="127.0.0.1", **options):
        models = OpenedModels([str(files / "colours.onnx")], model=Colours())
        app = create_app(models)
        server.run(app, host, 0, **options)
        models.close()
        return configs[-1], app.state.server

    return start


def test_the_parser_is_chosen_by_name(configured):
    """Uvicorn takes httptools where it is installed, which has no limit on headers."""
    config, _ = configured()
    protocol = config.http(config, ServerState(), {}, _loop=asyncio.new_event_loop())
    protocol.loop.close()
    assert isinstance(protocol, LimitedProtocol) and protocol.conn._max_incomplete_event_size == MAX_HEAD_BYTES


@pytest.mark.parametrize(
    ("host", "allowed", "hosts"),
    [
        ("127.0.0.1", (), frozenset()),
        ("::1", (), frozenset()),
        ("127.0.0.1", ("Pets.example.org:8000",), frozenset({"pets.example.org"})),
        ("127.0.0.1", ("*",), None),
        ("0.0.0.0", (), None),
        ("0.0.0.0", ("a.org", "b.org"), frozenset({"a.org", "b.org"})),
    ],
)
def test_host_is_checked_where_only_this_machine_connects(configured, host, allowed, hosts):
    try:
        _, state = configured(host, allowed_hosts=allowed)
    except InputError:
        pytest.skip(f"{host} can't be had here")
    assert state.allowed_hosts == hosts


TIMEOUT_SECONDS = 30
"""Seconds after which a test gives up."""
GET_REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


async def answer(scope, receive, send):
    """Reads the body, and says how long it was."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    text = str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text})


async def refuse(scope, receive, send):
    """Does not read the body."""
    await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


class Server:
    """Connections to an app, without a network."""

    def __init__(self, app=answer, **limits):
        self.config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, access_log=False)
        self.config.load()
        self.state, self.limits, self.writers = ServerState(), Limits(**limits), []

    async def connect(self):
        """Reader and writer of a new connection."""
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        _, self.last = await loop.connect_accepted_socket(
            lambda: LimitedProtocol(self.config, self.state, {}, limits=self.limits), theirs
        )
        reader, writer = await asyncio.open_connection(sock=ours)
        self.writers.append(writer)
        return reader, writer

    def run(self, work):
        """What a coroutine gives that has this for an argument."""

        async def run_and_close():
            try:
                return await asyncio.wait_for(work(self), TIMEOUT_SECONDS)
            finally:
                for writer in self.writers:
                    writer.close()
                for connection in list(self.state.connections):
                    connection.transport.abort()
                await asyncio.sleep(0)

        return asyncio.run(run_and_close())


async def until_closed(reader):
    """All that comes before the connection ends, however it does."""
    data = bytearray()
    try:
        while piece := await reader.read(65536):
            data += piece
    except ConnectionError:
        pass
    return bytes(data)


async def send_repeatedly(writer, piece):
    try:
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.001)
    except ConnectionError:
        pass


def send_until_closed(piece, first=b""):
    """Sends until the other side closes; gives what it said."""

    async def work(server):
        reader, writer = await server.connect()
        writer.write(first)
        sending = asyncio.ensure_future(send_repeatedly(writer, piece))
        try:
            return await until_closed(reader)
        finally:
            sending.cancel()

    return work


def test_a_connection_that_is_silent_or_whose_head_never_ends_is_closed():
    assert Server(header_timeout=0.05).run(send_until_closed(b"")) == b""
    assert Server(header_timeout=0.1).run(send_until_closed(b"X", b"GET / HTTP/1.1\r\nHost: x\r\nX: ")) == b""


def test_the_second_head_of_a_connection_must_arrive_in_time_too():
    async def work(server):
        reader, writer = await server.connect()
        writer.write(GET_REQUEST)
        first = await reader.readuntil(b"\r\n\r\n0")
        writer.write(b"GET / HT")
        return first, await until_closed(reader)

    first, rest = Server(header_timeout=0.1).run(work)
    assert first.startswith(b"HTTP/1.1 200") and rest == b""


def test_a_client_that_stops_sending_a_refused_body_is_disconnected_after_it_could_read_the_answer(monkeypatch):
    monkeypatch.setattr("clipadapter.serve.server.LINGER_SECONDS", 0.2)

    async def work(server):
        reader, writer = await server.connect()
        writer.write(CHUNKED)
        head = await reader.readuntil(b"\r\n\r\n")
        assert not server.last.transport.is_closing()
        return head + await until_closed(reader)

    assert Server(refuse).run(work).startswith(b"HTTP/1.1 413")


def test_an_idle_connection_outlasts_the_header_timeout():
    async def work(server):
        reader, writer = await server.connect()
        for _ in range(2):
            writer.write(GET_REQUEST)
            await reader.readuntil(b"\r\n\r\n0")
            assert server.last._timer is None
        return "kept"

    assert Server(header_timeout=0.1).run(work) == "kept"


@pytest.mark.parametrize("size", [2 * MAX_HEAD_BYTES, 1 << 20])
def test_a_long_head_is_refused(size):
    async def work(server):
        reader, writer = await server.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * size + b"\r\n\r\n")
        return await until_closed(reader)

    assert Server().run(work).startswith(b"HTTP/1.1 400")


def test_tiny_chunks_are_refused_and_larger_ones_are_not():
    async def work(server, chunk, count):
        reader, writer = await server.connect()
        writer.write(CHUNKED + b"%x\r\n%s\r\n" % (len(chunk), chunk) * count + b"0\r\n\r\n")
        if chunk == b"a" and count > 1000:
            return await until_closed(reader)
        return await reader.readuntil(str(len(chunk) * count).encode())

    assert Server().run(lambda one: work(one, b"a", 1002)).startswith(b"HTTP/1.1 400")
    assert Server().run(lambda one: work(one, b"a", 900)).startswith(b"HTTP/1.1 200")
    assert Server().run(lambda one: work(one, b"a" * 300, 1500)).startswith(b"HTTP/1.1 200")


def test_a_refused_body_that_does_not_end_closes_the_connection(monkeypatch):
    monkeypatch.setattr(server, "LINGER_SECONDS", 0.05)
    assert Server(refuse).run(send_until_closed(b"1\r\na\r\n" * 10, CHUNKED)).startswith(b"HTTP/1.1 413")


def test_for_a_new_connection_the_longest_idle_is_closed():
    async def work(server):
        oldest, _ = await server.connect()
        _, busy = await server.connect()
        busy.write(CHUNKED)
        newer, writer = await server.connect()
        await until_closed(oldest)
        writer.write(GET_REQUEST)
        return await newer.readuntil(b"\r\n\r\n0")

    assert Server(max_connections=2).run(work).startswith(b"HTTP/1.1 200")


def test_for_a_new_connection_the_longest_arriving_body_is_cut_off_if_none_is_idle():
    async def work(server):
        slow, first = await server.connect()
        first.write(CHUNKED)
        other, second = await server.connect()
        second.write(CHUNKED + b"1\r\na\r\n")
        while not all(one.conn.their_state is h11.SEND_BODY for one in server.state.connections):
            await asyncio.sleep(0)
        newer, writer = await server.connect()
        await until_closed(slow)
        writer.write(GET_REQUEST)
        second.write(b"0\r\n\r\n")
        return await newer.readuntil(b"\r\n\r\n0") + await other.readuntil(b"\r\n\r\n1")

    assert Server(max_connections=2).run(work).count(b"HTTP/1.1 200") == 2
