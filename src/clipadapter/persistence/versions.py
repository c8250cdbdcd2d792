"""The versions of a model in its folder: their history, how one is saved, and undo.

The folder ``history`` has ``log-HASH.json`` with one `Change` per version, and ``config-HASH.json`` for each earlier
version that is stored. HASH is the start of a `Snapshot.digest`. The log has that of the current model: the replacement
of ``config.json`` makes the log beside it valid that the save has written before.

A save first writes the files that the folder lacks: arrays, configs of earlier versions, the log. Their names have
their hashes, so the old model and its history stay complete. Then ``config.json`` is replaced, and names the new ones:
that is the commit. At last the model card is replaced, and files that neither the new config nor its history names are
removed. A process that is killed before the replacement leaves the old model, and after it the new one; the next save
removes what is left over. A reader whose files were removed meanwhile reads again (`read_consistently`). One process
saves at a time.

Only files with names of our own are written or removed, one by one, and none of them may be a link. Other files in the
folder are never touched, so no moment exists in which they could be lost.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from pydantic import Field, ValidationError

from clipadapter.errors import ArtifactError, InputError, MethodWarning
from clipadapter.persistence.format import (
    FrozenModel,
    ModelConfig,
    Snapshot,
    check_format,
    check_target_folder,
    config_bytes,
    config_stamp,
    describe_first_error,
    make_evaluation,
    read_config,
    read_consistently,
    read_file,
    read_snapshot,
)
from clipadapter.runtime.model_folder import (
    ARRAYS_FOLDER,
    CARD_FILE,
    CONFIG_FILE,
    HISTORY_FOLDER,
    LOCK_FILE,
    array_file,
    list_own_files,
    model_path,
)
from clipadapter.utils.files import folder_without_links, sync_folder
from clipadapter.utils.formatting import format_count

if TYPE_CHECKING:
    from clipadapter.heads import Head
    from clipadapter.persistence.model import Model

LOG_FORMAT = 1
MAX_LOG_BYTES = 256 << 20
MAX_SNAPSHOTS = 20  # snapshots that are stored besides the first one: the latest ones
TIME_PATTERN = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"
HEADS_WITHOUT_PICTURES = ("linear-probe", "clip-adapter", "gda")
"""Heads that a warning recommends to whoever wants no features of pictures in the model."""
LOCK_TIMEOUT_SECONDS = 60.0
Log = tuple["Change", ...]
T = TypeVar("T")


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
    def new(cls, model: Model) -> History:
        """Begin the history of a model that was just fitted."""
        from clipadapter.heads.registry import registered_name

        facts = {"head": registered_name(model.head), "encoder": model.encoder.name}
        return cls((new_change((), "fit", facts, "", **_count(model)),), None, {1: model})

    @classmethod
    def load(cls, folder: str | Path) -> History:
        """Read the history of the model in a folder. A model that was never edited has one change, its fit.

        Call it before `load_model`: a later save then notices a change that another process made between the two.
        """

        def read(path: str | Path) -> History:
            current, target = read_snapshot(path), Path(os.path.realpath(path))
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
        from clipadapter.persistence.model import from_snapshot  # late: `restore_version` needs no torch

        change = self.next_undo(to, by)
        model = self.models.get(change.content) or self.read_stored(change.content, self.folder, from_snapshot)
        return self.append(change, {change.content: model}), model

    def next_undo(self, to: int | None, by: str) -> Change:
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

    def read_stored(self, number: int, folder: str | Path | None, read: Callable[[Snapshot], T]) -> T:
        """What a function makes of the snapshot of a version in a folder, if it has one."""

        def read_version(folder: str | Path) -> T | None:
            snapshot = find_snapshot(folder, self.changes[number - 1].config)
            return None if snapshot is None else read(snapshot)

        stored = None if folder is None else read_consistently(folder, read_version)
        if stored is None:
            numbers = ", ".join(map(str, self.stored_versions()))
            raise InputError(f"version {number} is no longer stored, only its description; stored versions: {numbers}")
        return stored

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
            files = {history_file("config", current), *list_own_files(self.folder)}
            named = [each for each in self.changes if each.config]
            stored |= {each.version for each in named if history_file("config", each.config) in files}
        return [change.version for change in self.changes if change.content in stored]

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


def find_snapshot(folder: str | Path, digest: str, current: Snapshot | None = None) -> Snapshot | None:
    """The current version of the model in a folder, or an earlier one, by its digest; None if it is not stored."""
    with suppress(ArtifactError):
        current = current or read_snapshot(folder)
        if digest == current.digest:
            return current
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
    counts_up = [change.version for change in changes] == list(range(1, len(changes) + 1))
    # Keys are unique, and undos name the version that first had their snapshot.
    has_origins = counts_up and all(
        change.content <= change.version and changes[change.content - 1].content == change.content for change in changes
    )
    if not has_origins or len({change.key for change in changes}) < len(changes):
        raise ArtifactError(f"{path} is damaged: its versions don't follow each other; {todo}")
    return changes


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
    """Number of pictures that a provenance names; with several labels a picture is a shot of several classes."""
    shots, pictures = provenance.get("shots"), provenance.get("pictures")
    if type(pictures) is int and pictures > 0:
        return pictures
    counts = shots.values() if isinstance(shots, Mapping) else ()
    return sum(count for count in counts if isinstance(count, int) and count > 0)


def _utc_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


# ---- Save ----


def save_model(folder: str | Path, model: Model, *, keep_support: bool = True, history: History | None = None) -> Path:
    """Save a model to a folder, or as a new version of the model in it. The earlier model can be restored.

    Without ``keep_support`` the features of the shots are removed from earlier versions too. Heads that compare with
    shots have features of their own (`Head.picture_features`), which stay, with a `MethodWarning`. ``history`` is None
    for a model that was just fitted. If the folder has another history, this one is appended to it.
    """
    snapshot = _snapshot_of(model, keep_support)
    if not keep_support and (count := count_stored_pictures(model.head)):
        warnings.warn(
            MethodWarning(
                f"the shots are left out, but the model still has the features of {format_count(count, 'picture')}: "
                f"the head {snapshot.config.head.name} compares with them. Heads such as "
                f"{', '.join(HEADS_WITHOUT_PICTURES)} store none"
            ),
            stacklevel=2,
        )
    return write_snapshot(folder, snapshot, history, keep_support=keep_support)


def count_stored_pictures(head: Head) -> int:
    """How many pictures' features the learned arrays of a head have; a model without its shots still has them."""
    arrays = [getattr(head, name, None) for name in head.picture_features]
    return max((len(rows) for rows in arrays if rows is not None), default=0)


