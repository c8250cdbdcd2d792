"""The history of a model: its versions, who made them, and undo.

The folder ``history`` has ``log-HASH.json`` with one `Change` per version, and ``config-HASH.json`` for each earlier
version that is stored. HASH is the start of a `Snapshot.digest`. The log has that of the current model: the replacement
of ``config.json`` makes the log beside it valid that the save has written before.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pydantic import Field, ValidationError

from clipadapter.errors import ArtifactError, InputError
from clipadapter.persistence.format import (
    FrozenModel,
    ModelConfig,
    Snapshot,
    check_format,
    describe_first_error,
    read_consistently,
    read_file,
    read_snapshot,
)
from clipadapter.runtime.model_folder import HISTORY_FOLDER, list_own_files

if TYPE_CHECKING:
    from clipadapter.persistence.model import Model

LOG_FORMAT = 1
MAX_LOG_BYTES = 256 << 20
MAX_SNAPSHOTS = 20  # snapshots that are stored besides the first one: the latest ones
TIME_PATTERN = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"
Log = tuple["Change", ...]


class Change(FrozenModel):
    """One version of a model."""

    version: int = Field(ge=1)  # number of the version, from 1
    action: str = Field(min_length=1, max_length=100)  # what was done: "fit", "add-class", "undo" and so on
    facts: dict[str, Any] = Field(default_factory=dict)  # details: names of classes and pictures, counts
    by: str = Field(default="", max_length=200)  # author of the change, if known
    when: str = Field(pattern=TIME_PATTERN)  # UTC time
    # Number of the snapshot of this version: the version itself; after an undo, the restored version
    content: int = Field(ge=1)
    key: str = Field(pattern="^[0-9a-f]{32}$")  # random key; no other change has it, in whatever folder
    classes: int = Field(default=0, ge=0)  # number of classes after the change
    pictures: int = Field(default=0, ge=0)  # number of shots after the change
    # Digest of the config (see `Snapshot.digest`), if it was written
    config: str = Field(default="", pattern="^([0-9a-f]{64})?$")


class _LogFile(FrozenModel):
    format: int
    changes: list[Change] = Field(min_length=1)


@dataclass(frozen=True, eq=False)
class History:
    """The changes of a model since its fit. No change is ever removed; an undo is one more change.

    A version has a snapshot of the model. The folder of the model keeps the first and the last 20 snapshots. Snapshots
    that are not saved yet are in memory as `Model`, so a model in a history must not be changed in place.
    """

    changes: Log  # all changes; the last one made the current version
    folder: Path | None = None  # folder that the model was loaded from, if any
    models: Mapping[int, Model] = field(default_factory=dict, repr=False)  # snapshots in memory, by version
    damage: str = ""  # why the log in the folder can't be read. The model can be used, but not edited

    @classmethod
    def new(cls, model: Model, by: str = "") -> History:
        """Begin the history of a model that was just fitted."""
        from clipadapter.heads.registry import head_name

        facts = {"head": head_name(type(model.head)) or type(model.head).__name__, "encoder": model.encoder.name}
        return cls((new_change((), "fit", facts, by, **_count(model)),), None, {1: model})

    @classmethod
    def load(cls, folder: str | Path) -> History:
        """Read the history of the model in a folder. A model that was never edited has one change, its fit.

        Call it before `load_model`: a later save then notices a change that another process made between the two.
        """

        def read() -> History:
            current, target = read_snapshot(folder), Path(os.path.realpath(folder))
            try:
                return cls(read_changes(target, current), target)
            except ArtifactError as error:
                return cls((_infer_change(current, ()),), target, damage=str(error))

        return read_consistently(folder, read)

    @property
    def version(self) -> int:
        """Number of the current version."""
        return self.changes[-1].version

    def with_change(self, before: Model, model: Model, action: str, facts: Mapping[str, Any], by: str = "") -> History:
        """Return the history with one more version."""
        self.check()
        change = new_change(self.changes, action, facts, by, **_count(model))
        return self.append(change, {self.changes[-1].content: before, change.version: model})

    def undo(self, to: int | None = None, by: str = "") -> tuple[History, Model]:
        """Restore the model before its last change, or that of version `to`, also of one that was undone."""
        change = self.next_undo(to, by)
        model = self.models.get(change.content)
        if model is None and self.folder is not None:
            model = read_consistently(self.folder, partial(self._read_model, self.folder, change.content))
        if model is None:
            raise self.not_stored(change.content)
        return self.append(change, {change.content: model}), model

    def next_undo(self, to: int | None = None, by: str = "") -> Change:
        """The change that an undo is. Its ``content`` is the version that it restores, that which first had it."""
        self.check()
        current = self.changes[-1].content
        if to is None:
            if current == 1:
                raise InputError("there is nothing to undo: the model is what it was in version 1")
            target, facts = self.changes[current - 2].content, {"undone": current}
        else:
            if not 1 <= to <= self.version:
                raise InputError(f"there is no version {to}: this model has 1 to {self.version}")
            target, facts = self.changes[to - 1].content, {"to": to}
            if target == current:
                raise InputError(f"the model is what it was in version {to}: there is nothing to undo")
        restored = self.changes[target - 1]
        counts = {"classes": restored.classes, "pictures": restored.pictures}
        return new_change(self.changes, "undo", facts, by, content=target, **counts)

    def not_stored(self, number: int) -> InputError:
        """The error about a version whose snapshot is not stored."""
        stored = ", ".join(map(str, self.stored_versions()))
        return InputError(f"version {number} is no longer stored, only its description; stored versions: {stored}")

    def check(self) -> None:
        """Raise ArtifactError if the log can't be read."""
        if self.damage:
            raise ArtifactError(self.damage)

    def stored_versions(self) -> list[int]:
        """Return the versions that can be restored, in ascending order."""
        stored = {self.changes[-1].content, *self.models}
        if self.folder is not None:
            current = ""
            with suppress(ArtifactError):
                current = read_snapshot(self.folder).digest
            stored |= {
                change.version
                for change in self.changes
                if change.config
                and (change.config == current or (self.folder / history_file("config", change.config)).is_file())
            }
        return [change.version for change in self.changes if change.content in stored]

    def _read_model(self, folder: Path, number: int) -> Model | None:
        from clipadapter.persistence.model import from_snapshot

        stored = find_snapshot(folder, self.changes[number - 1].config)
        return None if stored is None else from_snapshot(stored)

    def append(self, change: Change, models: Mapping[int, Model]) -> History:
        """The history with one more change, and further snapshots in memory."""
        changes = (*self.changes, change)
        in_memory = {**self.models, **models}
        retained = {number: in_memory[number] for number in retained_snapshots(changes) if number in in_memory}
        return replace(self, changes=changes, models=retained)


