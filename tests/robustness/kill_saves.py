"""Kills processes that write a saved model, before every operation on its files, and looks at what is left.

    python tests/robustness/kill_saves.py FOLDER SEED KILLS FILES

It writes one JSON object: how many processes were killed, how many disks were full, and every rule that was broken.
KILLS of 0 is a kill before every operation of every scenario, without second kills. FILES is how many files a large
folder of a person has.

A child process runs each save. It ends without any clean-up before its n-th operation (`file_operations`); a file that
it was about to sync lacks its last bytes then. A second child then runs the next command, and may be killed in the same
way, also while it recovers. The parent goes on writing into the folders of a person that lie in the model's folder.

Besides, saves run on a disk that is full from their n-th operation on.
"""

import json
import os
import random
import shutil
import signal
import sys
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch

from clipadapter.encoders import create_encoder
from clipadapter.errors import ArtifactError
from clipadapter.features import FeatureSet
from clipadapter.heads import create_head
from clipadapter.persistence import History, Model, load_model, read_config, record_evaluation, save_model
from clipadapter.testing import toy_features

FULL = 28


def make(i):
    """Model i; no two have the same features."""
    X, y, text = toy_features(d=32)
    X = (X + i).astype(np.float32)
    support = FeatureSet(X, tuple(y), text.labels, {"sources": [f"{k}.jpg" for k in range(len(X))]})
    prompts = {name: [f"a {name}."] for name in text.labels}
    return Model(create_head("prototype").fit(X, y, text=text), text, support, prompts, INFO)


def number_of(model):
    """Which model it is."""
    return round(float(model.support.plain[0, 0] - toy_features(d=32)[0][0, 0]))


def run(action, folder, step=None, stop="killed"):
    """Run an action in a child, stopped at its operation number `step` on files; True if it came to its end."""

    def act():
        try:
            with nullcontext() if step is None else getattr(Operations(folder), stop)(step):
                action(folder)
        except ArtifactError as error:
            return FULL if stop == "full" and "No space left" in str(error) else 1
        return 0

    status = status_of_child(act)
    if status not in (0, -signal.SIGKILL, FULL):
        raise AssertionError(f"the command failed after a kill: {status}")
    return status == 0


def change(i):
    """A change to model i, as a version of its own."""

    def act(folder):
        history, before = History.load(folder), load_model(folder)
        save_model(folder, MODELS[i], history=history.with_change(before, MODELS[i], "correct", {}))

    return act


def undo(folder):
    history, model = History.load(folder).undo()
    save_model(folder, model, history=history)


def fit_anew(folder):
    save_model(folder, MODELS[3])


def leave_shots_out(folder):
    save_model(folder, MODELS[3], keep_support=False)


def record(folder):
    config = read_config(folder)
    classes = [{"name": name, "count": 1, "precision": 1.0, "recall": 1.0, "f1": 1.0} for name in config.class_names]
    figures = {"head": config.head.name, "data": "test", "n_test": 3, "skipped": [], "created": "2999-01-01T00:00:00Z"}
    model = {"accuracy": 1.0, "macro_f1": 1.0, "classes": classes}
    record_evaluation(folder, {**figures, "model": model, "baselines": {}})


SCENARIOS = {"change": change(2), "undo": undo, "fit anew": fit_anew}
SCENARIOS |= {"leave shots out": leave_shots_out, "record": record}