def restore_version(folder: str | Path, to: int | None = None, by: str = "") -> History:
    """Restore an earlier version of the model in a folder, as a new version; see `History.undo`. No array is parsed."""
    history = History.load(folder)
    change = history.next_undo(to, by)
    restored = history.append(change, {})
    write_snapshot(folder, history.read_stored(change.content, folder, lambda snapshot: snapshot), restored)
    return restored


def record_evaluation(folder: str | Path, metrics: Mapping[str, Any]) -> list[Path]:
    """Record an evaluation in a saved model, and make its model card again.

    A card that a person has edited stays as it is. The conversion for prediction without torch is looked up by the hash
    of ``config.json``, so it is made again at the next use.
    """
    from clipadapter.persistence.card import make_card

    read_config(folder)
    with _lock_folder(folder) as target:
        config = read_config(folder)  # again: another process may have saved a model before the lock was ours
        provenance = make_evaluation(metrics, config).recorded_in(config.provenance)
        updated = config.model_copy(update={"provenance": provenance})
        card = make_card(folder, updated)
        _commit(target, config_bytes(updated), card)
    return [Path(folder) / name for name in ([] if card is None else [CARD_FILE]) + [CONFIG_FILE]]


def write_snapshot(
    folder: str | Path,
    snapshot: Snapshot,
    history: History | None = None,
    *,
    change: Mapping[str, Any] = MappingProxyType({}),
    card: bytes | None = None,
    keep_support: bool = True,
) -> Path:
    """Write a snapshot into a folder. Without a history it is one change, a fit or ``change`` with action and facts."""
    from clipadapter.persistence.card import make_card  # late: to read a history takes a quarter of a second less

    with _lock_folder(folder) as target:
        save = _Save(target, history or History(()), keep_support)
        if (target / CONFIG_FILE).exists():
            with save.tolerant():  # a damaged config does not keep a new model out
                save.current = read_snapshot(target)
        log = read_changes(target, save.current)
        changes: Log = ()  # a first fit needs no log
        if history is not None:
            changes = merge_logs(folder, log, history.changes)
            if save.current is not None and len(changes) == len(log):
                stored = save.current if keep_support else save.current.without_shots()
                if not stored.is_same_model(snapshot.config):  # it was changed by other means
                    changes = (*changes, new_fit(snapshot.config, log, recorded=False))
        elif log:
            changes = (*log, new_fit(snapshot.config, log, **change))
        if changes:
            if save.current is not None:  # else a log whose config is never committed would be taken for its log
                save.write(history_file("log", save.current.digest), log_bytes(log), stays=False)
            snapshot = save.write_history(changes, snapshot)
        save.write_arrays(snapshot, check=True)
        made = make_card(folder, snapshot.config)  # None: a person has edited it, so that no other replaces it
        _commit(target, snapshot.raw, made if made is None or card is None else card)
        # The save is done. What can't be removed now is removed by the next one. What could not be read may be readable
        # again, so everything stays, unless the shots must go.
        if save.has_read_all or not keep_support:
            _remove(target, set(list_own_files(target)) - save.named)
    return Path(folder)


