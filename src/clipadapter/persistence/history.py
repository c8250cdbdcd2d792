"""The history of a model: all its versions, and what it was in them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clipadapter.errors import ArtifactError, InputError
from clipadapter.persistence.evaluation import KEY
from clipadapter.persistence.folder import Staging, alone, find_file, link, own_names, read_consistently
from clipadapter.persistence.format import (
    CONFIG,
    HISTORY,
    OURS,
    SUPPORT,
    Arrays,
    ArtifactConfig,
    arrays_at,
    config_at,
    config_bytes,
    first_error,
    known_format,
    parse_config,
    read_config,
    read_limited,
    write_synced,
)

if TYPE_CHECKING:
    from clipadapter.persistence.model import Model

LOG = "log.json"
FORMAT = 1
MAX_LOG_BYTES = 256 << 20
WHEN = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"
KEPT = 20
"""Contents that stay: those that the model had last. The first one does, too."""
Log = tuple["Change", ...]


class Change(BaseModel):
    """One version of a model.

    Args:
        version: counts from 1.
        action: what was done: "fit", "add-class", "undo" ...
        facts: of it: names of classes and pictures, counts.
        by: who did it, if they said.
        when: UTC.
        content: the version whose content this is: itself, or for an undo the one gone back to.
        key: no other change has it, in whatever folder.
        classes: how many there are from now on.
        pictures: how many shots.
        config: SHA-256 of what ``config.json`` says, once it was written.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = Field(ge=1)
    action: str = Field(min_length=1, max_length=100)
    facts: dict[str, Any] = Field(default_factory=dict)
    by: str = Field(default="", max_length=200)
    when: str = Field(pattern=WHEN)
    content: int = Field(ge=1)
    key: str = Field(pattern="^[0-9a-f]{32}$")
    classes: int = Field(default=0, ge=0)
    pictures: int = Field(default=0, ge=0)
    config: str = Field(default="", pattern="^([0-9a-f]{64})?$")


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    changes: list[Change] = Field(min_length=1)


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
        from clipadapter.persistence.model import registered_name

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
        from clipadapter.persistence.model import model_of

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


@dataclass(frozen=True)
class Content:
    """What a model was in one version.

    Args:
        config: of it.
        raw: the config's bytes.
        files: where its arrays are; by hash.
        blobs: their bytes, if they are in memory.
        own: whether the files are the model's own, not those of the history.
    """

    config: ArtifactConfig
    raw: bytes
    files: dict[str, Path]
    blobs: dict[str, bytes]
    own: bool = False

    def arrays(self, name: str) -> Arrays:
        """Those of one of its files, checked."""
        part = self.config.files.get(name)
        if part is None:
            raise ArtifactError(f"this version was saved without {name}")
        return arrays_at(self.files[part.sha256], part)

    def read(self) -> Content:
        """The same with all arrays in memory; what is damaged is left out."""
        found = {one: path.read_bytes() for one, path in self.files.items() if path.is_file()}
        return replace(self, blobs={k: v for k, v in found.items() if hashlib.sha256(v).hexdigest() == k}, files={})

    def without_shots(self) -> Content:
        """The same, but for the shots' features and the names of their pictures."""
        if SUPPORT not in self.config.files and not self.config.sources:
            return self
        files = {name: part for name, part in self.config.files.items() if name != SUPPORT}
        config = self.config.model_copy(update={"files": files, "sources": []})
        return replace(self, config=config, raw=config_bytes(config))


@dataclass(frozen=True)
class Place:
    """A model's folder with its history.

    Args:
        folder: with links followed.
        changes: what the log says; and, behind it, what it does not know of.
        config: of the model's own files; None if it is damaged.
    """

    folder: Path
    changes: Log
    config: ArtifactConfig | None

    @classmethod
    def of(cls, folder: Path) -> Place | None:
        """What is there; None if nothing is.

        Raises:
            ArtifactError: if the log is damaged.
        """
        return read_consistently(folder, lambda: cls._read(folder))

    @classmethod
    def _read(cls, folder: Path) -> Place | None:
        changes = read_log(folder) or ()
        try:
            config = config_at(folder / CONFIG)
            when = _time_of(folder / CONFIG)
        except (ArtifactError, OSError):
            return cls(folder, changes, None) if changes else None
        if not changes or changes[-1].config != digest(config):
            changes = (*changes, found_change(config, changes, when))
        return cls(folder, changes, config)

    def has(self, content: int) -> bool:
        """Whether a content can be had, as far as can be told without reading it."""
        if not 1 <= content <= len(self.changes):
            return False
        return self._is_own(content) or regular(self._path(content))

    def content(self, content: int) -> Content | None:
        """A content; None if it is not kept.

        Raises:
            ArtifactError: if it is damaged.
        """
        if not self.has(content):
            return None
        if self._is_own(content):
            assert self.config is not None
            named = {name: part for name, part in self.config.files.items() if name in OURS}
            files = {part.sha256: self.folder / name for name, part in named.items()}
            return Content(self.config, (self.folder / CONFIG).read_bytes(), files, {}, own=True)
        path = self._path(content)
        raw = path.read_bytes()
        config = parse_config(path, raw)
        hashes = {part.sha256 for part in config.files.values()}
        files = {one: find_file(self.folder, HISTORY, f"{one}.safetensors") for one in hashes}
        if not all(regular(one) for one in files.values()):
            raise ArtifactError(f"{path.parent} lacks arrays that {path.name} names: copy the whole folder")
        return Content(config, raw, files, {})

    def _is_own(self, content: int) -> bool:
        return self.config is not None and content == self.changes[-1].content

    def _path(self, content: int) -> Path:
        return find_file(self.folder, HISTORY, f"{content:04}.json")


