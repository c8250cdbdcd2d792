"""A saved model answers from its exported file in the cache folder, without torch, and says the same."""

import copy
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from clipadapter import FewShotClassifier
from clipadapter.cli.app import app
from clipadapter.encoders.toy import ToyEncoder
from clipadapter.runtime import cached
from clipadapter.runtime.export.exporter import MAX_FILES, export_to_cache
from clipadapter.uncertainty import UncertaintyOptions

from ...configs import array_path

ASK = """
import json, sys
from pathlib import Path
from clipadapter.runtime.cached import open_cached
answers = open_cached(Path(sys.argv[1])).classify([Path(p) for p in sys.argv[2:]], top=3)
assert not {"torch", "sklearn", "scipy", "open_clip", "timm"} & set(sys.modules), "loaded what takes long"
print(json.dumps([[a.label, a.probability, [s for _, s in a.top], a.error, a.unlike_every_class] for a in answers]))
"""


def pictures(folder, classes=("red", "green", "blue"), count=4):
    """Paths of plain pictures with a little noise, and their labels."""
    rng = np.random.default_rng(0)
    paths = []
    for name in classes:
        for i in range(count):
            values = np.array(Image.new("RGB", (60, 40), name), int) + rng.integers(-40, 40, (40, 60, 3))
            paths.append(folder / f"{name}-{i}.png")
            Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return paths, [path.name.split("-")[0] for path in paths]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A model and its pictures."""
    paths, labels = pictures(tmp_path_factory.mktemp("pictures"))
    return FewShotClassifier("toy", "prototype").fit(paths, labels), paths


@pytest.fixture(scope="module")
def made_ready(fitted, tmp_path_factory):
    """The folder of the fitted model, made ready."""
    folder = fitted[0].save(tmp_path_factory.mktemp("saved") / "model")
    assert export_to_cache(fitted[0], folder)
    return folder


@pytest.fixture
def saved(fitted, made_ready, tmp_path):
    """A copy of the fitted model, a copy of the folder where it was made ready, and its pictures."""
    model, paths = fitted
    return copy.copy(model), shutil.copytree(made_ready, tmp_path / "model"), paths


def test_it_says_what_the_model_says_without_torch(saved):
    model, folder, paths = saved
    white = folder / "white.png"
    Image.new("RGB", (60, 40), "white").save(white)
    asked = [*paths[:4], folder / "config.json", white]
    found = subprocess.run(
        [sys.executable, "-c", ASK, folder, *asked], capture_output=True, text=True, check=True, timeout=120
    )
    wanted = model.classify(asked, top=3)
    assert [wanted[0].unlike_every_class, wanted[-1].unlike_every_class] == [False, True]
    for (label, probability, scores, error, is_marked), answer in zip(json.loads(found.stdout), wanted, strict=True):
        assert label == answer.label
        assert error == answer.error
        assert is_marked == answer.unlike_every_class
        if label is not None:
            assert probability == pytest.approx(answer.probability, abs=1e-3)
            assert scores == pytest.approx([score for _, score in answer.top], abs=1e-3)


def test_predict_takes_it(saved, monkeypatch):
    _, folder, paths = saved
    monkeypatch.setattr(FewShotClassifier, "load", None)
    result = CliRunner().invoke(app, ["predict", str(folder), str(paths[0]), str(paths[-1])])
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["red", "blue"]


def test_a_fit_or_an_edit_exports_the_model_as_it_is_at_its_end_if_the_tower_is_in_memory_or_built_quickly(
    fitted, tmp_path, monkeypatch
):
    """Also if it measured the model, which its config then states."""
    data = tmp_path / "data"
    for path in fitted[1]:
        (data / path.name.split("-")[0]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, data / path.name.split("-")[0])

    def run(head, *command):  # each time another head: an equal model of the same second has the same file
        result = CliRunner().invoke(app, [*command, "--encoder", "toy", "--cache", str(tmp_path / "store")])
        assert result.exit_code == 0, result.output
        return cached.open_cached(tmp_path / head)

    def fit(head):
        return run(head, "fit", str(data), "--out", str(tmp_path / head), "--head", head, "--test-fraction", "0.25")

    assert fit("prototype").class_names == ("blue", "green", "red")
    assert fit("knn") is None
    assert run("prototype", "rename-class", str(tmp_path / "prototype"), "red", "crimson") is None
    monkeypatch.setattr(ToyEncoder, "builds_quickly", True)
    assert fit("gda") is not None
    assert run("gda", "rename-class", str(tmp_path / "gda"), "red", "crimson").class_names[2] == "crimson"


@pytest.mark.parametrize("options", [["--backend", "torch"], ["--precision", "fp32"], ["--encoder", "toy"]])
def test_predict_takes_the_whole_model_where_more_is_asked(saved, options, monkeypatch):
    _, folder, paths = saved
    monkeypatch.setattr(cached, "open_cached", None)
    result = CliRunner().invoke(app, ["predict", str(folder), str(paths[0]), *options])
    assert result.exit_code == 0, result.output


def test_another_model_in_the_same_folder_is_another(saved):
    model, folder, paths = saved
    model.fit(paths[:8], ["red"] * 4 + ["green"] * 4).save(folder)
    assert cached.open_cached(folder) is None
    assert export_to_cache(model, folder)
    assert cached.open_cached(folder).class_names == ("green", "red")


@pytest.mark.parametrize("damaged", ["head", "uncertainty", "config", "export"])
def test_an_altered_model_is_not_answered_for_and_a_damaged_export_is_made_again(saved, damaged):
    model, folder, _ = saved
    assert cached.open_cached(folder) is not None
    named = {"config": folder / "config.json", "export": cached.cached_export(folder, "onnx")}
    path = named[damaged] if damaged in named else array_path(folder, damaged)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damaged in named else whole[:-1] + bytes([whole[-1] ^ 1]))
    assert cached.open_cached(folder) is None
    if damaged == "export":
        assert export_to_cache(model, folder)
        assert cached.open_cached(folder) is not None
    elif damaged != "config":
        path.unlink()
        assert cached.open_cached(folder) is None
    path.write_bytes(whole)


@pytest.fixture
def alone(fitted, tmp_path, monkeypatch):
    """The fitted model and a folder where it is saved; the cache folder is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return fitted[0], fitted[0].save(tmp_path / "model")


