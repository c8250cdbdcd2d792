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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from clipadapter.errors import ArtifactError, MethodWarning
from clipadapter.persistence.card import make_card
from clipadapter.persistence.format import (
    ModelConfig,
    Snapshot,
    check_target_folder,
    config_bytes,
    make_evaluation,
    read_config,
    read_snapshot,
)
from clipadapter.persistence.history import (
    Change,
    History,
    Log,
    config_digest,
    count_shots,
    find_snapshot,
    history_file,
    log_bytes,
    merge_logs,
    new_change,
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
    SUPPORT,
    UNLABELLED,
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
    if not keep_support:
        _warn_of_stored_pictures(model, snapshot.config.head.name)
    return write_snapshot(folder, snapshot, SaveOptions(history, keep_support=keep_support))


def restore_version(folder: str | Path, to: int | None = None, by: str = "") -> History:
    """Restore an earlier version of the model in a folder, as a new version; see `History.undo`. No array is parsed."""
    history = History.load(folder)
    target = history.undo_target(to)
    snapshot = find_snapshot(folder, history.changes[target - 1].config)
    if snapshot is None:
        raise history.not_stored(target)
    restored = history.with_undo(to, target, by)
    write_snapshot(folder, snapshot, SaveOptions(restored))
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


@dataclass(frozen=True)
class SaveOptions:
    """How a snapshot is written."""

    history: History | None = None
    action: str = "fit"  # action of the new change, if there is no history
    facts: Mapping[str, Any] | None = None
    card: bytes | None = None  # model card; if None, it is made
    keep_support: bool = True  # False removes the features of the shots from earlier versions


def write_snapshot(folder: str | Path, snapshot: Snapshot, options: SaveOptions) -> Path:
    """Write a snapshot into a folder, as a new version if there is a model."""
    with _lock_folder(folder) as target:
        current, new = None, _NewFiles(target)
        if (target / CONFIG_FILE).exists():
            with new.tolerant():  # a damaged config does not keep a new model out
                current = read_snapshot(target)
        on_disk = read_changes(target, current)
        changes = _merge_changes(folder, current, on_disk, snapshot, options)
        try:
            if changes:
                if current is not None:  # else a log whose config is never committed would be taken for its log
                    new.write(history_file("log", config_digest(current.config)), log_bytes(on_disk), stays=False)
                snapshot = _write_history(new, changes, snapshot, current, options)
            new.write_arrays(snapshot, check=True)
            card = make_card(folder, snapshot.config)  # None: a person has edited it
            _commit(target, snapshot.raw, card if card is None or options.card is None else options.card)
        except BaseException:
            if not _is_committed(target, snapshot.raw):  # Ctrl-C may come after the commit
                new.remove()
            raise
        # The save is done. What can't be removed now is removed by the next one. What could not be read may be readable
        # again, so everything stays, unless the shots must go.
        if new.has_read_all or not options.keep_support:
            for file in set(list_own_files(target)) - new.named:
                with suppress(OSError):
                    (target / file).unlink(missing_ok=True)
    return Path(folder)


@dataclass
class _NewFiles:
    """The files that the new config and its history name. Those that the folder lacks are written."""

    target: Path
    named: set[str] = field(default_factory=set)
    added: list[Path] = field(default_factory=list)
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
        is_new = not path.exists()
        if not is_new and path.stat().st_size == len(data) and path.read_bytes() == data:
            return
        path.parent.mkdir(exist_ok=True)
        # In one step: a damaged file, and the log of an equal config, are replaced while others may read them.
        temporary = self.target / ARRAYS_FOLDER / "new-file"
        _write_and_sync(temporary, data)
        temporary.replace(path)
        if is_new:
            self.added.append(path)

    def remove(self) -> None:
        with suppress(OSError):
            for path in self.added:
                path.unlink(missing_ok=True)
            (self.target / HISTORY_FOLDER).rmdir()  # if it is empty


def _write_history(
    new: _NewFiles, changes: Log, snapshot: Snapshot, current: Snapshot | None, options: SaveOptions
) -> Snapshot:
    """Write the log, and the configs and arrays of earlier versions. Returns the snapshot of the current version."""
    current_digest = "" if current is None else config_digest(current.config)
    source = None if options.history is None else options.history.folder

    def find(change: Change) -> Snapshot | None:
        stored = None
        with new.tolerant():
            stored = current if change.config == current_digest else read_version(new.target, change.config)
        if stored is None and source is not None and source != new.target:
            with new.tolerant():
                stored = find_snapshot(source, change.config)
        return stored if stored is None or options.keep_support else _without_shots(stored)

    number = changes[-1].content
    before = find(changes[number - 1])
    if before is not None and is_same_model(before.config, snapshot.config):
        # A restored version keeps its time and its evaluation.
        snapshot = replace(snapshot, config=before.config, raw=before.raw)
    digest = config_digest(snapshot.config)
    changed = {changes[-1].version: digest, number: digest}
    for i in retained_snapshots(changes):
        stored = None if i == number else find(changes[i - 1]) or _find_in_memory(changes[i - 1], options)
        if stored is None:
            continue
        with new.tolerant():
            new.write_arrays(stored)
            changed[i] = config_digest(stored.config)
            new.write(history_file("config", changed[i]), stored.raw)
    log = [each.model_copy(update={"config": changed.get(each.version, each.config)}) for each in changes]
    new.write(history_file("log", digest), log_bytes(log))
    return snapshot


def _find_in_memory(change: Change, options: SaveOptions) -> Snapshot | None:
    history = options.history
    number = next((each.version for each in history.changes if each.key == change.key), 0) if history else 0
    model = history.models.get(number) if history else None
    return None if model is None else _snapshot_of(model, options.keep_support)


def _commit(target: Path, config: bytes, card: bytes | None) -> None:
    """Replace the config and the card. What the config names was written before."""
    files = {CONFIG_FILE: config, **({} if card is None else {CARD_FILE: card})}
    temporary = {name: target / ARRAYS_FOLDER / f"new-{name}" for name in files}
    for name, data in files.items():
        _write_and_sync(temporary[name], data)
    for folder in (ARRAYS_FOLDER, HISTORY_FOLDER):
        sync_folder(target / folder)
    temporary[CONFIG_FILE].replace(target / CONFIG_FILE)
    with suppress(OSError):  # the save is done; the next one makes the card again
        sync_folder(target)
        if card is not None:
            temporary[CARD_FILE].replace(target / CARD_FILE)


def _is_committed(target: Path, config: bytes) -> bool:
    path = target / CONFIG_FILE
    return path.exists() and path.read_bytes() == config


def _write_and_sync(path: Path, data: bytes) -> None:
    """Write a new file; what a killed save left there is removed, and a link is not followed."""
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _lock_folder(folder: str | Path) -> Iterator[Path]:
    """Lock the folder of a model, and give its path without links."""
    target = Path(os.path.realpath(folder))
    check_target_folder(folder)
    for name in (CONFIG_FILE, CARD_FILE):
        model_path(target, name)
    for name in (ARRAYS_FOLDER, HISTORY_FOLDER):
        folder_without_links(target, name, error=ArtifactError)
    arrays = target / ARRAYS_FOLDER
    try:
        arrays.mkdir(parents=True, exist_ok=True)
        with FileLock(arrays / LOCK_FILE, timeout=LOCK_TIMEOUT_SECONDS):
            try:
                yield target
            except BaseException:
                # The folder stays, also a new one: another process may wait for its lock.
                with suppress(OSError):
                    for name in ("file", CONFIG_FILE, CARD_FILE):
                        (arrays / f"new-{name}").unlink(missing_ok=True)
                raise
    except Timeout:
        raise ArtifactError(f"{folder} is being changed by another process: try again when it has ended") from None
    except OSError as error:
        reason = error.strerror or error
        raise ArtifactError(f"can't write {folder}: {reason}; give a folder you may write to") from error


def is_same_model(one: ModelConfig, other: ModelConfig) -> bool:
    """Whether two configs describe the same model, regardless of its time and evaluation."""
    return one.model_dump(exclude={"provenance"}) == other.model_dump(exclude={"provenance"})


def count_stored_pictures(head: Head) -> int:
    """How many pictures' features the learned arrays of a head have; a model without its shots still has them."""
    arrays = [getattr(head, name, None) for name in head.picture_features]
    return max((len(rows) for rows in arrays if rows is not None), default=0)


def _warn_of_stored_pictures(model: Model, head: str) -> None:
    """Warn that a model without its shots has features of pictures all the same, if it compares with them."""
    count = count_stored_pictures(model.head)
    if not count:
        return
    where = f"the head {head} compares with them. Heads such as {', '.join(HEADS_WITHOUT_PICTURES)} store none"
    pictures = format_count(count, "picture")
    warnings.warn(
        MethodWarning(f"the shots are left out, but the model still has the features of {pictures}: {where}"),
        stacklevel=3,
    )


def _snapshot_of(model: Model, keep_support: bool) -> Snapshot:
    from clipadapter.persistence.model import to_files  # late: to restore a version needs no torch

    config, blobs = to_files(model, keep_support)
    return Snapshot(config, config_bytes(config), blobs.__getitem__)


def _without_shots(snapshot: Snapshot) -> Snapshot:
    """The snapshot without the features and names of the shots and of pictures without labels."""
    files = {name: sha256 for name, sha256 in snapshot.config.files.items() if name not in (SUPPORT, UNLABELLED)}
    config = snapshot.config.model_copy(update={"files": files, "sources": []})
    return replace(snapshot, config=config, raw=config_bytes(config))


def _merge_changes(
    folder: str | Path, current: Snapshot | None, on_disk: Log, snapshot: Snapshot, options: SaveOptions
) -> Log:
    """Merge the log in the folder with the history of the model; () if there is no earlier version."""
    config, number = snapshot.config, len(on_disk) + 1
    facts = {"head": config.head.name, "encoder": config.encoder.name}
    counts = {"classes": len(config.class_names), "pictures": count_shots(config.provenance)}
    if options.history is None:
        change = new_change(options.action, options.facts or facts, "", version=number, content=number, **counts)
        return (*on_disk, change) if on_disk else ()
    merged = merge_logs(folder, on_disk, options.history.changes)
    if current is not None and len(merged) == len(on_disk):
        # The history has no new change. If the model differs all the same, it was changed by other means.
        before = current if options.keep_support else _without_shots(current)
        if not is_same_model(before.config, config):
            unrecorded = new_change("fit", {**facts, "recorded": False}, "", version=number, content=number, **counts)
            return (*merged, unrecorded)
    return merged