def kept_contents(changes: Sequence[Change]) -> list[int]:
    """Contents that stay: the first, and those that the model had last, rising.

    >>> from clipadapter.persistence.history import change
    >>> changes = [change("fit", {}, "", version=i, content=i) for i in range(1, 31)]
    >>> kept_contents(changes)[:3]
    [1, 11, 12]
    """
    last = dict.fromkeys(one.content for one in reversed(changes))
    return sorted({changes[0].content, *list(last)[:KEPT]})


def stage_contents(staging: Staging, changes: Sequence[Change], find: Callable[[int], Content | None]) -> None:
    """Stage what the history lacks of all contents that stay, but for the one of now; the rest is to be removed.

    Args:
        staging: where to.
        changes: all of them.
        find: gives a content, if it can be had.

    Raises:
        OSError: if they can't be written.
    """
    history, staged = staging.target / HISTORY, staging.path / HISTORY
    staged.mkdir(exist_ok=True)
    kept = {LOG}
    for number in kept_contents(changes):
        content = None if number == changes[-1].content else find(number)
        if content is None or not all(_bring(content, one, staged, history) for one in _hashes(content)):
            continue
        name = f"{number:04}.json"
        if not holds(history / name, content.raw):
            write_synced(staged / name, content.raw)
        kept |= {name, *(f"{one}.safetensors" for one in _hashes(content))}
    staging.removed = [name for name in own_names(history) if name not in kept and _was_written(name, changes)]


def _was_written(name: str, changes: Sequence[Change]) -> bool:
    """Whether a file in the history may be ours; a person's may be called ``2026.json``."""
    stem = name.partition(".")[0]
    return not (name.endswith(".json") and stem.isdecimal()) or int(stem) <= len(changes)


def holds(path: Path, data: bytes) -> bool:
    """Whether a file, not a link to one, has this content."""
    return path.is_file() and not path.is_symlink() and path.read_bytes() == data


def _hashes(content: Content) -> list[str]:
    return [part.sha256 for part in content.config.files.values()]


def _bring(content: Content, one: str, staged: Path, history: Path) -> bool:
    """Have a file of arrays in the history, staged if it is not there; False if it is damaged."""
    name = f"{one}.safetensors"
    if (staged / name).exists():
        return True
    source = content.files.get(one)
    if source == history / name:
        return True
    if one not in content.blobs:
        if source is None or not source.is_file():
            return False
        data = source.read_bytes()
        if hashlib.sha256(data).hexdigest() != one:
            return False
    else:
        data = content.blobs[one]
    if holds(history / name, data):
        return True
    # A link of the hub's cache is read here, and a file of another folder may be written over there.
    if content.own and source is not None and not source.is_symlink():
        link(source, staged / name)
    else:
        write_synced(staged / name, data)
    return True


def _time_of(path: Path) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(path.stat().st_mtime))


