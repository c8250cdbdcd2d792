"""The configuration of uvicorn; test_process.py has signals and shutdown."""

import asyncio

import pytest
from uvicorn.server import ServerState

from clipadapter.errors import InputError
from clipadapter.serve import create_app, server
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
