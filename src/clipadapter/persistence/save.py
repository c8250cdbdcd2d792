"""Save a model and its history into a folder: one process at a time; the replacement of ``config.json`` is the commit.

A save first writes the files that the folder lacks: arrays, configs of earlier versions, the log. Their names have
their hashes, so the old model and its history stay complete. Then ``config.json`` is replaced, and names the new ones.
At last the model card is replaced, and files that neither the new config nor its history names are removed. A process
that is killed before the replacement leaves the old model, and after it the new one; the next save removes what is left
over. A reader whose files were removed meanwhile reads again (`read_consistently`).

Only files with names of our own are written or removed, one by one, and none of them may be a link. Other files in the
folder are never touched, so no moment exists in which they could be lost.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from clipadapter.errors import ArtifactError, MethodWarning
from clipadapter.persistence.card import make_card
from clipadapter.persistence.format import (
    Snapshot,
    check_target_folder,
    config_bytes,
    config_stamp,
    make_evaluation,
    read_config,
    read_snapshot,
)
from clipadapter.persistence.history import (
    Change,
    History,
    Log,
    find_snapshot,
    history_file,
    log_bytes,
    merge_logs,
    new_fit,
    read_changes,
    read_version,
    retained_snapshots,
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

HEADS_WITHOUT_PICTURES = ("linear-probe", "clip-adapter", "gda")
"""Heads that a warning recommends to whoever wants no features of pictures in the model."""
LOCK_TIMEOUT_SECONDS = 60.0


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
    snapshot = find_snapshot(folder, history.changes[change.content - 1].config)
    if snapshot is None:
        raise history.not_stored(change.content)
    restored = history.append(change, {})
    write_snapshot(folder, snapshot, restored)
    return restored


def record_evaluation(folder: str | Path, metrics: Mapping[str, Any]) -> list[Path]:
    """Record an evaluation in a saved model, and make its model card again.

    A card that a person has edited stays as it is. The conversion for prediction without torch is looked up by the hash
    of ``config.json``, so it is made again at the next use.
    """
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
        stored = None
        with self.tolerant():
            is_current = self.current is not None and change.config == self.current.digest
            stored = self.current if is_current else read_version(self.target, change.config)
        if stored is None and self.history.folder not in (None, self.target):
            with self.tolerant():
                stored = find_snapshot(self.history.folder, change.config)
        return stored if stored is None or self.keep_support else stored.without_shots()

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