def _count(model: Model) -> dict[str, int]:
    pictures = len(model.support) or count_shots(model.support.provenance)
    return {"classes": len(model.text.labels), "pictures": pictures}


# ---- Snapshots ----


def history_file(kind: str, digest: str) -> str:
    """Where the log or a config is below the folder of a model."""
    return f"{HISTORY_FOLDER}/{kind}-{digest[:16]}.json"


def find_snapshot(folder: str | Path, digest: str) -> Snapshot | None:
    """The current or an earlier version of the model in a folder, by its digest; None if it is not stored."""
    with suppress(ArtifactError):
        current = read_snapshot(folder)
        if current.digest == digest:
            return current
    return read_version(folder, digest)


def read_version(folder: str | Path, digest: str) -> Snapshot | None:
    """An earlier version; see `find_snapshot`."""
    file = history_file("config", digest)
    if not digest or not os.path.lexists(Path(folder) / file):
        return None
    stored = read_snapshot(folder, file)
    if stored.digest != digest:
        raise ArtifactError(f"{Path(folder) / file} was altered: it is not the config that the history names")
    return stored


def retained_snapshots(changes: Sequence[Change]) -> list[int]:
    """Numbers of the stored snapshots, ascending: the first one and those that the model had last."""
    latest_first = dict.fromkeys(change.content for change in reversed(changes))
    return sorted({changes[0].content, *list(latest_first)[:MAX_SNAPSHOTS]})


# ---- The log ----


def read_changes(folder: Path, current: Snapshot | None) -> Log:
    """All changes of the model in a folder. The last one is inferred if the log does not know the current model."""
    log = _read_log(folder, "" if current is None else current.digest)
    if current is None or (log and log[-1].config == current.digest):
        return log
    return (*log, _infer_change(current, log))


