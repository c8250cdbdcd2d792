"""``history`` tells every version of a model, and ``undo`` goes back to one."""

import shutil

import pytest
from PIL import Image

from clipadapter.persistence import History, load_model, save_model
from clipadapter.runtime.cached import cached_export


@pytest.fixture
def changed(model, tmp_path):
    """Three versions: a fit, then two changes by two people."""
    folder = shutil.copytree(model, tmp_path / "changed")
    for by, action, facts in (
        ("ann", "add-class", {"class": "green", "pictures": 4}),
        ("bob", "rename-class", {"class": "red", "to": "ruby"}),
    ):
        before = load_model(folder)
        after = load_model(folder)
        after.prompts[facts["class"]] = [f"changed by {by}."]
        save_model(folder, after, history=History.load(folder).with_change(before, after, action, facts, by))
    return folder


@pytest.mark.parametrize("command", ["history", "undo"])
def test_a_damaged_log_is_refused_with_advice(command, changed, run):
    next((changed / "history").glob("log-*")).write_text("{")
    result = run(command, changed)
    assert result.exit_code == 1 and "move the folder" in result.stderr


def test_the_author_is_the_login_name_by_default(changed, run, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "carol")
    run("undo", changed)
    run("undo", changed, "--by", "dan")
    run("rename-class", changed, "red", "ruby")
    assert [one.by for one in History.load(changed).changes[-3:]] == ["carol", "dan", "carol"]


def test_the_exported_file_of_a_version_is_that_of_its_own_config(changed, run):
    # Another version must not find it, and an undone one finds its own.
    now = cached_export(changed, "onnx")
    run("undo", changed)
    before = cached_export(changed, "onnx")
    run("undo", changed, "--to", 3)
    assert now != before
    assert cached_export(changed, "onnx") == now


def test_predict_answers_as_the_version_of_now(squares, tmp_path, write_squares, run):
    folder, picture = tmp_path / "model", tmp_path / "yellow.png"
    Image.new("RGB", (40, 50), "yellow").save(picture)
    extra = write_squares(tmp_path / "more", classes=("yellow",)) / "yellow"
    assert run("fit", squares, "--out", folder, "--encoder", "toy", "--head", "prototype").exit_code == 0
    first = run("predict", folder, picture).stdout
    assert run("add-class", folder, "yellow", extra).exit_code == 0
    assert run("predict", folder, picture).stdout.startswith("yellow")
    assert run("undo", folder).exit_code == 0
    assert run("predict", folder, picture).stdout == first
