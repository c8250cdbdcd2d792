"""The history of a model on disk: the folder ``history`` with a log of all changes and snapshots of earlier versions.

``log.json`` has one `Change` per version. A snapshot is a config ``NNNN.json`` with the number of its version, and the
arrays that it names, as ``SHA256.safetensors``. Snapshots share equal arrays.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clipadapter.errors import ArtifactError, InputError
from clipadapter.persistence.evaluation import EVALUATION_KEY
from clipadapter.persistence.format import (
    Arrays,
    ModelConfig,
    check_format,
    config_bytes,
    describe_first_error,
    parse_config,
    read_array_file,
    read_at_most,
    read_config_file,
    write_and_sync,
)
from clipadapter.persistence.transaction import Staging, find_file, link_or_copy, list_history_files, read_consistently
from clipadapter.runtime.model_folder import (
    CONFIG_FILE,
    HISTORY_FOLDER,
    MODEL_FILES,
    SUPPORT_FILE,
    UNLABELLED_FILE,
    model_path,
)

LOG_FILE = "log.json"
LOG_FORMAT = 1
MAX_LOG_BYTES = 256 << 20
MAX_SNAPSHOTS = 20
"""Snapshots that are stored besides the first one: the latest ones."""
TIME_PATTERN = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
Log = tuple["Change", ...]


class Change(BaseModel):
    """One version of a model.

    Args:
        version: number of the version, from 1.
        action: what was done: "fit", "add-class", "undo" ...
        facts: details: names of classes and pictures, counts.
        by: author of the change, if known.
        when: UTC time.
        content: number of the snapshot of this version: the version itself; after an undo, the restored version.
        key: random key; no other change has it, in whatever folder.
        classes: number of classes after the change.
        pictures: number of shots after the change.
        config: digest of ``config.json`` (see `config_digest`), if it is written.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = Field(ge=1)
    action: str = Field(min_length=1, max_length=100)
    facts: dict[str, Any] = Field(default_factory=dict)
    by: str = Field(default="", max_length=200)
    when: str = Field(pattern=TIME_PATTERN)
    content: int = Field(ge=1)
    key: str = Field(pattern="^[0-9a-f]{32}$")
    classes: int = Field(default=0, ge=0)
    pictures: int = Field(default=0, ge=0)
    config: str = Field(default="", pattern="^([0-9a-f]{64})?$")


class _LogFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    changes: list[Change] = Field(min_length=1)


@dataclass(frozen=True)
class Snapshot:
    """A model in one version, as files."""

    config: ModelConfig
    raw: bytes
    files: dict[str, Path]  # paths of its arrays, by hash
    blobs: dict[str, bytes]  # bytes of its arrays, by hash, if they are in memory
    is_current: bool = False  # whether the paths are those of the current model, not of the history

    def arrays(self, name: str) -> Arrays:
        """Read and check the arrays of one file."""
        part = self.config.files.get(name)
        if part is None:
            raise ArtifactError(f"this version was saved without {name}")
        return read_array_file(self.files[part.sha256], part)

    def load(self) -> Snapshot:
        """Return the snapshot with all arrays in memory. Damaged files are left out."""
        blobs = {sha256: path.read_bytes() for sha256, path in self.files.items() if path.is_file()}
        sound = {sha256: blob for sha256, blob in blobs.items() if hashlib.sha256(blob).hexdigest() == sha256}
        return replace(self, blobs=sound, files={})

    def without_shots(self) -> Snapshot:
        """Return the snapshot without the features of the shots and of pictures without labels, and without names."""
        if SUPPORT_FILE not in self.config.files and not self.config.sources:
            return self
        removed = (SUPPORT_FILE, UNLABELLED_FILE)
        files = {name: part for name, part in self.config.files.items() if name not in removed}
        config = self.config.model_copy(update={"files": files, "sources": []})
        return replace(self, config=config, raw=config_bytes(config))