def _read_log(folder: Path, digest: str) -> Log:
    """Read and check the log of the model with a digest; () if there is no log."""
    files = {file for file in list_own_files(folder) if file.startswith(f"{HISTORY_FOLDER}/log-")}
    if not files:
        return ()
    file = history_file("log", digest)
    if file not in files:  # as when the files of an earlier version were copied into the folder
        file = max(files, key=lambda each: ((folder / each).stat().st_size, each))
    path = folder / file
    todo = f"move the folder {folder / HISTORY_FOLDER} away to continue without the history"
    data = read_file(folder, file, MAX_LOG_BYTES, f"it is no history; {todo}")
    try:
        raw = json.loads(data)
        check_format(path, raw, LOG_FORMAT)
        changes = tuple(_LogFile.model_validate(raw).changes)
    except ValidationError as error:
        raise ArtifactError(f"{path} is damaged: {describe_first_error(error)}; {todo}") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} can't be read: {error}; {todo}") from error
    if not _is_consistent(changes):
        raise ArtifactError(f"{path} is damaged: its versions don't follow each other; {todo}")
    return changes


def _is_consistent(changes: Log) -> bool:
    """Whether versions count up, keys are unique, and undos name the version that first had their snapshot."""
    if [change.version for change in changes] != list(range(1, len(changes) + 1)):
        return False
    has_origins = all(
        change.content <= change.version and changes[change.content - 1].content == change.content for change in changes
    )
    return has_origins and len({change.key for change in changes}) == len(changes)


def log_bytes(changes: Sequence[Change]) -> bytes:
    """Content of the log file."""
    # Not the JSON of pydantic, which refuses file names that are not valid UTF-8.
    lines = ",\n".join(json.dumps(change.model_dump(mode="python")) for change in changes)
    return f'{{"format": {LOG_FORMAT}, "changes": [\n{lines}\n]}}\n'.encode()


def merge_logs(folder: str | Path, on_disk: Sequence[Change], ours: Sequence[Change]) -> Log:
    """The log in a folder, and the changes that a model saved into it adds: new ones, or all if it is another model."""
    keys = [change.key for change in on_disk]
    offset = keys.index(ours[0].key) if ours[0].key in keys else len(keys)
    shared = keys[offset:]
    if shared != [change.key for change in ours[: len(shared)]]:
        raise ArtifactError(f"{folder} was changed by someone else since it was loaded: load it again")
    added = [
        change.model_copy(update={"version": change.version + offset, "content": change.content + offset})
        for change in ours[len(shared) :]
    ]
    return (*on_disk, *added)


def new_change(log: Log, action: str, facts: Mapping[str, Any], by: str = "", **fields: Any) -> Change:
    """Make the next change of a log. Time, key and snapshot are new unless ``fields`` have others."""
    version = len(log) + 1
    try:
        json_facts = json.loads(json.dumps(dict(facts), allow_nan=False))
        made = {"version": version, "content": version, "when": _utc_now(), "key": uuid4().hex, **fields}
        return Change(action=action, facts=json_facts, by=by, **made)
    except ValidationError as error:
        raise InputError(f"the history can't hold this: {describe_first_error(error)}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"the history can't hold these facts: {error}") from error


def new_fit(model: ModelConfig, log: Log, recorded: bool = True, **fields: Any) -> Change:
    """Make the change "fit" that led to a model; ``recorded`` is False if there is a log that does not know it."""
    facts = {"head": model.head.name, "encoder": model.encoder.name, **({} if recorded else {"recorded": False})}
    counts = {"classes": len(model.class_names), "pictures": count_shots(model.provenance)}
    return new_change(log, **{"action": "fit", "facts": facts, **counts, **fields})


def _infer_change(current: Snapshot, log: Log) -> Change:
    """Infer the change behind a model that the log does not know. Repeated calls give the same key."""
    created = str(current.config.provenance.get("created", ""))
    # The key depends on the last change too: files of an earlier version that were copied back are a new change.
    key = hashlib.sha256(f"{log[-1].key if log else ''} {current.digest}".encode()).hexdigest()[:32]
    when = created if re.fullmatch(TIME_PATTERN, created) else _utc_now()
    return new_fit(current.config, log, recorded=not log, when=when, key=key, config=current.digest)


def count_shots(provenance: Mapping[str, Any]) -> int:
    """Number of shots that a provenance names."""
    shots = provenance.get("shots")
    counts = shots.values() if isinstance(shots, Mapping) else ()
    return sum(count for count in counts if isinstance(count, int) and count > 0)


def _utc_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
