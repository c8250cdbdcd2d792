"""``history`` tells every version of a model, and ``undo`` goes back to one."""

import json
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


def test_undo_restores_the_version_before_the_last_change(changed, run):
    result = run("undo", changed, "--by", "eve")
    assert result.exit_code == 0
    assert f"model     {changed}, version 4" in result.stdout
    assert "undone    version 3, rename-class 'red' to 'ruby'" in result.stdout
    assert "same as   version 2, add-class 'green': 4 new pictures" in result.stdout
    assert f"clipadapter undo {changed} --to 3" in result.stdout
    assert load_model(changed).prompts["green"] == ["changed by ann."]
    assert load_model(changed).prompts["red"] == ["a photo of a red."]
    listed = run("history", changed).stdout.splitlines()
    assert "eve" in listed[4] and "undo of version 3" in listed[4]
    assert listed[-1].startswith(f"{changed} is version 4, the same as version 2; to go back to 1, 3:")


def test_repeated_undo_goes_further_back_until_nothing_is_left(changed, run):
    assert json.loads(run("undo", changed, "--json").stdout)["content"] == 2
    record = json.loads(run("undo", changed, "--json").stdout)
    assert record == {
        "model": str(changed),
        "version": 5,
        "undone": 2,
        "content": 1,
        "classes": ["blue", "green", "red"],
        "pictures": 12,
    }
    result = run("undo", changed)
    assert result.exit_code == 1
    assert result.stderr == "error: there is nothing to undo: the model is what it was in version 1\n"


def test_undo_to_a_version_and_back(changed, run):
    record = json.loads(run("undo", changed, "--to", 1, "--json").stdout)
    assert (record["version"], record["content"], record["undone"]) == (4, 1, None)
    assert "undo, to version 1" in run("history", changed).stdout
    assert "went      to version 3" in run("undo", changed, "--to", 3).stdout
    assert load_model(changed).prompts["red"] == ["changed by bob."]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--to", "9"], 1, "there is no version 9: this model has 1 to 3"),
        (["--to", "3"], 1, "is what it was in version 3"),
        (["--to", "0"], 2, "0 is not in the range x>=1"),
        (["--to", "first"], 2, "'first' is not a valid integer"),
    ],
)
def test_a_version_that_there_is_not_is_named(args, code, words, changed, run):
    result = run("undo", changed, *args)
    assert result.exit_code == code and words in result.stderr
    assert History.load(changed).version == 3


@pytest.mark.parametrize("command", ["history", "undo"])
def test_a_path_that_is_no_model_is_refused(command, run, tmp_path):
    assert "there is no folder" in run(command, tmp_path / "nowhere").stderr
    assert "holds no model" in run(command, tmp_path).stderr


@pytest.mark.parametrize("command", ["history", "undo"])
def test_a_damaged_log_is_refused_with_advice(command, changed, run):
    next((changed / "history").glob("log-*")).write_text("{")
    result = run(command, changed)
    assert result.exit_code == 1 and "move the folder" in result.stderr


def test_the_author_of_an_undo_is_the_login_name_by_default(changed, run, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "carol")
    run("undo", changed)
    run("undo", changed, "--by", "dan")
    assert [one.by for one in History.load(changed).changes[-2:]] == ["carol", "dan"]


def test_undo_opens_no_encoder(changed, run, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("an encoder was opened")

    monkeypatch.setattr("clipadapter.encoders.create_encoder", refuse)
    monkeypatch.setattr("clipadapter.classifier.classifier.create_encoder", refuse)
    assert run("undo", changed).exit_code == 0


def test_names_of_others_do_not_reach_the_terminal_as_commands(changed, run):
    before = load_model(changed)
    history = History.load(changed).with_change(before, before, "add-class", {"class": "a\x1b[2Jb\n"}, by="e\x07ve")
    save_model(changed, before, history=history)
    shown = run("history", changed).stdout
    assert "\x1b" not in shown and "\x07" not in shown and r"add-class 'a\u001b[2Jb\n'" in shown


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
