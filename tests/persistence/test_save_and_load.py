"""Saving writes a model as a whole or not at all; loading checks everything and executes nothing."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from clipadapter import FewShotClassifier
from clipadapter.encoders import create_encoder
from clipadapter.errors import ArtifactError, InputError, MethodWarning
from clipadapter.features import FeatureSet
from clipadapter.heads import create_head, head_info, list_heads
from clipadapter.persistence import Model, load_model, read_config, save_model
from clipadapter.persistence import versions as module
from clipadapter.persistence.versions import HEADS_WITHOUT_PICTURES, count_stored_pictures
from clipadapter.testing import toy_features

from ..configs import array_path, flip_last_bit, replace_arrays, rewrite_config
from ..heads.estimators import short_training


def make(head="prototype", **params):
    X, y, text = toy_features(d=32)
    unfitted = create_head(head, **params)
    fitted = unfitted.fit(X, y, text=text, unlabelled=X if unfitted.transductive else None)
    support = FeatureSet(X, tuple(y), text.labels, {"skipped": [("bad.jpg", "file is empty")], "pictures": "/home/ann"})
    prompts = {name: [f"a photo of a {name}."] for name in text.labels}
    return Model(fitted, text, support, prompts, create_encoder("toy").info), X


@pytest.mark.parametrize("head", [name for name in list_heads() if not head_info(name).cls.tunes_encoder])
def test_a_model_comes_back_as_it_was(head, tmp_path):
    model, X = make(head, **short_training(head))
    again = load_model(save_model(tmp_path / "model", model))
    # the same sums in the same order
    np.testing.assert_array_equal(again.head.attach(model.text).logits(X), model.head.logits(X))
    assert again.head.get_params() == model.head.get_params()
    assert again.text.labels == model.text.labels
    assert again.text.logit_scale == model.text.logit_scale
    assert again.encoder == model.encoder
    assert again.support.y == model.support.y
    np.testing.assert_array_equal(again.support.X, model.support.X)


def test_the_config_records_classes_shots_and_versions_and_keeps_them_when_saved_again(tmp_path):
    folder = save_model(tmp_path / "model", make()[0])
    for place in (folder, save_model(tmp_path / "again", load_model(folder))):
        config = read_config(place)
        assert config.class_names == ["cat", "dog", "owl"]
        assert config.provenance["shots"] == {"cat": 4, "dog": 4, "owl": 4}
        assert config.provenance["skipped"] == 1 and "pictures" not in config.provenance  # whatever a caller names so
        assert config.prompts["dog"] == ["a photo of a dog."]
        assert "torch" in config.provenance["versions"]
        assert "of 3 classes" in (place / "README.md").read_text()


@pytest.mark.parametrize(("head", "count"), [("knn", 12), ("tip-adapter", 12), ("stata", 24)])
def test_a_head_that_keeps_pictures_is_a_warning_if_the_shots_are_left_out(head, count, tmp_path):
    words = f"features of {count} pictures: the head {head} compares with them"
    with pytest.warns(MethodWarning, match=words) as caught:
        save_model(tmp_path / "model", make(head)[0], keep_support=False)
    for name in HEADS_WITHOUT_PICTURES:
        assert name in str(caught[0].message)
        assert count_stored_pictures(make(name, **short_training(name))[0].head) == 0


@pytest.mark.parametrize("names", [["thesis.txt"], ["config.json", "thesis.txt"]])
def test_a_folder_with_other_files_and_an_unwritable_place_are_refused_and_left_as_they_were(names, tmp_path):
    (tmp_path / "model").mkdir()
    for name in names:
        (tmp_path / "model" / name).write_text("years of work")
    for place, words in (("", "other files than a model"), (names[0], names[0]), (f"{names[0]}/model", names[0])):
        with pytest.raises(ArtifactError, match=words):
            save_model(tmp_path / "model" / place, make()[0])
    left = {path.name: path.read_text() for path in (tmp_path / "model").iterdir()}
    assert left == dict.fromkeys(names, "years of work") and os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("config.json", "holds no model"), ("head", r"head-\w+.safetensors is missing"), ("support", "is missing")],
)
def test_a_missing_or_altered_file_is_named(name, words, tmp_path):
    folder = save_model(tmp_path / "model", make()[0])
    path = folder / name if name == "config.json" else array_path(folder, name)
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(ArtifactError, match=words):
        load_model(folder)
    path.write_bytes(data.replace(b"cat", b"cot") if name == "config.json" else data)
    if name != "config.json":
        flip_last_bit(path)
    with pytest.raises(ArtifactError, match=f"{path.name} was altered"):
        load_model(folder)


@pytest.mark.parametrize("layout", [{}, {"indent": 4}, {"separators": (",", ":")}])
def test_the_checksum_accepts_another_layout_and_no_other_content_format_or_checksum(layout, tmp_path):
    folder = save_model(tmp_path / "model", make()[0])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(dict(reversed(config.items())), **layout))
    assert load_model(folder).text.labels[0] == "cat"
    config["class_names"][0] = "wolf"
    for change in ({}, {"format": True}, {"format": None}, {"checksum": None}, {"checksum": "0" * 64}):
        (folder / "config.json").write_text(json.dumps({**config, **change}, **layout))
        words = "checksum" if change else "config.json was altered since the model was saved: .*checksum"
        with pytest.raises(ArtifactError, match=words):
            load_model(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(format=99), "format 99, this version reads 1: update clipadapter"),
        (lambda c: c.update(surprise=1), "surprise"),
        (lambda c: c.pop("encoder"), "encoder"),
        (lambda c: c.update(class_names=["cat"]), "class_names"),
        (lambda c: c.update(class_names=["cat", "cat", "owl"]), "more than once"),
        (lambda c: c.update(class_names=["cat", "dog", "owl", "wolf"]), "one row for each"),
        (lambda c: c["head"].update(name="no-such-head"), "'no-such-head' is not installed"),
        (lambda c: c["head"]["params"].update(evil=1), "evil"),
        (lambda c: c["encoder"].update(dim=7), "features have width 7, but their blocks have 32"),
        (lambda c: c["encoder"].pop("blocks"), "encoder.blocks"),
        (lambda c: c["encoder"].update(dim=1 << 31), "encoder.dim"),
        (lambda c: c["encoder"].update(image_size=10**30), "encoder.image_size"),
        (lambda c: c["encoder"].update(logit_scale=float("inf")), "encoder.logit_scale"),
        (lambda c: c["encoder"].update(name="a\0b"), "encoder.name"),
        (lambda c: c["uncertainty"]["calibrator"].update(n=float("inf")), "calibration is damaged: its 'n' is inf"),
        (lambda c: c.update(uncertainty={}), "uncertainty is damaged"),
        (lambda c: c["files"].pop("head"), "without the arrays of its head"),
        (lambda c: c["files"].update({"../head": c["files"]["head"]}), "files"),
    ],
)
def test_a_wrong_config_is_refused(change, words, tmp_path):
    folder = save_model(tmp_path / "model", make()[0])
    rewrite_config(folder / "config.json", change)
    with pytest.raises(ArtifactError, match=words):
        load_model(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_a_config_that_is_none_is_refused(text, tmp_path):
    folder = save_model(tmp_path / "model", make()[0])
    (folder / "config.json").write_text(text)
    with pytest.raises(ArtifactError, match="config"):
        load_model(folder)


def test_a_pickle_in_place_of_the_arrays_is_never_run(tmp_path):
    folder, mark = save_model(tmp_path / "model", make()[0]), tmp_path / "executed"
    data = f"cbuiltins\nopen\n(V{mark}\nVw\ntR.".encode()  # a pickle that leaves a mark
    pickle.loads(data).close()
    mark.unlink()
    array_path(folder, "head").write_bytes(data)
    with pytest.raises(ArtifactError, match="was altered"):
        load_model(folder)
    replace_arrays(folder, "head", data)
    with pytest.raises(ArtifactError, match="no safetensors file"):
        load_model(folder)
    assert not mark.exists()


def test_values_that_are_not_finite_are_refused(tmp_path):
    folder = save_model(tmp_path / "model", make("zero-shot")[0])
    arrays = load_file(array_path(folder, "head"))
    arrays["weight_"][0, 0] = np.nan
    replace_arrays(folder, "head", save(arrays))
    with pytest.raises(ArtifactError, match="not finite"):
        load_model(folder)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_an_error_and_no_answer(number, tmp_path, monkeypatch):
    images = [np.full((8, 8, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 0, 255])]
    folder = FewShotClassifier("toy", "prototype", cache=None).fit(images, ["red", "blue"]).save(tmp_path / "model")
    loaded = FewShotClassifier.load(folder, cache=None)
    monkeypatch.setattr(type(loaded.head_), "logits", lambda self, X: np.full((len(X), 2), number))
    for ask in (loaded.logits, loaded.classify, loaded.predict, loaded.predict_proba):
        with pytest.raises(ArtifactError, match="not finite"):
            ask(images)


def test_a_head_that_is_not_registered_cannot_be_saved(tmp_path):
    own = type("Own", (type(make()[0].head),), {})()
    with pytest.raises(InputError, match="no registered head"):
        save_model(tmp_path / "model", replace(make()[0], head=own))


def test_other_files_beside_a_model_stay_and_so_does_a_card_that_a_person_has_written(tmp_path):
    folder = save_model(tmp_path / "model", make("linear-probe")[0])
    (folder / "notes.txt").write_text("years of work")
    (folder / "README.md").write_text("# Mine")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("main")
    save_model(folder, make("zero-shot")[0], keep_support=False)
    assert set(os.listdir(folder)) == {"notes.txt", ".git", "README.md", "config.json", "arrays", "history"}
    assert not list((folder / "arrays").glob("support-*")) and len(load_model(folder).support) == 0
    assert (folder / "notes.txt").read_text() == "years of work" and (folder / ".git" / "HEAD").is_file()
    assert (folder / "README.md").read_text() == "# Mine"
    assert load_model(folder).head.get_params() == create_head("zero-shot").get_params()
    assert os.listdir(tmp_path) == ["model"]


def test_new_files_are_on_disk_before_the_config_that_names_them(tmp_path, monkeypatch):
    events = []
    sync, rename = module.sync_folder, Path.replace
    monkeypatch.setattr(module, "sync_folder", lambda path: (events.append(f"sync {Path(path).name}"), sync(path)))
    monkeypatch.setattr(Path, "replace", lambda old, new: (events.append(f"rename {new.name}"), rename(old, new))[1])
    save_model(tmp_path / "model", make()[0])
    moments = [events.index(next(e for e in events if e.startswith(f"rename {name}"))) for name in ("head-", "config")]
    assert moments[0] < events.index("sync arrays") < moments[1]