@dataclass(frozen=True)
class SavedHistory:
    """The history in the folder of a model."""

    folder: Path  # folder of the model, with links resolved
    changes: Log  # the log; followed by an inferred change if the current model is not in it
    config: ModelConfig | None  # config of the current model; None if it is damaged

    @classmethod
    def read(cls, folder: Path) -> SavedHistory | None:
        """Read the history in a folder; None if there is neither a log nor a model."""
        return read_consistently(folder, lambda: cls._read(folder))

    @classmethod
    def _read(cls, folder: Path) -> SavedHistory | None:
        changes = read_log(folder) or ()
        try:
            config = read_config_file(folder / CONFIG_FILE)
            modified = time.strftime(TIME_FORMAT, time.gmtime((folder / CONFIG_FILE).stat().st_mtime))
        except (ArtifactError, OSError):
            return cls(folder, changes, None) if changes else None
        if not changes or changes[-1].config != config_digest(config):
            changes = (*changes, infer_change(config, changes, modified))
        return cls(folder, changes, config)

    def has(self, number: int) -> bool:
        """Whether a snapshot seems to be there; its arrays are not read."""
        if not 1 <= number <= len(self.changes):
            return False
        return self._is_current(number) or self._config_path(number).is_file()

    def snapshot(self, number: int) -> Snapshot | None:
        """Return a snapshot; None if it is not stored."""
        if not self.has(number):
            return None
        if self._is_current(number):
            assert self.config is not None
            parts = {name: part for name, part in self.config.files.items() if name in MODEL_FILES}
            files = {part.sha256: model_path(self.folder, name) for name, part in parts.items()}
            return Snapshot(self.config, (self.folder / CONFIG_FILE).read_bytes(), files, {}, is_current=True)
        path = self._config_path(number)
        raw = path.read_bytes()
        config = parse_config(path, raw)
        hashes = {part.sha256 for part in config.files.values()}
        files = {sha256: find_file(self.folder, HISTORY_FOLDER, f"{sha256}.safetensors") for sha256 in hashes}
        if not all(file.is_file() for file in files.values()):
            raise ArtifactError(f"{path.parent} lacks arrays that {path.name} names: copy the whole folder")
        return Snapshot(config, raw, files, {})

    def _is_current(self, number: int) -> bool:
        return self.config is not None and number == self.changes[-1].content

    def _config_path(self, number: int) -> Path:
        return find_file(self.folder, HISTORY_FOLDER, f"{number:04}.json")


# ---- Changes ----


