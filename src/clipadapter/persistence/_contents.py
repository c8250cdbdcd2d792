"""What a model was in earlier versions, as files: a config by number, arrays by their hash."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clipadapter.errors import ArtifactError
from clipadapter.persistence._files import (
    CONFIG,
    HISTORY,
    OURS,
    SUPPORT,
    Arrays,
    ArtifactConfig,
    arrays_at,
    config_at,
    config_bytes,
    parse_config,
    write_synced,
)
from clipadapter.persistence._folder import Staging, find_file, link, own_names, read_consistently
from clipadapter.persistence._log import LOG, Change, Log, digest, found_change, read_log, regular

KEPT = 20
"""Contents that stay: those that the model had last. The first one does, too."""


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

    >>> from clipadapter.persistence._log import change
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
