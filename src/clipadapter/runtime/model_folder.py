"""The folder of a saved model: the names of its files, and why a path is no such folder.

`clipadapter.persistence` reads and writes the files. This module loads neither numpy nor torch, so that commands can
check a path first.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from clipadapter.backends.formats import is_exported
from clipadapter.errors import ArtifactError
from clipadapter.utils.files import path_without_links

CONFIG_FILE, CARD_FILE = "config.json", "README.md"
HEAD_FILE, SUPPORT_FILE, UNLABELLED_FILE, UNCERTAINTY_FILE, FOLD_HEADS_FILE = (
    "head.safetensors",
    "support.safetensors",
    "unlabelled.safetensors",
    "uncertainty.safetensors",
    "folds.safetensors",
)
MODEL_FILES = (
    CONFIG_FILE,
    CARD_FILE,
    HEAD_FILE,
    SUPPORT_FILE,
    UNLABELLED_FILE,
    UNCERTAINTY_FILE,
    FOLD_HEADS_FILE,
)
"""All files that the folder of a model can have."""
HISTORY_FOLDER = "history"
"""Subfolder with earlier versions."""
STAGING_FOLDER = ".clipadapter-save"
"""Subfolder with the files of a save in progress."""


def model_path(folder: str | Path, *names: str) -> Path:
    """The path of a file of a model: the folder may be a link, but nothing in it; see `files.path_without_links`.

    In the cache of the hub, whose client made them, files are links into its folder ``blobs``.

    Raises:
        ArtifactError: if it is a link.
    """
    path, snapshots = Path(folder, *names), Path(os.path.realpath(folder)).parent
    blobs = snapshots.with_name("blobs")
    if path.is_symlink() and snapshots.name == "snapshots" and Path(os.path.realpath(path)).parent == blobs:
        return path
    return path_without_links(folder, *names, error=ArtifactError)


def why_no_model(path: str | Path) -> str:
    """The reason why a path is not the folder of a saved model, with advice; "" if it seems to be one.

    >>> why_no_model("nowhere")
    "there is no folder nowhere: give the one that 'clipadapter fit' wrote"
    """
    folder = Path(path)
    try:
        exists, is_folder, has_config = folder.exists(), folder.is_dir(), (folder / CONFIG_FILE).is_file()
    except (OSError, ValueError) as error:
        return f"{path} can't be read ({error}): give the folder that 'clipadapter fit' wrote"
    if is_folder:
        return "" if has_config else f"{path} holds no model: it has no {CONFIG_FILE}. 'clipadapter fit' makes one"
    if not exists:
        suggestion = suggest_model(folder)
        advice = f"{suggestion} Give" if suggestion else ": give"
        return f"there is no folder {path}{advice} the one that 'clipadapter fit' wrote"
    if is_exported(folder):
        return (
            f"{path} is an exported file, which only 'clipadapter predict', 'eval', 'serve' and 'monitor' take: give "
            "the folder that 'clipadapter fit' wrote"
        )
    return f"{path} is a file: give the folder that 'clipadapter fit' wrote"


def suggest_model(missing: Path) -> str:
    """The end of a sentence and a question that names a model of a similar name beside a missing path; else ""."""
    try:
        entries = list(missing.absolute().parent.iterdir())
        siblings = [entry.name for entry in entries if is_exported(entry) or (entry / CONFIG_FILE).is_file()]
    except OSError:
        return ""
    close = difflib.get_close_matches(missing.name, siblings, n=1)
    return f". Did you mean '{missing.with_name(close[0])}'?" if close else ""