def new_change(action: str, facts: Mapping[str, Any], by: str, **fields: Any) -> Change:
    """Make a change with the current time and a new key."""
    try:
        json_facts = json.loads(json.dumps(dict(facts), allow_nan=False))
        return Change(action=action, facts=json_facts, by=by, when=utc_now(), key=uuid4().hex, **fields)
    except ValidationError as error:
        raise InputError(f"the history can't hold this: {describe_first_error(error)}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"the history can't hold these facts: {error}") from error


def infer_change(config: ModelConfig, log: Log, when: str) -> Change:
    """Infer the change behind a model that the log does not know. Repeated calls give the same change."""
    version = len(log) + 1
    digest, created = config_digest(config), str(config.provenance.get("created", ""))
    facts: dict[str, Any] = {"head": config.head.name, "encoder": config.encoder.name}
    if log:
        facts["recorded"] = False
    return Change(
        version=version,
        action="fit",
        facts=facts,
        when=created if re.fullmatch(TIME_PATTERN, created) else when,
        content=version,
        # The key depends on the last change too: files of an earlier version that were copied back are a new change.
        key=hashlib.sha256(f"{log[-1].key if log else ''} {digest}".encode()).hexdigest()[:32],
        classes=len(config.class_names),
        pictures=count_shots(config.provenance),
        config=digest,
    )


def config_digest(config: ModelConfig) -> str:
    """SHA-256 of a config without its evaluation, which may be recorded later."""
    content = config.model_dump(mode="json", exclude_defaults=True)
    content.get("provenance", {}).pop(EVALUATION_KEY, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def count_shots(provenance: Mapping[str, Any]) -> int:
    """Number of shots that a provenance names.

    >>> count_shots({"shots": {"cat": 2, "dog": 3}})
    5
    """
    shots = provenance.get("shots")
    counts = shots.values() if isinstance(shots, Mapping) else ()
    return sum(count for count in counts if isinstance(count, int) and count > 0)


def utc_now() -> str:
    """Current time in UTC, in seconds."""
    return time.strftime(TIME_FORMAT, time.gmtime())


# ---- The log ----


def read_log(folder: Path) -> Log | None:
    """Read and check the log in the folder of a model; None if there is none."""
    path = find_file(folder, HISTORY_FOLDER, LOG_FILE)
    if not path.is_file():
        return None
    todo = f"move the folder {folder / HISTORY_FOLDER} away to continue without the history"
    data = read_at_most(path, MAX_LOG_BYTES, f"it is no history; {todo}")
    try:
        raw = json.loads(data)
        check_format(path, raw, LOG_FORMAT)
        changes = tuple(_LogFile.model_validate(raw).changes)
    except ValidationError as error:
        raise ArtifactError(f"{path} is damaged: {describe_first_error(error)}; {todo}") from error
    except (ValueError, OSError, RecursionError) as error:
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


def merge_logs(on_disk: Sequence[Change], ours: Sequence[Change]) -> tuple[Log, int]:
    """Merge the log in a folder with the changes of the model that is saved into it.

    A model that was loaded from the folder appends its new changes. Another model appends all its changes.
    """
    keys = [change.key for change in on_disk]
    offset = keys.index(ours[0].key) if ours[0].key in keys else len(keys)
    shared = keys[offset:]
    if shared != [change.key for change in ours[: len(shared)]]:
        raise ArtifactError("was changed by someone else since it was loaded: load it again")
    added = [
        change.model_copy(update={"version": change.version + offset, "content": change.content + offset})
        for change in ours[len(shared) :]
    ]
    return (*on_disk, *added), offset


# ---- Snapshots ----


def retained_snapshots(changes: Sequence[Change]) -> list[int]:
    """Numbers of the stored snapshots, ascending: the first one and those that the model had last.

    >>> changes = [new_change("fit", {}, "", version=i, content=i) for i in range(1, 31)]
    >>> retained_snapshots(changes)[:3]
    [1, 11, 12]
    """
    latest_first = dict.fromkeys(change.content for change in reversed(changes))
    return sorted({changes[0].content, *list(latest_first)[:MAX_SNAPSHOTS]})


def stage_snapshots(staging: Staging, changes: Sequence[Change], find: Callable[[int], Snapshot | None]) -> None:
    """Stage the retained snapshots that the history lacks, and mark all other files of the history for removal.

    The snapshot of the current version is not staged: it is the model itself.
    """
    history, staged_history = staging.target / HISTORY_FOLDER, staging.path / HISTORY_FOLDER
    staged_history.mkdir(exist_ok=True)
    retained_files = {LOG_FILE}
    for number in retained_snapshots(changes):
        snapshot = None if number == changes[-1].content else find(number)
        if snapshot is None:
            continue
        hashes = [part.sha256 for part in snapshot.config.files.values()]
        if not all(_stage_arrays(snapshot, sha256, staged_history, history) for sha256 in hashes):
            continue
        name = f"{number:04}.json"
        if not has_content(history / name, snapshot.raw):
            write_and_sync(staged_history / name, snapshot.raw)
        retained_files |= {name, *(f"{sha256}.safetensors" for sha256 in hashes)}
    staging.removed = [
        name for name in list_history_files(history) if name not in retained_files and _may_be_ours(name, changes)
    ]


def _stage_arrays(snapshot: Snapshot, sha256: str, staged_history: Path, history: Path) -> bool:
    """Stage one file of arrays unless the history has it. Returns False if it is damaged or missing."""
    name = f"{sha256}.safetensors"
    if (staged_history / name).exists():
        return True
    source = snapshot.files.get(sha256)
    if source == history / name:
        return True
    if sha256 not in snapshot.blobs:
        if source is None or not source.is_file():
            return False
        data = source.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            return False
    else:
        data = snapshot.blobs[sha256]
    if has_content(history / name, data):
        return True
    # Links are for files of this folder only: a symbolic link leads into the cache of the hub, and the file of another
    # folder may be overwritten there.
    if snapshot.is_current and source is not None and not source.is_symlink():
        link_or_copy(source, staged_history / name)
    else:
        write_and_sync(staged_history / name, data)
    return True


def _may_be_ours(name: str, changes: Sequence[Change]) -> bool:
    """Whether a file in the history may be ours. A file such as ``2026.json`` may belong to a person."""
    stem = name.partition(".")[0]
    return not (name.endswith(".json") and stem.isdecimal()) or int(stem) <= len(changes)


def has_content(path: Path, data: bytes) -> bool:
    """Whether a regular file has this content."""
    return path.is_file() and not path.is_symlink() and path.read_bytes() == data
