"""Models by name, replaced while they are served."""

import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clipadapter import FewShotClassifier
from clipadapter.errors import ArtifactError, InputError, MissingExtraError
from clipadapter.runtime.engines.formats import append_checksum
from clipadapter.serve import Limits, ServedModels
from clipadapter.serve.models import read_sources
from clipadapter.uncertainty import UncertaintyOptions

from ..runtime.export.test_cached import pictures
from .colours import RED, Colours, ask, described, refused, write_file
from .test_batching import wait_until

OTHER = ("cherry", "leaf", "sky")


def refresh(client, times=2):
    for _ in range(times):
        client.app.state.server.models.refresh()


def label(client, name="colours"):
    return ask(client, RED, path=f"/v1/models/{name}/predict").json()["predictions"][0]["label"]


def test_a_changed_file_replaces_its_model_when_it_is_no_longer_being_written(serve, files):
    client = serve(model=None)
    before = described(client)
    write_file(files / "colours.onnx", OTHER)
    refresh(client, 1)
    assert label(client) == "red"
    os.utime(files / "colours.onnx", ns=(1, 1))  # and again
    refresh(client, 1)
    assert label(client) == "red"
    refresh(client, 1)
    after = described(client)
    assert label(client) == "cherry" and after["classes"] == list(OTHER) and after["version"] != before["version"]
    assert 'clipadapter_model_loads_total{model="colours",outcome="loaded"} 2.0' in client.get("/metrics").text


