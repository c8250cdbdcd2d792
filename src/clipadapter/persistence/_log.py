"""The log of a model's changes: who changed what and when, and which content it had from then on."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clipadapter.errors import ArtifactError, InputError
from clipadapter.persistence._evaluation import KEY
from clipadapter.persistence._files import HISTORY, ArtifactConfig, first_error, known_format, read_limited
from clipadapter.persistence._folder import find_file

LOG = "log.json"
FORMAT = 1
MAX_LOG_BYTES = 256 << 20
WHEN = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"
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
