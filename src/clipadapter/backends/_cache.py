"""Converted towers on disk: made whole or not at all, once, whoever else wants the same at that time."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clipadapter.cache import default_cache_dir
from clipadapter.errors import ClipAdapterError, StoreError

FACTS = "facts.json"
FORMAT = 1


def root() -> Path:
    """Folder of all converted towers."""
    return default_cache_dir() / "backends"


def facts(place: Path) -> dict[str, Any] | None:
    """What is known of a converted tower; None if there is none, or it is not whole."""
    try:
        found: dict[str, Any] = json.loads((place / FACTS).read_text(encoding="utf-8"))
        whole = all((place / name).stat().st_size == size for name, size in found["files"].items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return found if whole and found.get("format") == FORMAT else None


def build(place: Path, convert: Callable[[Path], None], known: Mapping[str, Any]) -> None:
    """Have `convert` fill a folder, unless that was done before.

    A second process waits for the first, and takes what it made. A killed one leaves nothing but a hidden folder,
    which the next removes.

    Args:
        place: the folder.
        convert: writes files into the empty folder it is given.
        known: facts to keep beside the files, as JSON can hold them.

    Raises:
        StoreError: if the folder can't be written.
    """
    if facts(place) is not None:
        return
    from filelock import FileLock  # what only reads does without

    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.parent / f".{place.name}.lock"):
            if facts(place) is None:
                _build(place, convert, known)
    except ClipAdapterError:
        raise
    except OSError as error:
        raise StoreError(
            f"the converted tower can't be kept in {place.parent} ({error}): check the folder's permissions and free "
            "space, or set XDG_CACHE_HOME to another folder"
        ) from error


def _build(place: Path, convert: Callable[[Path], None], known: Mapping[str, Any]) -> None:
    for left in place.parent.glob(f".{place.name}.*.part"):
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}.", suffix=".part"))
    try:
        convert(folder)
        files = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        text = json.dumps({"format": FORMAT, **known, "files": files}, indent=1)
        (folder / FACTS).write_text(text, encoding="utf-8")
        if place.exists():  # damaged
            shutil.rmtree(place)
        folder.rename(place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