def test_with_a_damaged_file_the_old_model_is_served_and_the_error_reported(serve, files, caplog):
    client, path = serve(model=None), files / "colours.onnx"
    good, loaded = path.read_bytes(), client.app.state.server.models.get()
    path.write_bytes(good[:200])
    with caplog.at_level("ERROR"):
        refresh(client)
    assert label(client) == "red"
    error = described(client)["error"]
    assert "could not be loaded" in error and "colours.onnx" in error and str(files) not in error
    assert 'outcome="failed"} 1.0' in client.get("/metrics").text
    assert "model could not be loaded" in caplog.text
    path.write_bytes(good)  # the same as the loaded file: only the error is cleared
    refresh(client)
    assert described(client)["error"] is None
    assert client.app.state.server.models.get() is loaded


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_child_process_refuses_a_damaged_file_and_accepts_a_sound_one(backend, serve, files):
    pytest.importorskip(backend)
    client = serve(models=ServedModels([str(files / "colours.onnx")], backend=backend))
    good = (files / "colours.onnx").read_bytes()
    (files / "colours.onnx").write_bytes(good[: len(good) // 2])
    append_checksum(files / "colours.onnx")
    refresh(client)
    assert label(client) == "red" and "colours.onnx" in described(client)["error"]
    write_file(files / "colours.onnx", OTHER)
    refresh(client)
    assert label(client) == "cherry" and described(client)["error"] is None


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs devices as files")
def test_a_device_is_not_read(serve, files):
    client = serve(model=None)
    (files / "colours.onnx").unlink()
    (files / "colours.onnx").symlink_to("/dev/zero")
    refresh(client)
    assert label(client) == "red" and "not a regular file" in described(client)["error"]
    with pytest.raises(ArtifactError, match="neither an exported file"):
        ServedModels([str(files / "colours.onnx")])


def test_a_file_that_does_not_run_is_refused(serve, files):
    client = serve()
    models = client.app.state.server.models
    broken = Colours()
    broken.run = lambda squares: 1 / 0
    models._open = lambda path, is_changed: broken
    write_file(files / "colours.onnx", OTHER)
    refresh(client)
    error = described(client)["error"]
    assert label(client) == "red" and "could not be loaded" in error and "ZeroDivisionError" in error


def test_the_model_of_a_removed_file_is_still_served(serve, files):
    client = serve(model=None)
    (files / "colours.onnx").rename(files / "away")
    refresh(client)
    assert label(client) == "red" and "gone" in described(client)["error"]
    write_file(files / "colours.onnx", OTHER)
    refresh(client)
    assert label(client) == "cherry"


def test_all_files_of_a_folder_are_served(serve, files):
    client = serve(model=None, specs=[str(files)])
    write_file(files / "other.onnx", OTHER)
    shutil.copy(files / "other.onnx", files / "no name.onnx")  # not a valid name; it affects no other model
    (files / "broken.onnx").write_bytes(b"nothing")
    refresh(client)
    assert label(client, "other") == "cherry" and label(client) == "red"
    assert [one["name"] for one in client.get("/v1/models").json()["models"]] == ["colours", "other"]
    (files / "colours.onnx").unlink()
    refresh(client)
    assert refused(ask(client, RED, path="/v1/models/colours/predict"), 404, "served are: other")
    assert 'queue_pictures{model="colours"}' not in client.get("/metrics").text
    files.rename(files.with_name("away"))  # a folder that is gone removes no model
    refresh(client)
    assert label(client, "other") == "cherry"


def test_the_old_model_finishes_its_requests(serve, files):
    old, new = Colours(), Colours()
    new.class_names = OTHER
    client = serve(model=old)
    models = client.app.state.server.models
    old.go.clear()
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(ask, client, RED)
        wait_until(lambda: models.get().batcher.pending == 1)
        first = models.get()
        models._open = lambda path, is_changed: new
        write_file(files / "colours.onnx", OTHER)
        refresh(client)
        assert label(client) == "cherry"
        old.go.set()
        assert begun.result(20).json()["predictions"][0]["label"] == "red"
    wait_until(lambda: first.batcher._thread is None)  # it has ended


@pytest.mark.parametrize(
    ("texts", "error", "words"),
    [
        (["gone.onnx"], ArtifactError, "there is no file or folder gone.onnx"),
        (["note.txt"], ArtifactError, "clipadapter export"),
        (["empty"], ArtifactError, "nor a folder of them, nor a saved model"),
        (["files/colours.onnx", "copy/colours.onnx"], InputError, "give one another name"),
        (["a b=files/colours.onnx"], InputError, "can't be a model's name"),
        (["../x=files/colours.onnx"], InputError, "can't be a model's name"),
        (["x=files"], InputError, "their file names are their names"),
        (["bad.onnx"], ArtifactError, "was not written by 'clipadapter export'"),
    ],
)
def test_unservable_specifications_are_refused_at_the_start(files, tmp_path, monkeypatch, texts, error, words):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(files, tmp_path / "copy")
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("x")
    (tmp_path / "bad.onnx").write_bytes(b"x")
    with pytest.raises(error, match=words):
        ServedModels(texts)


def test_model_names_come_from_files_folders_or_the_specification(files, tmp_path):
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


def test_a_saved_model_is_exported_again_only_when_it_or_its_export_was_altered(tmp_path, monkeypatch):
    import clipadapter.classifier
    import clipadapter.runtime.export

    paths = []

    def export_model(model, path):
        paths.append(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(clipadapter.classifier.FewShotClassifier, "load", staticmethod(lambda folder: folder))
    monkeypatch.setattr(clipadapter.runtime.export, "export_model", export_model)
    for count in (1, 1, 2, 2):
        if count > len(paths) > 0:
            data = bytearray(paths[0].read_bytes())
            data[200] ^= 1
            paths[0].write_bytes(data)
        models = ServedModels([str(saved(tmp_path))])
        assert models.names == ["pets"] and models.get("pets").predictor.class_names == ("red", "green", "blue")
        models.close()
        assert len(paths) == count and paths[-1].is_relative_to(tmp_path / "cache")
    models = ServedModels([str(saved(tmp_path))])
    saved(tmp_path, '{"a": 2}')  # fitted again
    models.refresh()
    models.refresh()
    assert len(set(paths)) == 2
    models.close()


def test_the_export_of_a_saved_model_answers_as_the_classifier(serve, tmp_path):
    paths, labels = pictures(tmp_path)
    model = FewShotClassifier("toy", uncertainty=UncertaintyOptions(reject=0.1)).fit(paths, labels)
    client, wanted = serve(models=ServedModels([str(model.save(tmp_path / "saved"))])), model.classify(paths, top=3)
    sent = [("images", (path.name, path.read_bytes())) for path in paths]
    found = client.post("/v1/models/saved/predict", files=sent, data={"top": 3}).json()["predictions"]
    assert [(one["label"], one["reason"]) for one in found] == [(one.label, one.reason) for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one["probability"], other.probability, rtol=1e-4)
    facts = described(client, "saved")
    assert facts["classes"] == list(model.class_names_) and facts["can"]["reject"]
    assert facts["encoder"] == "toy[final,inner]" and str(tmp_path) not in json.dumps(facts)


def test_without_torch_a_saved_model_says_where_to_export(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "clipadapter.runtime.export", None)
    monkeypatch.setitem(sys.modules, "clipadapter.classifier", None)
    with pytest.raises(ModuleNotFoundError):  # a missing module of this package is a bug, not a missing extra
        ServedModels([str(saved(tmp_path))])
    error = ModuleNotFoundError("No module named 'torch'", name="torch")

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name == "clipadapter.classifier":
                raise error

    monkeypatch.delitem(sys.modules, "clipadapter.classifier")
    monkeypatch.setattr(sys, "meta_path", [Blocked(), *sys.meta_path])
    with pytest.raises(MissingExtraError, match=r"Where it was fitted: clipadapter export .*pets --out pets.onnx"):
        ServedModels([str(saved(tmp_path))])


def test_a_request_survives_the_replacement_of_its_model(serve, files):
    """A model that is closed between `get` and `submit` still answers."""
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
    assert ask(client, RED).status_code == 200