def test_a_model_that_can_not_be_exported_is_tried_once(alone, monkeypatch):
    (model, folder), calls = alone, []
    monkeypatch.setattr("clipadapter.runtime.export.exporter.MAX_WEIGHTS", -1)
    assert not export_to_cache(model, folder)
    monkeypatch.setattr("clipadapter.runtime.export.exporter.export_model", lambda *_, **__: calls.append(1))
    assert not export_to_cache(model, folder) and not calls
    assert cached.open_cached(folder) is None


@pytest.mark.parametrize("fault", ["a file where the folder should be", "a folder that can't be read"])
def test_a_cache_folder_that_can_not_be_used_is_no_error(alone, tmp_path, monkeypatch, fault):
    model, folder = alone
    if "read" in fault:  # as `Path.exists` fails for a person without the right to read the folder

        def exists(path):
            raise PermissionError(f"{path}: {fault}")

        monkeypatch.setattr(type(folder), "exists", exists)
    else:
        (tmp_path / "clipadapter").write_text(fault)
    assert not export_to_cache(model, folder)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cached.open_cached(folder) is None


@pytest.mark.parametrize("options", [{"coverage": 0.8, "sets": "cv+"}, {"reject": 0.1, "negative_labels": True}])
def test_a_model_that_has_more_than_the_file_is_answered_by_itself(made_ready, tmp_path, monkeypatch, options):
    """Heads of all folds for sets, or the names of negative labels for reasons."""
    exported = cached.cached_export(made_ready, "onnx")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = UncertaintyOptions(**options)
    model = FewShotClassifier("toy", "prototype", cache=None, uncertainty=options).fit(*pictures(tmp_path))
    folder = model.save(tmp_path / "model")
    assert not export_to_cache(model, folder)
    cached.cached_export(folder, "onnx").parent.mkdir(parents=True)
    shutil.copy(exported, cached.cached_export(folder, "onnx"))  # `serve` makes one
    assert cached.open_cached(folder) is None


def test_the_oldest_files_are_removed(alone):
    model, folder = alone
    path = cached.cached_export(folder, "onnx")
    path.parent.mkdir(parents=True)
    for i in range(MAX_FILES + 2):
        (path.parent / f"{i}.onnx").touch()
        os.utime(path.parent / f"{i}.onnx", (i, i))
    assert export_to_cache(model, folder)
    assert len(list(path.parent.iterdir())) == MAX_FILES and path.exists()


def test_it_adapts_to_the_stream_as_the_model_does(saved):
    model, folder, paths = saved
    found = cached.open_cached(folder).classify(paths, 3, adapt="tda")
    for one, other in zip(found, model.classify(paths, 3, adapt="tda"), strict=True):
        assert one.label == other.label and one.probability == pytest.approx(other.probability, abs=1e-3)
