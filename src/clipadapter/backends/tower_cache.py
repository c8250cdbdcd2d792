"""Converted towers on disk. A folder is complete or absent, and two processes convert a tower only once."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clipadapter.errors import ClipAdapterError, StoreError
from clipadapter.utils.cache import default_cache_dir

FACTS_FILE = "facts.json"
FORMAT_VERSION = 1


def cache_root() -> Path:
    """Folder of all converted towers."""
    return default_cache_dir() / "backends"


def read_cache_facts(folder: Path) -> dict[str, Any] | None:
    """Facts of a converted tower; None if the folder does not exist or is incomplete."""
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        is_complete = all((folder / name).stat().st_size == size for name, size in facts["files"].items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return facts if is_complete and facts.get("format") == FORMAT_VERSION else None


def build_in_cache(folder: Path, convert: Callable[[Path], None], facts: Mapping[str, Any]) -> None:
    """Convert into a folder, unless it is complete.

    A second process waits for the first, and uses its files. A killed process leaves only a hidden folder, which the
    next one removes.

    Args:
        folder: the folder.
        convert: writes files into an empty folder, its argument.
        facts: JSON values to store with the files.
    """
    if read_cache_facts(folder) is not None:
        return
    from filelock import FileLock  # not in the base install, which only reads

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if read_cache_facts(folder) is None:
                _build(folder, convert, facts)
    except ClipAdapterError:
        raise
    except OSError as error:
        raise StoreError(
            f"the converted tower can't be stored in {folder.parent} ({error}): check the folder's permissions and "
            "free space, or set XDG_CACHE_HOME to another folder"
        ) from error


def _build(folder: Path, convert: Callable[[Path], None], facts: Mapping[str, Any]) -> None:
    for abandoned in folder.parent.glob(f".{folder.name}.*.part"):
        shutil.rmtree(abandoned, ignore_errors=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    try:
        convert(part)
        files = {path.name: path.stat().st_size for path in part.iterdir() if path.is_file()}
        text = json.dumps({"format": FORMAT_VERSION, **facts, "files": files}, indent=1)
        (part / FACTS_FILE).write_text(text, encoding="utf-8")
        if folder.exists():  # damaged
            shutil.rmtree(folder)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
