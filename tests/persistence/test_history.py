"""The folder of a model records every version: who, what and when; each can be restored."""

import errno
import json
import os
import shutil
import tempfile
import threading
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from safetensors.numpy import load_file

from clipadapter.encoders import create_encoder
from clipadapter.errors import ArtifactError, InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import create_head
from clipadapter.persistence import (
    History,
    Model,
    load_model,
    read_config,
    record_evaluation,
    restore_version,
    save_model,
)
from clipadapter.persistence import versions as module
from clipadapter.persistence.versions import find_snapshot, history_file
from clipadapter.runtime.model_folder import array_file
from clipadapter.testing import toy_features
from clipadapter.uncertainty import DecisionOptions, Uncertainty

from ..configs import array_path, flip_last_bit, rewrite_config

INFO = create_encoder("toy").info


@cache
def make(i=0, views=None):
    """Model i; no two have the same features."""
    X, y, text = toy_features(d=32)
    X = (X + i).astype(np.float32)
    fitted = create_head("prototype").fit(X, y, text=text)
    kept = X if views is None else np.stack([X + view for view in range(views)], axis=1)
    sources = [f"person-{k}.jpg" for k in range(len(X))]
    support = FeatureSet(kept, tuple(y), text.labels, {"sources": sources})
    return Model(fitted, text, support, {name: [f"a {name}."] for name in text.labels}, INFO)


def which(model):
    """Its number."""
    return round(float(model.support.plain[0, 0] - toy_features(d=32)[0][0, 0]))


def change(folder, i, action="correct", by="ann", **facts):
    """Have model i in a folder, as a change of what is there."""
    history, before = History.load(folder), load_model(folder)
    return save_model(folder, make(i), history=history.with_change(before, make(i), action, facts, by))


def undo_by_model(folder, to=None):
    history, model = History.load(folder).undo(to)
    return save_model(folder, model, history=history)


def undo_by_files(folder, to=None):
    restore_version(folder, to)
    return folder


@pytest.fixture(params=[undo_by_files, undo_by_model], ids=["files", "model"])
def undo(request):
    """Both ways of an undo: of the files, as the command does it, and of a model in memory."""
    return request.param


def log(folder):
    return [(one.version, one.action, one.content) for one in History.load(folder).changes]


def tree(folder):
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path):
    """Versions 1, 2 and 3 are models 0, 1 and 2."""
    place = save_model(tmp_path / "model", make(0))
    change(place, 1, "add-class", **{"class": "cow"})
    return change(place, 2, "correct", by="bob", picture="a.jpg")


def test_a_model_that_was_never_changed_has_its_fit_and_no_log_and_its_undo_restores_the_same_bytes(tmp_path, undo):
    place = save_model(tmp_path / "model", make(0))
    before = tree(place)
    assert not (place / "history").exists()
    (only,) = History.load(place).changes
    assert (only.version, only.action, only.content, only.classes, only.pictures) == (1, "fit", 1, 3, 12)
    assert only.facts == {"head": "prototype", "encoder": "toy"}
    assert only.when == read_config(place).provenance["created"]
    assert History.load(place).changes == History.load(place).changes
    change(place, 1)
    assert which(load_model(place)) == 1
    undo(place)
    assert {name: data for name, data in tree(place).items() if name in before} == before


def test_the_log_has_author_action_and_time(folder):
    first, second, third = History.load(folder).changes
    assert (second.action, second.facts, second.by, second.content) == ("add-class", {"class": "cow"}, "ann", 2)
    assert (third.action, third.facts, third.by) == ("correct", {"picture": "a.jpg"}, "bob")
    assert first.when <= second.when <= third.when and third.when.endswith("Z")
    assert History.load(folder).version == 3