class Foreign:
    """Files of a person in a model's folder, one of which they go on writing."""

    def __init__(self, folder):
        self.folder, self.lines = folder, 0
        for path in (".git/objects", "large", "empty", "history/mine"):
            (folder / path).mkdir(parents=True)
        (folder / ".git" / "HEAD").write_text("main")
        (folder / ".git" / "objects" / "a").write_bytes(b"\0" * 5000)
        for i in range(FILES):
            (folder / "large" / f"{i}").touch()
        (folder / "notes.txt").write_text("years of work")
        (folder / "history" / "2026.json").write_text("{}")
        (folder / "history" / "mine" / "log.json").write_text("{}")
        (folder / "link").symlink_to("notes.txt")
        self.log = (folder / ".git" / "log").open("w")
        self.write()
        self.before = self.state()

    def write(self):
        """Go on: a line into an open file, and a new file."""
        self.log.write("a line\n")
        self.log.flush()
        self.lines += 1
        (self.folder / ".git" / f"new-{self.lines}").write_text("new")
        self.before = self.state()

    def state(self):
        """Inode, and content of files that are not many, of all that is the person's."""
        found = {}
        for top in (".git", "large", "empty", "notes.txt", "link", "history/mine", "history/2026.json"):
            path = self.folder / top
            below = sorted(path.rglob("*")) if path.is_dir() else []
            for one in [path, *below]:
                small = one.is_file() and one.parent.name != "large"
                found[str(one.relative_to(self.folder))] = (one.lstat().st_ino, one.read_bytes() if small else None)
        return found

    def lost(self):
        """What is not as it was."""
        now = self.state() if all((self.folder / name).exists() for name in (".git", "large", "empty")) else {}
        return [name for name, value in self.before.items() if now.get(name) != value]

    def close(self):
        self.log.close()


def faults_of(folder, expected):
    """What is wrong with a model in which one of two states is expected, as a reader sees it."""
    model, history = load_model(folder), History.load(folder)
    shots = number_of(model) if len(model.support) else None
    state = (history.version, shots, "evaluation" in model.support.provenance)
    faults = [] if state in expected else [f"{state} is none of {expected}"]
    if not all(one.facts.get("recorded", True) for one in history.changes):
        faults.append("the log does not know the model")
    faults += [f"{number} is not kept" for number in {1, history.version} - set(history.stored_versions())]
    return faults, state


def left_over(folder):
    """Files of the program that neither the config nor its history names."""
    configs = [folder / "config.json", *folder.glob("history/config-*.json")]
    parts = [part for config in configs for part in json.loads(config.read_bytes())["files"].items()]
    named = {f"{name}-{sha256[:16]}.safetensors" for name, sha256 in parts} | {".lock"}
    found = {path.name for path in (folder / "arrays").iterdir()}
    stored = set(History.load(folder).stored_versions())
    kept = {one.config[:16] for one in History.load(folder).changes if one.version in stored}
    history = {path.name for path in (folder / "history").glob("*-*.json")} if (folder / "history").exists() else set()
    unknown = {name for name in history if name.startswith("config-") and name[7:23] not in kept}
    more_logs = sorted(name for name in history if name.startswith("log-"))[1:]
    return [f"left: {sorted(one)}" for one in (found ^ named, unknown, more_logs) if one]


def state_after(action, first, root):
    """The state that an action leaves if nobody kills it."""
    folder = root / "whole" / "model"
    shutil.copytree(first, folder, symlinks=True)
    before = faults_of(folder, [])[1]
    assert run(action, folder)
    after = faults_of(folder, [])[1]
    shutil.rmtree(folder.parent)
    return before, after


