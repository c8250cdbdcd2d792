"""The history of a model: its versions, who made them, and undo."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.errors import ArtifactError, InputError
from clipadapter.persistence.format import read_config
from clipadapter.persistence.history_files import (
    Change,
    SavedHistory,
    Snapshot,
    count_shots,
    infer_change,
    new_change,
    retained_snapshots,
    utc_now,
)
from clipadapter.persistence.transaction import lock_folder

if TYPE_CHECKING:
    from clipadapter.persistence.model import Model


@dataclass(frozen=True, eq=False)
class History:
    """The changes of a model since its fit. No change is ever removed; an undo is one more change.

    A version has a snapshot of the model. The folder of the model keeps the first and the last 20 snapshots. Snapshots
    that are not saved yet are in memory as `Model`, so a model in a history must not be changed in place.

    Args:
        changes: all changes; the last one made the current version.
        folder: folder that the model was loaded from, if any.
        models: snapshots in memory, by version.
        damage: why the log in the folder can't be read. The model can be used, but not edited.

    >>> import tempfile, numpy as np
    >>> from clipadapter import FewShotClassifier
    >>> red, blue = (np.full((8, 8, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 0, 255]))
    >>> fitted = FewShotClassifier(encoder="toy", cache=None).fit([red, blue], ["red", "blue"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = fitted.rename_class("red", "crimson").save(folder + "/model")
    ...     [change.action for change in History.load(path).undo()[0].changes]
    ['fit', 'rename-class', 'undo']
    """

    changes: tuple[Change, ...]
    folder: Path | None = None
    models: Mapping[int, Model] = field(default_factory=dict, repr=False)
    damage: str = ""

    @classmethod
    def new(cls, model: Model, by: str = "") -> History:
        """Begin the history of a model that was just fitted."""
        from clipadapter.persistence.model import registered_name

        facts = {"head": registered_name(model.head) or type(model.head).__name__, "encoder": model.encoder.name}
        return cls((new_change("fit", facts, by, version=1, content=1, **_count(model)),), None, {1: model})

    @classmethod
    def load(cls, folder: str | Path) -> History:
        """Read the history of the model in a folder. A model that was never edited has one change, its fit.

        Call it before `load_model`: a later save then notices a change that another process made between the two.

        Raises:
            ArtifactError: if there is no model.
        """
        config, target = read_config(folder), Path(os.path.realpath(folder))
        try:
            saved = SavedHistory.read(target)
        except ArtifactError as error:
            return cls((infer_change(config, (), utc_now()),), target, damage=str(error))
        return cls(saved.changes if saved is not None else (infer_change(config, (), utc_now()),), target)

    @property
    def version(self) -> int:
        """Number of the current version."""
        return self.changes[-1].version

    def with_change(self, before: Model, model: Model, action: str, facts: Mapping[str, Any], by: str = "") -> History:
        """Return the history with one more version.

        Args:
            before: model before the change.
            model: model after the change.
            action: what was done, such as "add-class".
            facts: details, as a JSON object.
            by: author of the change.

        Raises:
            InputError: if JSON can't represent the facts.
            ArtifactError: if the log is damaged.
        """
        self.check()
        number = self.version + 1
        change = new_change(action, facts, by, version=number, content=number, **_count(model))
        return self._append(change, {self.changes[-1].content: before, number: model})

    def undo(self, to: int | None = None, by: str = "") -> tuple[History, Model]:
        """Restore the model before its last change. Repeated calls go further back.

        Args:
            to: version to restore instead; it may be one that was undone.
            by: author of the change.

        Returns:
            The history with the undo, and the restored model.

        Raises:
            InputError: if there is nothing to undo, no such version, or its snapshot is not stored.
            ArtifactError: if the snapshot or the log is damaged.
        """
        self.check()
        target = self.undo_target(to)
        model = self.models.get(target)
        if model is None:
            model = self._read_model(target)
        return self.with_undo(to, target, _count(model), by, model), model

    def with_undo(
        self, to: int | None, target: int, counts: Mapping[str, int], by: str = "", model: Model | None = None
    ) -> History:
        """Return the history with an undo as one more version.

        Args:
            to: version that the user named, or None.
            target: number of the snapshot that is restored.
            counts: numbers of classes and pictures of the snapshot.
            by: author of the change.
            model: the restored model, if it is in memory.
        """
        facts = {"undone": self.changes[-1].content} if to is None else {"to": to}
        change = new_change("undo", facts, by, version=self.version + 1, content=target, **counts)
        return self._append(change, {} if model is None else {target: model})

    def not_stored(self, number: int) -> InputError:
        """The error about a version whose snapshot is not stored."""
        stored = ", ".join(map(str, self.stored_versions()))
        return InputError(f"version {number} is no longer stored, only its description; stored versions: {stored}")

    def check(self) -> None:
        """Check that the log could be read.

        Raises:
            ArtifactError: if not.
        """
        if self.damage:
            raise ArtifactError(self.damage)

    def undo_target(self, to: int | None = None) -> int:
        """Return the number of the snapshot that `undo` restores, which is the version that first had it.

        Raises:
            InputError: if there is nothing to undo, or no such version.
        """
        current = self.changes[-1].content
        if to is None:
            if current == 1:
                raise InputError("there is nothing to undo: the model is what it was in version 1")
            return self.changes[current - 2].content
        if not 1 <= to <= self.version:
            raise InputError(f"there is no version {to}: this model has 1 to {self.version}")
        if self.changes[to - 1].content == current:
            raise InputError(f"the model is what it was in version {to}: there is nothing to undo")
        return self.changes[to - 1].content

    def stored_versions(self) -> list[int]:
        """Return the versions that can be restored, in ascending order."""
        saved, offset = self.locate() or (None, 0)
        in_memory = {self.changes[-1].content, *self.models}
        on_disk = {
            change.content for change in self.changes if saved is not None and saved.has(change.content + offset)
        }
        return [change.version for change in self.changes if change.content in in_memory | on_disk]

    def locate(self) -> tuple[SavedHistory, int] | None:
        """Find this history in its folder, which may hold other changes before it.

        Returns:
            The history in the folder, and how much higher its version numbers are. None if it belongs to another model.
        """
        saved = None if self.folder is None else SavedHistory.read(self.folder)
        keys = [] if saved is None else [change.key for change in saved.changes]
        if saved is None or self.changes[0].key not in keys:
            return None
        return saved, keys.index(self.changes[0].key)

    def read_snapshot(self, number: int) -> Snapshot | None:
        """Return a snapshot from the folder; None if it is not stored there.

        Raises:
            ArtifactError: if it is damaged.
        """
        saved, offset = self.locate() or (None, 0)
        if saved is None:
            return None
        saved_number = number + offset
        # Another process may have saved other versions with the same numbers: the keys tell them apart.
        if saved_number > len(saved.changes) or saved.changes[saved_number - 1].key != self.changes[number - 1].key:
            return None
        return saved.snapshot(saved_number)

    def _read_model(self, number: int) -> Model:
        from clipadapter.persistence.model import from_files

        if self.folder is not None and self.folder.is_dir():
            with lock_folder(self.folder):
                snapshot = self.read_snapshot(number)
                if snapshot is not None:
                    return from_files(snapshot.config, snapshot.arrays, self.folder)
        raise self.not_stored(number)

    def _append(self, change: Change, models: Mapping[int, Model]) -> History:
        changes = (*self.changes, change)
        in_memory = {**self.models, **models}
        retained = {number: in_memory[number] for number in retained_snapshots(changes) if number in in_memory}
        return replace(self, changes=changes, models=retained)


def _count(model: Model) -> dict[str, int]:
    pictures = len(model.support) or count_shots(model.support.provenance)
    return {"classes": len(model.text.labels), "pictures": pictures}