def test_repeated_undo_goes_back_to_the_first_version_and_then_fails(folder, undo):
    for to, words in ((0, "no version 0"), (9, "has 1 to 3"), (3, "is what it was in version 3")):
        with pytest.raises(InputError, match=words):
            undo(folder, to)
    undo(folder)
    assert which(load_model(folder)) == 1
    undo(folder)
    assert which(load_model(folder)) == 0
    with pytest.raises(InputError, match="nothing to undo"):
        undo(folder)
    assert log(folder)[3:] == [(4, "undo", 2), (5, "undo", 1)]
    assert [one.facts for one in History.load(folder).changes[3:]] == [{"undone": 3}, {"undone": 2}]


def test_a_model_saved_over_another_appends_its_history(folder, undo):
    first = make(4)
    history = History.new(first).with_change(first, make(5), "correct", {}, by="eve")
    save_model(folder, make(5), history=history)
    assert log(folder)[3:] == [(4, "fit", 4), (5, "correct", 5)]
    assert [one.by for one in History.load(folder).changes[3:]] == ["", "eve"]
    for wanted in (4, 2, 1, 0):
        undo(folder)
        assert which(load_model(folder)) == wanted


def test_only_a_model_that_differs_is_a_version(folder):
    before = (folder / "config.json").read_bytes()
    save_model(folder, load_model(folder), history=History.load(folder))
    assert History.load(folder).version == 3 and (folder / "config.json").read_bytes() == before
    changed = replace(load_model(folder), uncertainty=Uncertainty(decisions=DecisionOptions(reject=0.5)))
    save_model(folder, changed, history=History.load(folder))
    assert History.load(folder).changes[-1].facts["recorded"] is False
    undo_by_files(folder)
    assert load_model(folder).uncertainty.decisions.reject is None


def test_in_memory_a_history_needs_no_folder_and_the_first_and_the_last_twenty_snapshots_stay():
    models = [make(i) for i in range(30)]
    history = History.new(models[0])
    for number, (before, after) in enumerate(pairwise(models), 2):
        history = history.with_change(before, after, "correct", {})
        if number == 4:
            short = history
    for wanted in (2, 1, 0):
        short, model = short.undo()
        assert model is models[wanted]
    with pytest.raises(InputError, match="nothing to undo"):
        short.undo()
    assert sorted(history.models) == [1, *range(11, 31)] == history.stored_versions()
    undone, _ = history.undo(to=1)  # version 31: now the last twenty are 12 to 31
    assert sorted(undone.models) == [1, *range(12, 31)]
    with pytest.raises(InputError, match="version 10 is no longer stored.*1, 11, 12"):
        history.undo(to=10)


def test_equal_arrays_are_stored_once(folder):
    before = load_model(folder)
    renamed = replace(before, prompts={**before.prompts, "cat": ["a photo of a tabby."]})
    save_model(folder, renamed, history=History.load(folder).with_change(before, renamed, "rename-class", {}))
    names = [path.name.split("-")[0] for path in (folder / "arrays").glob("*.safetensors")]
    assert (names.count("head"), names.count("support")) == (3, 3)  # of four versions


def test_leaving_the_shots_out_leaves_them_out_of_every_version(folder, tmp_path):
    secret = [make(i).support.X.tobytes() for i in range(4)]
    history = History.load(folder).with_change(load_model(folder), make(3), "correct", {})
    for place, undo in ((folder, undo_by_files), (tmp_path / "other", undo_by_model)):
        save_model(place, make(3), keep_support=False, history=history)
        everything = b"".join(tree(place).values())
        assert not any(features in everything for features in secret) and b"person-" not in everything
        assert len(load_model(undo(place)).support) == 0
        assert History.load(place).changes[-1].pictures == 12
        assert read_config(place).provenance["shots"] == {"cat": 4, "dog": 4, "owl": 4}


def measure(place):
    """Record figures of the model in a folder."""
    classes = [{"name": name, "count": 1, "precision": 1, "recall": 1, "f1": 1} for name in ("cat", "dog", "owl")]
    figures = {"accuracy": 0.75, "classes": classes}
    told = {"data": "test", "n_test": 3, "skipped": [], "created": "2999-01-01T00:00:00Z", "head": "prototype"}
    record_evaluation(place, {**told, "model": figures, "baselines": {}})