def attack(name, first, root, step, stop="killed", second=None):
    """One kill or full disk, perhaps another kill, and the next command; the faults, and how many were stopped."""
    folder = root / "attack" / "model"
    shutil.copytree(first, folder, symlinks=True)
    person, (before, after) = Foreign(folder), STATES[name]
    faults, number = [], 1
    try:
        ended = run(SCENARIOS[name], folder, step, stop)
        number = int(not ended)
        # A disk that is full stops a save as an error; a kill may come after its last operation.
        expected = [before, after] if stop == "killed" else [after if ended else before]
        found, state = faults_of(folder, expected)
        faults += found + [f"lost: {one}" for one in person.lost()]
        faults += left_over(folder) if stop == "full" and not ended else []
        person.write()
        if second is not None and not run(change(1), folder, second):
            number += 1
            found, state = faults_of(folder, [state, (state[0] + 1, 1, False)])
            faults += found + [f"lost: {one}" for one in person.lost()]
            person.write()
        run(change(4), folder)
        found, _ = faults_of(folder, [(History.load(folder).version, 4, False)])
        faults += found + [f"lost after the next command: {one}" for one in person.lost()]
        faults += left_over(folder)
        if os.listdir(folder.parent) != ["model"]:
            faults.append(f"left beside it: {os.listdir(folder.parent)}")
        History.load(folder).undo(to=1)
    except Exception as error:  # noqa: BLE001
        faults.append(f"{type(error).__name__}: {error}")
    finally:
        person.close()
        shutil.rmtree(folder.parent)
    return [f"{name}, {stop} from {step}, then {second}: {one}" for one in faults], number


def first_save(root, step):
    """A kill while a model is written into a new folder; then it is written again."""
    folder = root / "new" / "model"
    folder.parent.mkdir()
    ended = run(fit_anew, folder, step)
    faults = []
    try:
        if (folder / "config.json").exists():
            faults += faults_of(folder, [(1, 3, False)])[0]
        run(fit_anew, folder)
        if number_of(load_model(folder)) != 3:
            faults.append("the second save is not whole")
        faults += left_over(folder)
        if os.listdir(folder.parent) != ["model"]:
            faults.append(f"left beside it: {os.listdir(folder.parent)}")
    except Exception as error:  # noqa: BLE001
        faults.append(f"{type(error).__name__}: {error}")
    shutil.rmtree(folder.parent)
    return [f"first save, kill {step}: {one}" for one in faults], not ended


def until_untouched(attempt):
    """Faults of an attempt at steps 0, 1, ..., up to the first that did nothing, and the number of that."""
    faults = []
    for step in range(10_000):
        found, number = attempt(step)
        faults += found
        if not number:
            return faults, step
    raise AssertionError("there is no end")


def every_operation(first, root):
    """Kills and full disks at every operation of every scenario: faults, and how many operations there are."""
    faults, steps = [], {"killed": {}, "full": {}}
    for (stop, numbers), name in product(steps.items(), SCENARIOS):
        found, numbers[name] = until_untouched(partial(attack, name, first, root, stop=stop))
        faults += found
    found, steps["killed"]["first save"] = until_untouched(partial(first_save, root))
    return faults + found, steps["killed"], steps["full"]


def at_random(first, root, seed, kills):
    """So many kills, and some full disks, drawn at random: faults, kills and disks that were full."""
    rng = random.Random(seed)
    faults, done, full = [], 0, 0
    while done < kills:
        name = rng.choice(list(SCENARIOS))
        found, number = attack(name, first, root, rng.randrange(70), second=rng.randrange(90))
        faults, done = faults + found, done + number
        if rng.randrange(4) == 0 or not full:
            found, was_full = attack(name, first, root, rng.randrange(25), "full")
            faults, full = faults + found, full + was_full
    return faults, done, full


def main(root, seed, kills):
    """Kills before every operation, or as many drawn at random; see the module."""
    first = root / "first"
    save_model(first, MODELS[0])
    change(1)(first)
    STATES.update({name: state_after(action, first, root) for name, action in SCENARIOS.items()})
    if kills:
        faults, done, full = at_random(first, root, seed, kills)
        result = {"kills": done, "full": full, "faults": faults}
    else:
        faults, steps, disks = every_operation(first, root)
        result = {"kills": sum(steps.values()), "full": sum(disks.values()), "steps": steps, "faults": faults}
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    from file_operations import Operations, status_of_child  # beside this file, and found only where it is run

    torch.set_num_threads(1)
    INFO, FILES = create_encoder("toy").info, int(sys.argv[4])
    MODELS = [make(i) for i in range(5)]
    STATES = {}
    main(Path(os.path.realpath(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
