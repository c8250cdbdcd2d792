"""Apps and their clients."""

import pytest
from starlette.testclient import TestClient

from clipadapter.serve import Limits, ServedModels, create_app

from .colours import Colours, write_file


@pytest.fixture
def files(tmp_path):
    """A folder with an exported file, ``colours.onnx``."""
    folder = tmp_path / "files"
    folder.mkdir()
    write_file(folder / "colours.onnx")
    return folder


@pytest.fixture
def colours():
    return Colours()


@pytest.fixture
def serve(files, colours):
    """A function that gives a client of an app; its model is `colours`; with ``model=None`` it opens the file."""
    clients = []

    def start(limits=None, token=None, model=colours, specs=None, **options):
        opener = (lambda path: model) if model is not None else None
        isolated = options.pop("isolated", lambda path: None)
        specs = specs or [str(files / "colours.onnx")]
        models = ServedModels(specs, limits or Limits(), opener=opener, isolated=isolated)
        client = TestClient(create_app(models, token, refresh_seconds=options.pop("refresh_seconds", 60)), **options)
        client.__enter__()
        clients.append(client)
        return client

    yield start
    colours.go.set()
    for client in clients:
        client.__exit__(None, None, None)