@dataclass
class _Save:
    """Writes the files that the new config and its history name, if the folder lacks them."""

    target: Path  # the locked folder, without links
    history: History  # that is saved
    keep_support: bool
    current: Snapshot | None = None  # the model in the folder
    named: set[str] = field(default_factory=set)
    has_read_all: bool = True

    @contextmanager
    def tolerant(self) -> Iterator[None]:
        """Continue without a version that can't be read."""
        try:
            yield
        except ArtifactError:
            self.has_read_all = False

    def write_arrays(self, snapshot: Snapshot, check: bool = False) -> None:
        """Those of earlier versions are not read again: one that was altered since is noticed by who restores it."""
        for name, sha256 in snapshot.config.files.items():
            file = array_file(name, sha256)
            self.named.add(file)
            if check or not (self.target / file).exists():
                self.write(file, snapshot.read(name))

    def write(self, file: str, data: bytes, stays: bool = True) -> None:
        if stays:
            self.named.add(file)
        path = self.target / file
        if path.exists() and path.stat().st_size == len(data) and path.read_bytes() == data:
            return
        path.parent.mkdir(exist_ok=True)
        # In one step: a damaged file, and the log of an equal config, are replaced while others may read them.
        _write_and_sync(self.target / ARRAYS_FOLDER / "new-file", data).replace(path)

    def write_history(self, changes: Log, snapshot: Snapshot) -> Snapshot:
        """Write the log, and the configs and arrays of earlier versions. The snapshot of the current version."""
        number = changes[-1].content
        before = self.find(changes[number - 1])
        if before is not None and before.is_same_model(snapshot.config):
            # A restored version keeps its time and its evaluation.
            snapshot = replace(snapshot, config=before.config, raw=before.raw)
        digest = snapshot.digest
        digests = {changes[-1].version: digest, number: digest}
        for i in retained_snapshots(changes):
            stored = None if i == number else self.find(changes[i - 1]) or self.find_in_memory(changes[i - 1])
            if stored is None:
                continue
            with self.tolerant():
                self.write_arrays(stored)
                digests[i] = stored.digest
                self.write(history_file("config", digests[i]), stored.raw)
        log = [each.model_copy(update={"config": digests.get(each.version, each.config)}) for each in changes]
        self.write(history_file("log", digest), log_bytes(log))
        return snapshot

    def find(self, change: Change) -> Snapshot | None:
        """The snapshot of a version in this folder, or else in the one that the history was loaded from."""
        for folder in dict.fromkeys((self.target, self.history.folder or self.target)):
            with self.tolerant():
                current = self.current if folder == self.target else None
                stored = find_snapshot(folder, change.config, current)
                if stored is not None:
                    return stored if self.keep_support else stored.without_shots()
        return None

    def find_in_memory(self, change: Change) -> Snapshot | None:
        """The snapshot of a version that was not saved yet."""
        number = next((each.version for each in self.history.changes if each.key == change.key), 0)
        model = self.history.models.get(number)
        return None if model is None else _snapshot_of(model, self.keep_support)


