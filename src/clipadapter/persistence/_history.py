"""The history of a model: all its versions, and what it was in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.errors import ArtifactError, InputError
from clipadapter.persistence._contents import Content, Place, kept_contents
from clipadapter.persistence._files import read_config
from clipadapter.persistence._folder import alone
from clipadapter.persistence._log import Change, change, found_change, now, shots_in

if TYPE_CHECKING:
    from clipadapter.persistence._parts import Model


@dataclass(frozen=True, eq=False)
class History:
    """The changes of a model, from its fit on; nothing is ever taken out of them, an undo is one more.

    What the model was in earlier versions lies in its folder, for the last 20 and the first; what was not saved yet is
    kept in memory as `Model`, so a model that is part of a history must not be changed in place.

    Args:
        changes: from the first to the one of now.
        folder: where the model was loaded from, if it was.
        models: contents by version, as far as they are in memory.
        damage: why what was written down can't be read; then nothing can be added. Answers do without it.

    >>> import tempfile, numpy as np
    >>> from clipadapter import FewShotClassifier
    >>> red, blue = (np.full((8, 8, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 0, 255]))
    >>> fitted = FewShotClassifier(encoder="toy", cache=None).fit([red, blue], ["red", "blue"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = fitted.rename_class("red", "crimson").save(folder + "/model")
    ...     [change.action for change in History.of(path).undo()[0].changes]
    ['fit', 'rename-class', 'undo']
    """

    changes: tuple[Change, ...]
    folder: Path | None = None
    models: Mapping[int, Model] = field(default_factory=dict, repr=False)
    damage: str = ""

    @classmethod
    def of(cls, folder: str | Path) -> History:
        """Of the model in a folder; one that was never changed has its fit alone.

        Read it before the model: should somebody change that in between, saving will say so.

        Raises:
            ArtifactError: if there is no model.
        """
        config, target = read_config(folder), Path(os.path.realpath(folder))
        try:
            place = Place.of(target)
        except ArtifactError as error:
            return cls((found_change(config, (), now()),), target, damage=str(error))
        return cls(place.changes if place is not None else (found_change(config, (), now()),), target)

    @classmethod
    def new(cls, model: Model, by: str = "") -> History:
        """Of a model that was fitted just now."""
        from clipadapter.persistence._parts import registered_name

        facts = {"head": registered_name(model.head) or type(model.head).__name__, "encoder": model.encoder.name}
        return cls((change("fit", facts, by, version=1, content=1, **_size(model)),), None, {1: model})

    @property
    def version(self) -> int:
        """Number of the newest version."""
        return self.changes[-1].version

    def after(self, before: Model, model: Model, action: str, facts: Mapping[str, Any], by: str = "") -> History:
        """With a further version.

        Args:
            before: the model until now.
            model: the model from now on.
            action: what was done, a word or two.
            facts: of it, as JSON can hold them.
            by: who did it.

        Raises:
            InputError: if JSON can't hold the facts.
            ArtifactError: if the log is damaged.
        """
        self.check()
        number = self.version + 1
        done = change(action, facts, by, version=number, content=number, **_size(model))
        return self._with(done, {self.changes[-1].content: before, number: model})

    def undo(self, to: int | None = None, by: str = "") -> tuple[History, Model]:
        """Back to what the model was before its last change; once more goes further back.

        Args:
            to: a version to go to instead, also one that was undone.
            by: who does it.

        Returns:
            The history with this, and the model.

        Raises:
            InputError: if there is nothing to undo, no such version, or its content is not kept.
            ArtifactError: if the content or the log is damaged.
        """
        self.check()
        goal = self.goal(to)
        model = self.models.get(goal)
        if model is None:
            model = self._read(goal)
        facts = {"undone": self.changes[-1].content} if to is None else {"to": to}
        done = change("undo", facts, by, version=self.version + 1, content=goal, **_size(model))
        return self._with(done, {goal: model}), model

    def check(self) -> None:
        """Refuse a damaged log.

        Raises:
            ArtifactError: if so.
        """
        if self.damage:
            raise ArtifactError(self.damage)

    def goal(self, to: int | None = None) -> int:
        """The content that `undo` goes to: the version that first had it.

        Raises:
            InputError: if there is nothing to undo, or no such version.
        """
        now = self.changes[-1].content
        if to is None:
            if now == 1:
                raise InputError("there is nothing to undo: the model is what it was in version 1")
            return self.changes[now - 2].content
        if not 1 <= to <= self.version:
            raise InputError(f"there is no version {to}: this model has 1 to {self.version}")
        if self.changes[to - 1].content == now:
            raise InputError(f"the model is what it was in version {to}: there is nothing to undo")
        return self.changes[to - 1].content

    def kept(self) -> list[int]:
        """Versions whose content can be had, rising."""
        place, start = self.place() or (None, 0)
        own = {self.changes[-1].content, *self.models}
        there = {one.content for one in self.changes if place is not None and place.has(one.content + start)}
        return [one.version for one in self.changes if one.content in own | there]

    def place(self) -> tuple[Place, int] | None:
        """What lies in the folder, if it is still of this model, and by how much its numbers are higher."""
        place = None if self.folder is None else Place.of(self.folder)
        keys = [] if place is None else [one.key for one in place.changes]
        if place is None or self.changes[0].key not in keys:
            return None
        return place, keys.index(self.changes[0].key)

    def stored(self, content: int) -> Content | None:
        """A content from the folder, its arrays in memory; None if it is not kept there.

        Raises:
            ArtifactError: if it is damaged.
        """
        place, start = self.place() or (None, 0)
        if place is None:
            return None
        number = content + start
        if number > len(place.changes) or place.changes[number - 1].key != self.changes[content - 1].key:
            return None
        return place.content(number)

    def _read(self, content: int) -> Model:
        from clipadapter.persistence._parts import model_of

        found = None
        if self.folder is not None and self.folder.is_dir():
            with alone(self.folder):
                found = self.stored(content)
                if found is not None:
                    return model_of(found.config, found.arrays, self.folder)
        kept = ", ".join(map(str, self.kept()))
        raise InputError(f"version {content} is not kept any more, only what is known of it; there are still: {kept}")

    def _with(self, done: Change, models: Mapping[int, Model]) -> History:
        changes = (*self.changes, done)
        every = {**self.models, **models}
        stay = {number: every[number] for number in kept_contents(changes) if number in every}
        return replace(self, changes=changes, models=stay)


def _size(model: Model) -> dict[str, int]:
    pictures = len(model.support) or shots_in(model.support.provenance)
    return {"classes": len(model.text.labels), "pictures": pictures}