def change(action: str, facts: Mapping[str, Any], by: str, **known: Any) -> Change:
    """A change of now.

    Raises:
        InputError: if JSON can't hold its facts, or a name is too long.
    """
    try:
        plain = json.loads(json.dumps(dict(facts), allow_nan=False))
        return Change(action=action, facts=plain, by=by, when=now(), key=uuid4().hex, **known)
    except ValidationError as error:
        raise InputError(f"the history can't hold this: {first_error(error)}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"the history can't hold these facts: {error}") from error


def now() -> str:
    """This second, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def digest(config: ArtifactConfig) -> str:
    """SHA-256 of what a config says, but for what the model was measured to be, which may be written later."""
    told = config.model_dump(mode="json", exclude_defaults=True, exclude={"format"}, by_alias=True)
    told.get("provenance", {}).pop(KEY, None)
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def shots_in(provenance: Mapping[str, Any]) -> int:
    """How many shots there were, as far as it says.

    >>> shots_in({"shots": {"cat": 2, "dog": 3}})
    5
    """
    known = provenance.get("shots")
    counts = known.values() if isinstance(known, Mapping) else ()
    return sum(count for count in counts if isinstance(count, int) and count > 0)


def found_change(config: ArtifactConfig, log: Log, when: str) -> Change:
    """The change that a model's files tell of, where the log does not; the same whenever it is asked for.

    Args:
        config: of the model.
        log: what is known, empty if none was kept.
        when: if the config does not say so.
    """
    version = len(log) + 1
    own, created = digest(config), str(config.provenance.get("created", ""))
    facts: dict[str, Any] = {"head": config.head.name, "encoder": config.encoder.name}
    if log:
        facts["recorded"] = False
    return Change(
        version=version,
        action="fit",
        facts=facts,
        when=created if re.fullmatch(WHEN, created) else when,
        content=version,
        # The files of an earlier version may have been copied back, and are a change of their own.
        key=hashlib.sha256(f"{log[-1].key if log else ''} {own}".encode()).hexdigest()[:32],
        classes=len(config.class_names),
        pictures=shots_in(config.provenance),
        config=own,
    )


def read_log(folder: Path) -> Log | None:
    """The checked log in a model's folder; None if there is none.

    Raises:
        ArtifactError: if it is damaged, a link, or of a later format.
    """
    path = find_file(folder, HISTORY, LOG)
    if not regular(path):
        return None
    todo = f"move the folder {folder / HISTORY} away to go on without what it tells"
    data = read_limited(path, MAX_LOG_BYTES, f"it is no history; {todo}")
    try:
        raw = json.loads(data)
        known_format(path, raw, FORMAT)
        changes = tuple(_File.model_validate(raw).changes)
    except ValidationError as error:
        raise ArtifactError(f"{path} is damaged: {first_error(error)}; {todo}") from error
    except (ValueError, OSError, RecursionError) as error:
        raise ArtifactError(f"{path} can't be read: {error}; {todo}") from error
    if not _sound(changes):
        raise ArtifactError(f"{path} is damaged: its versions don't follow each other; {todo}")
    return changes


def _sound(changes: Log) -> bool:
    if [one.version for one in changes] != list(range(1, len(changes) + 1)):
        return False
    origins = all(one.content <= one.version and changes[one.content - 1].content == one.content for one in changes)
    return origins and len({one.key for one in changes}) == len(changes)


def log_bytes(changes: Sequence[Change]) -> bytes:
    """The content of the file."""
    # Not pydantic's own writer: names of files need not be UTF-8.
    lines = ",\n".join(json.dumps(one.model_dump(mode="python")) for one in changes)
    return f'{{"format": {FORMAT}, "changes": [\n{lines}\n]}}\n'.encode()


def regular(path: Path) -> bool:
    """Whether a file of the history is there.

    Raises:
        ArtifactError: if it, or the history's folder, is something else, such as a link to elsewhere.
    """
    for place, kind, name in ((path.parent, stat.S_ISDIR, "folder"), (path, stat.S_ISREG, "file")):
        try:
            mode = place.lstat().st_mode
        except FileNotFoundError:
            return False
        except OSError as error:
            raise ArtifactError(f"{place} can't be read: {error.strerror or error}") from error
        if not kind(mode):
            raise ArtifactError(f"{place} is no plain {name} of the model's own: links are not followed")
    return True


def joined(disk: Sequence[Change], ours: Sequence[Change]) -> tuple[Log, int]:
    """The log after a save, and by how much the numbers of our versions rise in it.

    A model that goes on from what is on disk adds its new changes; another one comes behind what was there, with all of
    its own.

    Args:
        disk: what the folder's log says.
        ours: the changes of the model that is saved.

    Raises:
        ArtifactError: if the folder has changes that the model does not know of.
    """
    keys = [one.key for one in disk]
    start = keys.index(ours[0].key) if ours[0].key in keys else len(keys)
    there = keys[start:]
    if there != [one.key for one in ours[: len(there)]]:
        raise ArtifactError("was changed by someone else since it was loaded: load it again")
    more = [
        one.model_copy(update={"version": one.version + start, "content": one.content + start})
        for one in ours[len(there) :]
    ]
    return (*disk, *more), start