def _commit(target: Path, config: bytes, card: bytes | None) -> None:
    """Replace the config and the card. What the config names was written before."""
    files = {CONFIG_FILE: config, **({} if card is None else {CARD_FILE: card})}
    new = {name: _write_and_sync(target / ARRAYS_FOLDER / f"new-{name}", data) for name, data in files.items()}
    for folder in (ARRAYS_FOLDER, HISTORY_FOLDER):
        sync_folder(target / folder)
    new[CONFIG_FILE].replace(target / CONFIG_FILE)
    with suppress(OSError):  # the save is done; the next one makes the card again
        sync_folder(target)
        if card is not None:
            new[CARD_FILE].replace(target / CARD_FILE)


def _write_and_sync(path: Path, data: bytes) -> Path:
    """Write a new file; what a killed save left there is removed, and a link is not followed."""
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return path


def _remove(target: Path, files: Iterable[str]) -> None:
    for file in files:
        with suppress(OSError):
            (target / file).unlink(missing_ok=True)


@contextmanager
def _lock_folder(folder: str | Path) -> Iterator[Path]:
    """Lock the folder of a model, and give its path without links. A save that fails leaves no new files in it."""
    from filelock import FileLock, Timeout  # late, as the card

    target = Path(os.path.realpath(folder))
    arrays = target / ARRAYS_FOLDER
    try:
        check_target_folder(folder)
        for name in (CONFIG_FILE, CARD_FILE):
            model_path(target, name)
        for name in (ARRAYS_FOLDER, HISTORY_FOLDER):
            folder_without_links(target, name, error=ArtifactError)
        arrays.mkdir(parents=True, exist_ok=True)
        with FileLock(arrays / LOCK_FILE, timeout=LOCK_TIMEOUT_SECONDS):
            before, stamp = set(list_own_files(target)), config_stamp(target)
            try:
                yield target
            except BaseException:
                if config_stamp(target) == stamp:  # Ctrl-C may come after the commit
                    _remove(target, set(list_own_files(target)) - before)
                    # ARRAYS_FOLDER stays, also a new one: another process may wait for its lock.
                    with suppress(OSError):
                        (target / HISTORY_FOLDER).rmdir()  # if it is empty
                raise
    except Timeout:
        raise ArtifactError(f"{folder} is being changed by another process: try again when it has ended") from None
    except OSError as error:
        reason = error.strerror or error
        raise ArtifactError(f"can't write {folder}: {reason}; give a folder you may write to") from error


def _snapshot_of(model: Model, keep_support: bool) -> Snapshot:
    from clipadapter.persistence.model import to_snapshot  # late: to restore a version needs no torch

    return to_snapshot(model, keep_support)