def test_undo_restores_the_evaluation_of_the_version_and_recording_one_adds_no_version(folder, undo):
    history = History.load(folder).with_change(load_model(folder), make(3), "correct", {})
    measure(folder)
    assert History.load(folder).version == 3
    save_model(folder, make(3), history=history)
    assert "evaluation" not in read_config(folder).provenance and "75.0" not in (folder / "README.md").read_text()
    undo(folder)
    assert read_config(folder).provenance["evaluation"]["model"]["accuracy"] == 0.75
    assert "75.0" in (folder / "README.md").read_text()


def test_all_views_of_the_shots_are_saved(tmp_path):
    model = make(0, views=3)
    fit = {"fit": {"views": {"count": 3, "seed": 5}}}
    again = load_model(save_model(tmp_path / "model", replace(model, support=replace(model.support, provenance=fit))))
    np.testing.assert_array_equal(again.support.X, model.support.X)
    assert again.support.X.shape == (12, 3, 32) and again.support.provenance["fit"] == fit["fit"]
    np.testing.assert_array_equal(again.support.plain, make(0).support.X)
    assert load_model(save_model(tmp_path / "single", make(0, views=1))).support.X.shape == (12, 32)


# -- Others meanwhile, and what goes wrong


def test_saving_over_a_change_of_another_process_is_refused(folder):
    mine, loaded = History.load(folder), load_model(folder)
    change(folder, 5, by="bob")
    before = tree(folder)
    with pytest.raises(ArtifactError, match="was changed by someone else since it was loaded: load it again"):
        save_model(folder, make(6), history=mine.with_change(loaded, make(6), "correct", {}))
    with pytest.raises(ArtifactError, match="changed by someone else"):
        save_model(folder, loaded, history=mine)
    assert tree(folder) == before


