"""Save a model and its history into a folder, in one transaction (see `transaction`)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.errors import ArtifactError, MethodWarning
from clipadapter.persistence.card import make_card
from clipadapter.persistence.evaluation import EVALUATION_KEY, make_evaluation
from clipadapter.persistence.format import ModelConfig, config_bytes, read_config, write_and_sync
from clipadapter.persistence.history import History
from clipadapter.persistence.history_files import (
    LOG_FILE,
    Log,
    SavedHistory,
    Snapshot,
    config_digest,
    count_shots,
    has_content,
    log_bytes,
    merge_logs,
    new_change,
    retained_snapshots,
    stage_snapshots,
)
from clipadapter.persistence.transaction import Staging, link_or_copy, lock_folder, replace_model, stage_files
from clipadapter.runtime.model_folder import CARD_FILE, CONFIG_FILE, HISTORY_FOLDER
from clipadapter.utils.formatting import format_count

if TYPE_CHECKING:
    from clipadapter.heads import Head
    from clipadapter.persistence.model import Model

HEADS_WITHOUT_PICTURES = ("linear-probe", "clip-adapter", "gda")
"""Heads that a warning recommends to whoever wants no features of pictures in the model."""


def save_model(folder: str | Path, model: Model, *, keep_support: bool = True, history: History | None = None) -> Path:
    """Save a model to a folder, or as a new version of the model in it. The earlier model can be restored.

    Args:
        folder: target folder.
        model: model to save.
        keep_support: whether to save the features of the shots; if not, they are removed from earlier versions too.
            Heads that compare with shots have features of their own (`Head.picture_features`), which stay, with a
            `MethodWarning`.
        history: history of the model; None for a model that was just fitted. If the folder has another history, this
            one is appended to it.

    Raises:
        ArtifactError: if the folder can't be written, its history is damaged, or another process has changed the model
            since it was loaded. Nothing is left half-written.
        InputError: if the head is not registered.
    """
    snapshot = _snapshot_of(model, keep_support)
    if not keep_support:
        _warn_of_stored_pictures(model, snapshot.config.head.name)
    return write_snapshot(folder, snapshot, SaveOptions(history, keep_support=keep_support))


def restore_version(folder: str | Path, to: int | None = None, by: str = "") -> History:
    """Restore an earlier version of the model in a folder, as a new version. Its files are checked by their hashes.

    Args:
        folder: a saved model.
        to: version to restore; by default the one before the last change. It may be one that was undone.
        by: author of the change.

    Returns:
        The history with the undo.

    Raises:
        InputError: if there is nothing to undo, no such version, or its snapshot is not stored.
        ArtifactError: if the snapshot or the log is damaged, or the folder can't be written.
    """
    history = History.load(folder)
    history.check()
    target = history.undo_target(to)
    with lock_folder(Path(os.path.realpath(folder))):
        stored = history.read_snapshot(target)
        snapshot = None if stored is None else stored.load()
    if snapshot is None:
        raise history.not_stored(target)
    for name, part in snapshot.config.files.items():
        if part.sha256 not in snapshot.blobs:
            raise ArtifactError(f"version {target} of {folder} can't be restored: its {name} is missing or was altered")
    original = history.changes[target - 1]
    counts = {"classes": original.classes, "pictures": original.pictures}
    restored = history.with_undo(to, target, counts, by)
    write_snapshot(folder, snapshot, SaveOptions(restored))
    return restored


def record_evaluation(folder: str | Path, metrics: Mapping[str, Any]) -> list[Path]:
    """Record an evaluation in a saved model, and make its model card again.

    A card that a person has edited stays as it is. The conversion for prediction without torch is looked up by the hash
    of ``config.json``, so it is made again at the next use.

    Args:
        folder: a saved model.
        metrics: ``evaluate_model(...).to_dict()`` or ``evaluate_multilabel_model(...).to_dict()``, or the content of
            ``metrics.json``.

    Returns:
        Paths of the written files.

    Raises:
        ArtifactError: if there is no valid model, or it can't be written.
        InputError: if these are no metrics, or metrics of another model.
    """
    read_config(folder)
    with lock_folder(folder):
        config = read_config(folder)  # again: another process may have saved a model before the lock was ours
        evaluation = make_evaluation(metrics, config)
        provenance = {**config.provenance, EVALUATION_KEY: evaluation.model_dump(exclude_none=True)}
        updated = config.model_copy(update={"provenance": provenance})
        card = make_card(folder, updated)
        with stage_files(folder) as staging:
            if card is not None:
                write_and_sync(staging.path / CARD_FILE, card.encode())
            write_and_sync(staging.path / CONFIG_FILE, config_bytes(updated))
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
    history = options.history
    elsewhere = {} if history is None else _load_snapshots_elsewhere(history, folder)
    with replace_model(folder) as staging:
        saved = SavedHistory.read(staging.target)
        changes, offset = _merge_changes(folder, saved, snapshot, options)

        def find(number: int, in_memory: bool = True) -> Snapshot | None:
            stored = _snapshot_on_disk(saved, number) or elsewhere.get(number - offset)
            if stored is None and in_memory and history is not None and number - offset in history.models:
                stored = _snapshot_of(history.models[number - offset], options.keep_support)
            return stored if stored is None or options.keep_support else stored.without_shots()

        if changes:
            before = find(changes[-1].content, in_memory=False)
            if before is not None and is_same_model(before.config, snapshot.config):
                # A restored version keeps its time and its evaluation.
                snapshot = replace(snapshot, config=before.config, raw=before.raw)
            stage_snapshots(staging, changes, find)
            last = changes[-1].model_copy(update={"config": config_digest(snapshot.config)})
            write_and_sync(staging.path / HISTORY_FOLDER / LOG_FILE, log_bytes([*changes[:-1], last]))
        _stage_model_files(staging, snapshot, folder if options.card is None else options.card)
    return Path(folder)


def is_same_model(one: ModelConfig, other: ModelConfig) -> bool:
    """Whether two configs describe the same model, regardless of its time and evaluation."""
    return one.model_dump(exclude={"provenance"}) == other.model_dump(exclude={"provenance"})


def count_stored_pictures(head: Head) -> int:
    """How many pictures' features the learned arrays of a head have; a model without its shots still has them.

    >>> from clipadapter.heads import create_head
    >>> from clipadapter.testing import toy_features
    >>> X, y, text = toy_features()
    >>> [count_stored_pictures(create_head(name).fit(X, y, text=text)) for name in ("knn", "linear-probe")]
    [12, 0]
    """
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
    by_hash = {config.files[name].sha256: blob for name, blob in blobs.items()}
    return Snapshot(config, config_bytes(config), {}, by_hash)


def _snapshot_on_disk(saved: SavedHistory | None, number: int) -> Snapshot | None:
    try:
        return None if saved is None else saved.snapshot(number)
    except ArtifactError:  # a damaged snapshot can't be restored, so nothing is lost without it
        return None


def _load_snapshots_elsewhere(history: History, folder: str | Path) -> dict[int, Snapshot]:
    """Load the snapshots of a model that is saved to another folder than it was loaded from, by version."""
    source = history.folder
    if source is None or not source.is_dir() or source == Path(os.path.realpath(folder)):
        return {}
    with lock_folder(source):
        numbers = [number for number in retained_snapshots(history.changes) if number not in history.models]
        saved, offset = history.locate() or (None, 0)
        snapshots = {number: _snapshot_on_disk(saved, number + offset) for number in numbers}
        return {number: snapshot.load() for number, snapshot in snapshots.items() if snapshot is not None}


def _merge_changes(
    folder: str | Path, saved: SavedHistory | None, snapshot: Snapshot, options: SaveOptions
) -> tuple[Log, int]:
    """Merge the log in the folder with the history of the model."""
    config, on_disk = snapshot.config, () if saved is None else saved.changes
    facts: dict[str, Any] = {"head": config.head.name, "encoder": config.encoder.name}
    counts = {"classes": len(config.class_names), "pictures": count_shots(config.provenance)}
    number = len(on_disk) + 1
    if options.history is None:
        change = new_change(options.action, options.facts or facts, "", version=number, content=number, **counts)
        return ((*on_disk, change) if on_disk else ()), 0
    try:
        merged, offset = merge_logs(on_disk, options.history.changes)
    except ArtifactError as error:
        raise ArtifactError(f"{folder} {error}") from None
    if saved is not None and len(merged) == len(on_disk):
        # The history has no new change. If the model differs all the same, it was changed by other means.
        current = _snapshot_on_disk(saved, on_disk[-1].content)
        if current is not None and not options.keep_support:
            current = current.without_shots()
        if current is not None and not is_same_model(current.config, config):
            unrecorded = {**facts, "recorded": False}
            merged = (*merged, new_change("fit", unrecorded, "", version=number, content=number, **counts))
    return merged, offset


def _stage_model_files(staging: Staging, snapshot: Snapshot, card: bytes | str | Path) -> None:
    """Stage the files of the model that change. Arrays that are in the history are linked."""
    for name, part in snapshot.config.files.items():
        blob, history_name = snapshot.blobs[part.sha256], f"{part.sha256}.safetensors"
        if has_content(staging.target / name, blob):
            continue
        candidates = [
            staging.path / HISTORY_FOLDER / history_name,
            staging.target / HISTORY_FOLDER / history_name,
        ]
        same = next((path for path in candidates if has_content(path, blob)), None)
        if same is None:
            write_and_sync(staging.path / name, blob)
        else:
            link_or_copy(same, staging.path / name)
    text = card if isinstance(card, bytes) else make_card(card, snapshot.config)
    if text is not None:
        write_and_sync(staging.path / CARD_FILE, text if isinstance(text, bytes) else text.encode())
    write_and_sync(staging.path / CONFIG_FILE, snapshot.raw)
