"""The exported file of a saved model in the cache folder: `predict` opens it without torch, and `serve` serves it.

`clipadapter.runtime.export.exporter` writes it. See docs/decisions/0015-quick-prediction.md.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from clipadapter.errors import ClipAdapterError
from clipadapter.runtime.engines.formats import get_format, load_formats
from clipadapter.runtime.model_folder import CONFIG_FILE, HEAD, UNCERTAINTY, array_file, model_path
from clipadapter.runtime.predictor import Predictor
from clipadapter.utils.files import default_cache_dir

MAX_HASHED_BYTES = 64 << 20
"""Models with larger files are opened as they are: hashing these would take longer than is saved."""


def cached_export(folder: Path, format_name: str) -> Path:
    """The exported file of a saved model, whether it exists or not. Its name is the hash of the model's config."""
    digest = hashlib.sha256(_read(folder, CONFIG_FILE)).hexdigest()[:32]
    return default_cache_dir() / "exports" / f"{digest}{get_format(format_name).suffix}"


def open_cached(folder: Path) -> Predictor | None:
    """Open the exported file of a saved model; None if it is not there or can't answer, or if the model was altered."""
    try:
        path = next((path for name in load_formats() if (path := cached_export(folder, name)).exists()), None)
        return Predictor(path) if path is not None and can_answer(folder) and _is_sound(folder) else None
    except (ClipAdapterError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logging.getLogger(__name__).info("no prediction of %s without torch: %s", folder, error)
        return None


def can_answer(folder: Path) -> bool:
    """Whether an exported file can answer as a saved model does."""
    # It has the tower in fp32, no sets by CV+, and no negative labels to name.
    config = json.loads(_read(folder, CONFIG_FILE))
    conformal, rejector = (config["uncertainty"].get(name) or {} for name in ("conformal", "rejector"))
    has_more = conformal.get("method") == "cv+" or rejector.get("negative_label_names")
    return config["encoder"]["precision"] == "fp32" and not has_more


def _is_sound(folder: Path) -> bool:
    """Whether the other files have the hashes that the config states."""
    files = json.loads(_read(folder, CONFIG_FILE))["files"]
    paths = {name: array_file(name, sha256) for name, sha256 in files.items()}
    names = (HEAD, *({UNCERTAINTY} & set(files)))
    are_equal = all(hashlib.sha256(_read(folder, paths[name])).hexdigest() == files[name] for name in names)
    return are_equal and all(model_path(folder, path).is_file() for path in paths.values())  # of the shots


def _read(folder: Path, name: str) -> bytes:
    path = model_path(folder, name)
    if path.stat().st_size > MAX_HASHED_BYTES:
        raise ValueError(f"{path} is too large")
    return path.read_bytes()