def test_no_change_is_lost_when_many_processes_save_at_once(tmp_path):
    place, made = save_model(tmp_path / "model", make(0)), [make(i) for i in range(1, 4)]

    def work(name):
        done = 0
        while done < 3:
            history = History.load(place)
            try:
                after = history.with_change(made[done], made[done], "correct", {"number": done}, by=name)
                save_model(place, made[done], history=after)
            except ArtifactError as error:
                assert "someone else" in str(error)
            else:
                done += 1

    threads = [threading.Thread(target=work, args=(f"worker {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    changes = History.load(place).changes
    assert [one.version for one in changes] == list(range(1, 14))
    for i in range(4):
        assert [one.facts["number"] for one in changes if one.by == f"worker {i}"] == [0, 1, 2]
    assert os.listdir(tmp_path) == ["model"]


def test_waiting_for_a_locked_folder_times_out(folder, monkeypatch):
    monkeypatch.setattr(module, "LOCK_TIMEOUT_SECONDS", 0.05)
    with FileLock(folder / "arrays" / ".lock"), pytest.raises(ArtifactError, match="changed by another process"):
        change(folder, 5)
    change(folder, 5)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_everything_as_it_was(call, folder, tmp_path, monkeypatch):
    history, before = History.load(folder).with_change(load_model(folder), make(5), "correct", {}), tree(tmp_path)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(ArtifactError, match="No space left"):
        save_model(folder, make(5), history=history)
    monkeypatch.undo()
    assert tree(tmp_path) == before and os.listdir(tmp_path) == ["model"]


def test_a_saver_that_waits_while_the_first_save_of_a_new_folder_fails_saves_its_model(tmp_path, monkeypatch):
    place, commit = tmp_path / "model", module._commit
    waiting = threading.Thread(target=save_model, args=(place, make(5)))

    def fail(*_):
        monkeypatch.setattr(module, "_commit", commit)
        waiting.start()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_commit", fail)
    with pytest.raises(ArtifactError, match="No space left"):
        save_model(place, make(0))
    waiting.join()
    assert which(load_model(place)) == 5


def test_a_failed_save_removes_no_file_of_a_person(folder, tmp_path, monkeypatch):
    mine = folder / "arrays" / "new-notes.txt"
    mine.touch()
    monkeypatch.setattr(module, "_commit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        change(folder, 5)
    assert mine.exists()
    other = tmp_path / "other" / "arrays" / "new-run.npy"
    other.parent.mkdir(parents=True)
    other.touch()
    with pytest.raises(ArtifactError, match="holds other files than a model"):
        save_model(tmp_path / "other", make(0))


def test_a_change_that_was_killed_before_its_commit_is_in_no_log(tmp_path, monkeypatch):
    place, killed = save_model(tmp_path / "model", make(0)), tmp_path / "killed"
    monkeypatch.setattr(module, "_commit", lambda *_: shutil.copytree(place, killed) and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        change(place, 1)
    assert (log(killed), which(load_model(killed))) == ([(1, "fit", 1)], 0)


def test_what_a_save_could_not_read_stays_and_a_config_of_another_version_is_not_taken_for_one(folder, tmp_path):
    first = find_snapshot(folder, History.load(folder).changes[0].config)
    arrays = folder / array_file("head", first.config.files["head"])
    arrays.rename(tmp_path / "away")
    change(folder, 5)
    (tmp_path / "away").rename(arrays)
    undo_by_files(folder, 1)
    assert which(load_model(folder)) == 0
    second, third = (folder / history_file("config", each.config) for each in History.load(folder).changes[1:3])
    second.write_bytes(third.read_bytes())
    for undo in (undo_by_files, undo_by_model):
        with pytest.raises(ArtifactError, match="was altered"):
            undo(folder, 2)


def test_ctrl_c_after_the_commit_leaves_the_new_model(folder, monkeypatch):
    def interrupt(path):
        if path == folder:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "sync_folder", interrupt)
    with pytest.raises(KeyboardInterrupt):
        change(folder, 5)
    assert which(load_model(folder)) == 5 and log(folder)[-1] == (4, "correct", 4)


def test_files_of_an_earlier_version_that_are_copied_in_are_a_change(folder, tmp_path, undo):
    old = tree(save_model(tmp_path / "old", make(0)))
    for name, data in old.items():
        (folder / name).write_bytes(data)
    assert log(folder)[-1] == (4, "fit", 4)
    assert History.load(folder).changes[-1].facts["recorded"] is False
    change(folder, 7)
    assert log(folder)[3:] == [(4, "fit", 4), (5, "correct", 5)]
    undo(folder)
    assert which(load_model(folder)) == 0
    undo(folder, to=2)
    assert which(load_model(folder)) == 1


def test_the_first_versions_own_files_copied_back_are_a_change_too(tmp_path):
    place = save_model(tmp_path / "model", make(0))
    old = tree(place)
    change(place, 1)
    for name, data in old.items():
        (place / name).write_bytes(data)
    change(place, 2)
    assert log(place) == [(1, "fit", 1), (2, "correct", 2), (3, "fit", 3), (4, "correct", 4)]


@pytest.mark.parametrize(
    ("words", "spoil"),
    [
        ("can't be read", lambda raw: json.dumps(raw)[:-20]),
        ("can't be read", lambda _: "[" * 100_000),
        ("is damaged", lambda _: "[]"),
        ("is larger than", lambda _: " " * 5001),
        ("format 99.*update", lambda raw: raw.update(format=99)),
        ("changes", lambda raw: raw.update(changes=[])),
        ("surprise", lambda raw: raw["changes"][0].update(surprise=1)),
        ("don't follow", lambda raw: raw.update(changes=raw["changes"][::2])),
        ("don't follow", lambda raw: raw["changes"][2].update(key=raw["changes"][1]["key"])),
        ("don't follow", lambda raw: raw["changes"][0].update(content=3)),
        ("content", lambda raw: raw["changes"][2].update(content=-1)),
        ("config", lambda raw: raw["changes"][2].update(config="../../x")),
    ],
)
def test_a_damaged_log_is_named_and_nothing_is_written_over_it(words, spoil, folder, monkeypatch):
    (path,) = (folder / "history").glob("log-*.json")
    raw = json.loads(path.read_text())
    path.write_text(spoil(raw) or json.dumps(raw))
    if words == "is larger than":
        monkeypatch.setattr(module, "MAX_LOG_BYTES", 5000)
    before = tree(folder)
    assert which(load_model(folder)) == 2  # who wants answers only is not bothered
    history = History.load(folder)
    with pytest.raises(ArtifactError, match=words):
        history.undo()
    with pytest.raises(ArtifactError, match=words):
        history.with_change(make(2), make(3), "correct", {})
    with pytest.raises(ArtifactError, match=words):
        save_model(folder, make(3))
    assert tree(folder) == before


def test_no_name_in_a_history_leads_out_of_it(folder, tmp_path):
    path = folder / history_file("config", History.load(folder).changes[0].config)
    for name in ("../../secret", "/etc/passwd", "0" * 63 + "/"):
        rewrite_config(path, lambda raw, name=name: raw["files"].update(head=name))
        with pytest.raises(ArtifactError, match="files.head"):
            History.load(folder).undo(to=1)


@pytest.mark.parametrize(
    "name",
    ["config.json", "README.md", "arrays", "history", "head", "arrays/support-*", "history/config-*", "history/log-*"]
    + ["arrays/.lock", "arrays/new-config.json", "arrays/new-file"],
)
def test_no_link_in_the_folder_is_followed(name, folder, tmp_path):
    current = {read_config(folder).files["support"][:16]}
    others = (path for path in folder.glob(name) if path.stem.partition("-")[2] not in current)
    path = array_path(folder, name) if name == "head" else next(others, folder / name)
    calls = [lambda: save_model(folder, make(5)), lambda: [undo_by_model(folder, to) for to in (1, 2)]]
    calls += [lambda: load_model(folder)] if name in ("config.json", "head", "arrays") else []
    if path.exists():
        path.rename(tmp_path / "elsewhere")
    else:
        (tmp_path / "elsewhere").write_text("years of work")
    path.symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path)
    for call in calls:
        with pytest.raises(ArtifactError, match="links are not followed"):
            call()
    assert tree(tmp_path) == before


def test_altered_arrays_are_refused_and_written_anew_by_a_save_of_the_same_model(folder):
    loaded, before = load_model(folder), (folder / "config.json").read_bytes()
    for path in (folder / "arrays").glob("*.safetensors"):
        flip_last_bit(path)
    for undo in (undo_by_files, undo_by_model):
        with pytest.raises(ArtifactError, match="was altered"):
            undo(folder)
    assert (folder / "config.json").read_bytes() == before
    save_model(folder, loaded, history=History.load(folder))
    assert which(load_model(folder)) == 2


def test_the_version_in_the_folder_is_stored_after_an_undo_that_is_not_saved(folder):
    assert History.load(folder).undo()[0].stored_versions() == [1, 2, 3, 4]


def test_a_damaged_config_does_not_keep_a_new_fit_out(folder):
    (folder / "config.json").write_text("{")
    save_model(folder, make(5))
    assert log(folder)[-1] == (4, "fit", 4)
    assert History.load(folder).stored_versions() == [1, 2, 4]


def test_a_folder_that_is_a_link_stays_one_and_facts_are_what_json_can_hold(folder, tmp_path):
    (tmp_path / "current").symlink_to(folder)
    name = os.fsdecode(b"caf\xe9.jpg")  # names need not be characters
    change(tmp_path / "current", 5, pair=(1, 2), picture=name)
    assert (tmp_path / "current").is_symlink() and which(load_model(folder)) == 5
    assert History.load(folder).changes[-1].facts == {"pair": [1, 2], "picture": name}
    for other in (object(), float("nan"), np.float32(1)):
        with pytest.raises(InputError, match="can't hold"):
            History.new(make(0)).with_change(make(0), make(1), "correct", {"a": other})


# -- Every order of things, against a plain list


class Versions(RuleBasedStateMachine):
    """A folder beside a list of (content's version, number of the model)."""

    def __init__(self):
        super().__init__()
        self.place = tempfile.TemporaryDirectory()
        self.folder = Path(self.place.name) / "model"
        self.versions, self.gone, self.made = [], set(), 0
        self.fit(0)

    def teardown(self):
        self.place.cleanup()

    def model(self, number):
        """Model `number`; no two versions have the same files."""
        self.made += 1
        return replace(MODELS[number], prompts={**MODELS[number].prompts, "cat": [f"cat {self.made}."]})

    def added(self, content, number):
        self.versions.append((content, number))
        last = dict.fromkeys(content for content, _ in reversed(self.versions))
        self.gone |= set(last) - {1, *list(last)[:3]}

    @rule(number=st.integers(0, 5))
    def fit(self, number):
        save_model(self.folder, self.model(number))
        self.added(len(self.versions) + 1, number)

    @rule(number=st.integers(0, 5))
    def change(self, number):
        history, before, after = History.load(self.folder), load_model(self.folder), self.model(number)
        save_model(self.folder, after, history=history.with_change(before, after, "correct", {}))
        self.added(len(self.versions) + 1, number)

    @rule(steps=st.lists(st.integers(0, 5), min_size=2, max_size=3))
    def several_changes_then_save(self, steps):
        history, before = History.load(self.folder), load_model(self.folder)
        for number in steps:
            after = self.model(number)
            history = history.with_change(before, after, "correct", {})
            before = after
            self.added(len(self.versions) + 1, number)
        save_model(self.folder, before, history=history)

    @precondition(lambda self: self.versions[-1][0] > 1)
    @rule()
    def undo(self):
        goal = self.versions[self.versions[-1][0] - 2]
        self.go(None, goal)

    @rule(data=st.data())
    def undo_to(self, data):
        to = data.draw(st.integers(1, len(self.versions)))
        if self.versions[to - 1][0] != self.versions[-1][0]:
            self.go(to, self.versions[to - 1])

    def go(self, to, goal):
        if goal[0] in self.gone:
            with pytest.raises(InputError, match="no longer stored"):
                History.load(self.folder).undo(to)
            return
        (undo_by_files, undo_by_model)[len(self.versions) % 2](self.folder, to)
        self.added(*goal)

    @rule()
    def move(self):
        other = self.folder.with_name("other")
        save_model(other, load_model(self.folder), history=History.load(self.folder))
        self.folder, before = self.folder.with_name("next"), self.folder
        before.rename(before.with_name(f"old-{len(os.listdir(self.place.name))}"))
        other.rename(self.folder)

    @invariant()
    def the_folder_is_as_the_list_says(self):
        history = History.load(self.folder)
        assert [one.content for one in history.changes] == [content for content, _ in self.versions]
        X = load_file(array_path(self.folder, "support"))["X"]
        np.testing.assert_array_equal(X, MODELS[self.versions[-1][1]].support.X)
        stays = [i for i, (content, _) in enumerate(self.versions, start=1) if content not in self.gone]
        assert history.stored_versions() == stays
        configs = [self.folder / "config.json", *self.folder.glob("history/config-*.json")]
        assert len(configs) == len({self.versions[i - 1][0] for i in stays})
        parts = [part for path in configs for part in json.loads(path.read_bytes())["files"].items()]
        named = {f"{name}-{sha256[:16]}.safetensors" for name, sha256 in parts}
        assert {path.name for path in (self.folder / "arrays").glob("*.safetensors")} == named


MODELS = [make(i) for i in range(6)]


def test_random_sequences_of_saves_and_undos_match_a_plain_list(monkeypatch):
    monkeypatch.setattr(module, "MAX_SNAPSHOTS", 3)
    how = {"phases": [Phase.generate], "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much]}
    fixed = settings(max_examples=8, stateful_step_count=10, deadline=None, derandomize=True, database=None, **how)
    run_state_machine_as_test(Versions, settings=fixed)
