"""Models by name, exchanged while they answer."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clipadapter.errors import ArtifactError, InputError, MissingExtraError
from clipadapter.runtime._checksum import append_checksum
from clipadapter.runtime.isolated import IsolatedOpener
from clipadapter.serve import Limits, Models
from clipadapter.serve.model_sources import read_sources

from .colours import RED, Colours, base64_of, refused, write_file
from .test_batching import until

OTHER = ("cherry", "leaf", "sky")
ASK = {"images": [base64_of(RED)]}


def look(client, times=2):
    for _ in range(times):
        client.app.state.server.models.refresh()


def label(client, name="colours"):
    return client.post(f"/v1/models/{name}/predict", json=ASK).json()["predictions"][0]["label"]


def test_a_changed_file_takes_over(serve, files):
    client = serve(model=None)
    before = client.get("/v1/models/colours").json()
    write_file(files / "colours.onnx", OTHER)
    look(client)
    after = client.get("/v1/models/colours").json()
    assert label(client) == "cherry" and after["classes"] == list(OTHER) and after["version"] != before["version"]
    assert 'clipadapter_model_loads_total{model="colours",outcome="loaded"} 2.0' in client.get("/metrics").text


def test_a_file_that_is_still_being_written_is_left(serve, files):
    client = serve(model=None)
    write_file(files / "colours.onnx", OTHER)
    look(client, 1)
    assert label(client) == "red"
    os.utime(files / "colours.onnx", ns=(1, 1))  # and again
    look(client, 1)
    assert label(client) == "red"
    look(client, 1)
    assert label(client) == "cherry"


def test_a_damaged_file_keeps_the_old_one_and_is_told(serve, files, caplog):
    client, path = serve(model=None), files / "colours.onnx"
    good, loaded = path.read_bytes(), client.app.state.server.models.get()
    path.write_bytes(good[:200])
    with caplog.at_level("ERROR"):
        look(client)
    assert label(client) == "red"
    error = client.get("/v1/models/colours").json()["error"]
    assert "could not be loaded" in error and "colours.onnx" in error and str(files) not in error
    assert 'outcome="failed"} 1.0' in client.get("/metrics").text
    assert "model could not be loaded" in caplog.text
    path.write_bytes(good)  # the same as is loaded: nothing to do but to forget the error
    look(client)
    assert client.get("/v1/models/colours").json()["error"] is None
    assert client.app.state.server.models.get() is loaded


def test_a_changed_file_is_opened_in_a_process_of_its_own_first(serve, files):
    class Crashing:
        def try_file(self, path):
            raise ArtifactError(f"{path} ended the process that opened it by SIGSEGV")

        def stop(self):
            stopped.append(True)

    stopped, models = [], None
    client = serve(model=None, isolated=Crashing())
    models = client.app.state.server.models
    models._open = None  # it is not opened here
    write_file(files / "colours.onnx", OTHER)
    look(client)
    assert label(client) == "red"
    error = client.get("/v1/models/colours").json()["error"]
    assert "colours.onnx ended the process that opened it by SIGSEGV" in error and str(files) not in error
    models.close()
    assert stopped


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_damaged_file_is_told_and_a_sound_one_taken_by_the_child(backend, serve, files):
    pytest.importorskip(backend)
    client = serve(model=None, isolated=IsolatedOpener(backend))
    good = (files / "colours.onnx").read_bytes()
    (files / "colours.onnx").write_bytes(good[: len(good) // 2])
    look(client)
    assert label(client) == "red" and "colours.onnx" in client.get("/v1/models/colours").json()["error"]
    write_file(files / "colours.onnx", OTHER)
    look(client)
    assert label(client) == "cherry" and client.get("/v1/models/colours").json()["error"] is None


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs devices as files")
def test_a_device_is_not_read_for_ever(serve, files):
    client = serve(model=None)
    (files / "colours.onnx").unlink()
    (files / "colours.onnx").symlink_to("/dev/zero")
    look(client)
    assert label(client) == "red" and "not a regular file" in client.get("/v1/models/colours").json()["error"]
    with pytest.raises(ArtifactError, match="neither a regular file nor a folder"):
        Models([str(files / "colours.onnx")])


def test_an_export_in_the_cache_that_was_altered_is_made_again(tmp_path, monkeypatch):
    import clipadapter.classifier
    import clipadapter.export

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(clipadapter.classifier.FewShotClassifier, "load", staticmethod(lambda folder: folder))
    made = []

    def export_model(model, path):
        made.append(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        append_checksum(write_file(path))

    monkeypatch.setattr(clipadapter.export, "export_model", export_model)
    for altered in (False, True, False):
        if altered:
            data = bytearray(made[0].read_bytes())
            data[200] ^= 1
            made[0].write_bytes(data)
        models = Models([str(saved(tmp_path))])
        models.close()
    assert len(made) == 2


def test_a_file_that_does_not_run_is_not_taken(serve, files):
    client, models = serve(), None
    models = client.app.state.server.models
    broken = Colours()
    broken.run = lambda squares: 1 / 0
    models._open = lambda path: broken
    write_file(files / "colours.onnx", OTHER)
    look(client)
    assert label(client) == "red" and "does not run" in client.get("/v1/models/colours").json()["error"]


def test_a_file_that_goes_leaves_the_model(serve, files):
    client = serve(model=None)
    (files / "colours.onnx").rename(files / "away")
    look(client)
    assert label(client) == "red" and "gone" in client.get("/v1/models/colours").json()["error"]
    write_file(files / "colours.onnx", OTHER)
    look(client)
    assert label(client) == "cherry"


def test_a_folder_serves_what_is_in_it(serve, files):
    client = serve(model=None, specs=[str(files)])
    write_file(files / "other.onnx", OTHER)
    shutil.copy(files / "other.onnx", files / "no name.onnx")  # can't be in an address, and costs nobody else
    (files / "broken.onnx").write_bytes(b"nothing")
    look(client)
    assert label(client, "other") == "cherry" and label(client) == "red"
    assert [one["name"] for one in client.get("/v1/models").json()["models"]] == ["colours", "other"]
    (files / "colours.onnx").unlink()
    look(client)
    assert refused(client.post("/v1/models/colours/predict", json=ASK), 404, "served are: other")
    assert 'queue_pictures{model="colours"}' not in client.get("/metrics").text
    files.rename(files.with_name("away"))  # a folder that can't be seen takes nothing with it
    look(client)
    assert label(client, "other") == "cherry"


def test_the_old_one_finishes_what_it_began(serve, files):
    old, new = Colours(), Colours()
    new.class_names = OTHER
    client = serve(model=old)
    models = client.app.state.server.models
    old.go.clear()
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(client.post, "/v1/predict", json=ASK)
        until(lambda: models.get().batcher.pending == 1)
        first = models.get()
        models._open = lambda path: new
        write_file(files / "colours.onnx", OTHER)
        look(client)
        assert label(client) == "cherry"
        old.go.set()
        assert begun.result(20).json()["predictions"][0]["label"] == "red"
    first.batcher._thread.join(10)
    assert not first.batcher._thread.is_alive()


def test_files_are_looked_at_by_themselves(serve, files):
    client = serve(model=None, refresh_seconds=0.01)
    write_file(files / "colours.onnx", OTHER)
    until(lambda: client.get("/v1/models/colours").json()["classes"] == list(OTHER))


@pytest.mark.parametrize(
    ("texts", "error", "words"),
    [
        (["gone.onnx"], ArtifactError, "there is no gone.onnx"),
        (["note.txt"], ArtifactError, "clipadapter export"),
        (["empty"], ArtifactError, "neither exported files nor a saved model"),
        (["files/colours.onnx", "copy/colours.onnx"], InputError, "give one another name"),
        (["a b=files/colours.onnx"], InputError, "can't be a model's name"),
        (["../x=files/colours.onnx"], InputError, "can't be a model's name"),
        (["x=files"], InputError, "go by their own names"),
        (["bad.onnx"], ArtifactError, "can't be opened"),
    ],
)
def test_what_can_not_be_served_is_refused_at_the_start(files, tmp_path, monkeypatch, texts, error, words):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(files, tmp_path / "copy")
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("x")
    (tmp_path / "bad.onnx").write_bytes(b"x")
    with pytest.raises(error, match=words):
        Models(texts)


def test_names_come_from_files_folders_or_the_person(files, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "config.json").write_text("{}")
    (tmp_path / "a=b.onnx").write_bytes(b"x")
    found = read_sources(
        [f"pets={files / 'colours.onnx'}", str(files), str(tmp_path / "saved"), f"x={tmp_path}/a=b.onnx"]
    )
    assert [one.name for one in found] == ["pets", "colours", "saved", "x"]


def saved(tmp_path, text='{"a": 1}'):
    folder = tmp_path / "pets"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(text)
    return folder


def test_a_saved_model_is_exported_once(tmp_path, monkeypatch):
    import clipadapter.classifier
    import clipadapter.export

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(clipadapter.classifier.FewShotClassifier, "load", staticmethod(lambda folder: folder))
    made = []

    def export_model(model, path):
        made.append(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path)

    monkeypatch.setattr(clipadapter.export, "export_model", export_model)
    for _ in range(2):
        models = Models([str(saved(tmp_path))])
        assert models.names == ["pets"] and models.get("pets").predictor.class_names == ("red", "green", "blue")
        models.close()
    assert len(made) == 1 and made[0].is_relative_to(tmp_path / "cache")
    models = Models([str(saved(tmp_path))])
    saved(tmp_path, '{"a": 2}')  # fitted anew
    models.refresh()
    models.refresh()
    assert len(set(made)) == 2
    models.close()


def test_without_torch_a_saved_model_says_where_to_export(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "clipadapter.export", None)
    monkeypatch.setitem(sys.modules, "clipadapter.classifier", None)
    with pytest.raises(ModuleNotFoundError):  # a part of ours that is missing is a fault, and no excuse
        Models([str(saved(tmp_path))])
    error = ModuleNotFoundError("No module named 'torch'", name="torch")

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name == "clipadapter.classifier":
                raise error

    monkeypatch.delitem(sys.modules, "clipadapter.classifier")
    monkeypatch.setattr(sys, "meta_path", [Blocked(), *sys.meta_path])
    with pytest.raises(MissingExtraError, match=r"Where it was fitted: clipadapter export .*pets --out pets.onnx"):
        Models([str(saved(tmp_path))])


def test_a_place_is_never_lost_to_an_exchange(serve, files):
    """A model that was closed between its look-up and its door sends on to the one after it."""
    client = serve(Limits(deadline=5))
    models = client.app.state.server.models
    old, new = models.get(), None

    def open_new(name=None):
        nonlocal new
        models.__class__.get(models, name)
        if new is None:
            write_file(files / "colours.onnx", OTHER)
            models.refresh()
            models.refresh()
            new = models.__class__.get(models, name)
            return old
        return new

    models.get = open_new
    assert client.post("/v1/predict", json=ASK).status_code == 200
