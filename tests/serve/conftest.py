"""Apps and their clients."""

import pytest
from starlette.testclient import TestClient

from clipadapter.serve import create_app

from .colours import Colours, OpenedModels, write_file


@pytest.fixture(autouse=True, scope="module")
def no_watching():
    """Files are checked for changes only where a test does so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipadapter.serve.models.REFRESH_SECONDS", 60)
        yield


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


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A client of an app with the usual limits, for tests that only send requests."""
    file = write_file(tmp_path_factory.mktemp("files") / "colours.onnx")
    with TestClient(create_app(OpenedModels([str(file)], model=Colours()))) as started:
        yield started


@pytest.fixture
def serve(files, colours):
    """A function that gives a client of an app; its model is `colours`; with ``model=None`` it opens the file."""
    clients = []

    def start(limits=None, token=None, model=colours, specs=None, **options):
        models = options.pop("models", None) or OpenedModels(specs or [str(files / "colours.onnx")], limits, model)
        client = TestClient(create_app(models, token), **options)
        client.__enter__()
        clients.append(client)
        return client

    yield start
    colours.go.set()
    for client in clients:
        client.__exit__(None, None, None)
