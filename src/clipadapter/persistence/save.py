"""Writing a model into a folder, together with its history."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipadapter.errors import ArtifactError
from clipadapter.persistence.card import card_of
from clipadapter.persistence.evaluation import KEY, evaluated
from clipadapter.persistence.folder import Staging, alone, link, rewritten, staged
from clipadapter.persistence.format import (
    CARD,
    CONFIG,
    HISTORY,
    ArtifactConfig,
    config_bytes,
    read_config,
    write_synced,
)
from clipadapter.persistence.history import (
    LOG,
    Content,
    History,
    Log,
    Place,
    change,
    digest,
    holds,
    joined,
    kept_contents,
    log_bytes,
    shots_in,
    stage_contents,
)
from clipadapter.persistence.model import Model, assembled


def save_model(folder: str | Path, model: Model, *, keep_support: bool = True, history: History | None = None) -> Path:
    """Write a model to a folder, or a new version of the model in it; the one that was there can be gone back to.

    Args:
        folder: where to.
        model: what to write.
        keep_support: write the features of the shots too; if not, they are taken out of all earlier versions as well.
        history: of the model, its last change being what made it this; a fit of now if not given. If the folder has
            another history, this one comes behind it.

    Raises:
        ArtifactError: if the folder can't be written, its history is damaged, or somebody else has changed the model
            since it was loaded; nothing is left half-written.
        InputError: if the head is not registered.
    """
    config, blobs = assembled(model, keep_support)
    content = _in_memory(config, blobs)
    return write_content(folder, content, Told(history, keep_support=keep_support))


@dataclass(frozen=True)
class Told:
    """What is known of a content that is written.

    Args:
        history: of the model.
        action: what made it, if there is no history.
        facts: of that.
        card: its card; made anew if not given.
        keep_support: False takes the shots' features out of earlier versions.
    """

    history: History | None = None
    action: str = "fit"
    facts: Mapping[str, Any] | None = None
    card: bytes | None = None
    keep_support: bool = True


def write_content(folder: str | Path, content: Content, told: Told) -> Path:
    """Write a content into a folder, as a new version if there is a model.

    Raises:
        ArtifactError: as `save_model`.
    """
    history = told.history
    elsewhere = {} if history is None else _elsewhere(history, folder)
    with rewritten(folder) as staging:
        place = Place.of(staging.target)
        changes, start = _changes(folder, place, content, told)

        def find(number: int, in_memory: bool = True) -> Content | None:
            found = _on_disk(place, number) or elsewhere.get(number - start)
            if found is None and in_memory and history is not None and number - start in history.models:
                found = _in_memory(*assembled(history.models[number - start], told.keep_support))
            return found if found is None or told.keep_support else found.without_shots()

        if changes:
            before = find(changes[-1].content, in_memory=False)
            if before is not None and alike(before.config, content.config):
                # Gone back to, with all that is known of it: when it was made, and what it was measured to be.
                content = replace(content, config=before.config, raw=before.raw)
            stage_contents(staging, changes, find)
            last = changes[-1].model_copy(update={"config": digest(content.config)})
            write_synced(staging.path / HISTORY / LOG, log_bytes([*changes[:-1], last]))
        _stage_own(staging, content, folder if told.card is None else told.card)
    return Path(folder)


def alike(one: ArtifactConfig, other: ArtifactConfig) -> bool:
    """Whether two configs are of the same model, whenever it was made."""
    rest = {"provenance", "format"}
    return one.model_dump(exclude=rest) == other.model_dump(exclude=rest)


def _in_memory(config: ArtifactConfig, blobs: Mapping[str, bytes]) -> Content:
    by_hash = {config.files[name].sha256: blob for name, blob in blobs.items()}
    return Content(config, config_bytes(config), {}, by_hash)


def _on_disk(place: Place | None, number: int) -> Content | None:
    try:
        return None if place is None else place.content(number)
    except ArtifactError:  # damaged: it could not be gone back to either
        return None


def _elsewhere(history: History, folder: str | Path) -> dict[int, Content]:
    """The contents that lie in another folder than the one that is written, by version."""
    source = history.folder
    if source is None or not source.is_dir() or source == Path(os.path.realpath(folder)):
        return {}
    with alone(source):
        numbers = [number for number in kept_contents(history.changes) if number not in history.models]
        place, start = history.place() or (None, 0)
        found = {number: _on_disk(place, number + start) for number in numbers}
        return {number: content.read() for number, content in found.items() if content is not None}


def _changes(folder: str | Path, place: Place | None, content: Content, told: Told) -> tuple[Log, int]:
    """The whole log from now on, empty if there is nothing to remember; and by how much our numbers rise in it."""
    config, disk = content.config, () if place is None else place.changes
    facts: dict[str, Any] = {"head": config.head.name, "encoder": config.encoder.name}
    size = {"classes": len(config.class_names), "pictures": shots_in(config.provenance)}
    number = len(disk) + 1
    if told.history is None:
        done = change(told.action, told.facts or facts, "", version=number, content=number, **size)
        return ((*disk, done) if disk else ()), 0
    try:
        found, start = joined(disk, told.history.changes)
    except ArtifactError as error:
        raise ArtifactError(f"{folder} {error}") from None
    if place is not None and len(found) == len(disk):
        own = _on_disk(place, disk[-1].content)
        if own is not None and not alike((own if told.keep_support else own.without_shots()).config, config):
            unsaid = {**facts, "recorded": False}
            found = (*found, change("fit", unsaid, "", version=number, content=number, **size))
    return found, start


def _stage_own(staging: Staging, content: Content, card: bytes | str | Path) -> None:
    """Stage those of the model's own files that change; arrays that lie in the history are linked.

    Args:
        staging: where to.
        content: what is written.
        card: its bytes; or the folder whose card is made anew, if a person has not written it.
    """
    for name, part in content.config.files.items():
        blob, names = content.blobs[part.sha256], f"{part.sha256}.safetensors"
        if holds(staging.target / name, blob):
            continue
        places = [staging.path / HISTORY / names, staging.target / HISTORY / names]
        same = next((path for path in places if holds(path, blob)), None)
        if same is None:
            write_synced(staging.path / name, blob)
        else:
            link(same, staging.path / name)
    made = card if isinstance(card, bytes) else card_of(card, content.config)
    if made is not None:  # one that a person has written stays
        write_synced(staging.path / CARD, made if isinstance(made, bytes) else made.encode())
    write_synced(staging.path / CONFIG, content.raw)


def record_evaluation(folder: str | Path, metrics: Mapping[str, Any]) -> list[Path]:
    """Keep the figures of an evaluation in a saved model, and renew its card.

    What makes quick answers without torch goes by the hash of ``config.json``, and is made again at the next use. A
    card that a person has written is left as it is.

    Args:
        folder: a saved model.
        metrics: what ``evaluate_model(...).to_dict()`` or ``evaluate_several(...).to_dict()`` gives, or the content of
            ``metrics.json``.

    Returns:
        The files that were written.

    Raises:
        ArtifactError: if there is no sound model, or it can't be written.
        InputError: if these are no figures, or figures of another model.
    """
    read_config(folder)
    with alone(folder):  # else a model that is saved meanwhile would get the config of the one before
        config = read_config(folder)
        found = evaluated(metrics, config)
        provenance = {**config.provenance, KEY: found.model_dump(exclude_none=True)}
        renewed = config.model_copy(update={"provenance": provenance})
        card = card_of(folder, renewed)
        with staged(folder) as staging:
            if card is not None:
                write_synced(staging.path / CARD, card.encode())
            write_synced(staging.path / CONFIG, config_bytes(renewed))
    return [Path(folder) / name for name in ([] if card is None else [CARD]) + [CONFIG]]
