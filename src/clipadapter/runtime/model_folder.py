"""The folder of a saved model: the names of its files, and why a path is no such folder.

`clipadapter.persistence` reads and writes the files. This module loads no torch: commands check a path by it first.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from clipadapter.errors import ArtifactError
from clipadapter.runtime.engines.formats import is_exported
from clipadapter.utils.files import explain_missing, path_without_links

CONFIG_FILE, CARD_FILE = "config.json", "README.md"
ARRAY_NAMES = ("head", "support", "unlabelled", "uncertainty", "folds")
"""Names of the files of arrays that a model can have, without their hashes."""
HEAD, SUPPORT, UNLABELLED, UNCERTAINTY, FOLD_HEADS = ARRAY_NAMES
ARRAYS_FOLDER, HISTORY_FOLDER = "arrays", "history"
"""Subfolders with the arrays of all versions, and with the log and the configs of earlier versions."""
LOCK_FILE = ".lock"  # in the folder of arrays: a save locks it
OWN_FILES = {
    ARRAYS_FOLDER: re.compile(
        rf"(?:{'|'.join(ARRAY_NAMES)})-[0-9a-f]{{16}}\.safetensors|new-(?:file|config\.json|README\.md)"
    ),
    HISTORY_FOLDER: re.compile(r"(?:log|config)-[0-9a-f]{16}\.json"),
}
"""Names of the program's own files in the subfolders. Other files there belong to a person."""


def list_own_files(folder: Path) -> list[str]:
    """The program's own files in the subfolders of a model's folder, as ``SUBFOLDER/NAME``."""
    return [
        f"{subfolder}/{path.name}"
        for subfolder, pattern in OWN_FILES.items()
        if (folder / subfolder).is_dir()
        for path in (folder / subfolder).iterdir()
        if pattern.fullmatch(path.name) and path.is_file()
    ]


def array_file(name: str, sha256: str) -> str:
    """Where a file of arrays is below the folder of a model. Its name has its hash, so that no save overwrites it."""
    file = f"{name}-{sha256[:16]}.safetensors"
    if name not in ARRAY_NAMES or not OWN_FILES[ARRAYS_FOLDER].fullmatch(file):
        raise ArtifactError(f"{CONFIG_FILE} names arrays {file!r}, which no model has: copy the model again")
    return f"{ARRAYS_FOLDER}/{file}"


def model_path(folder: str | Path, name: str) -> Path:
    """The path of a file of a model: the folder may be a link, but nothing in it; see `files.path_without_links`.

    In the cache of the hub, whose client made them, files are links into its folder ``blobs``.
    """
    path, snapshots = Path(folder, name), Path(os.path.realpath(folder)).parent
    blobs = snapshots.with_name("blobs")
    if path.is_symlink() and snapshots.name == "snapshots" and Path(os.path.realpath(path)).parent == blobs:
        return path
    return path_without_links(folder, *name.split("/"), error=ArtifactError)


def why_no_model(path: str | Path) -> str:
    """The reason why a path is not the folder of a saved model, with advice; "" if it seems to be one.

    >>> why_no_model("nowhere")
    "there is no folder nowhere: give the one that 'clipadapter fit' wrote"
    """
    folder, advice = Path(path), "give the folder that 'clipadapter fit' wrote"
    try:
        exists, is_folder, has_config = folder.exists(), folder.is_dir(), (folder / CONFIG_FILE).is_file()
    except (OSError, ValueError) as error:
        return f"{path} can't be read ({error}): {advice}"
    if is_folder:
        return "" if has_config else f"{path} holds no model: it has no {CONFIG_FILE}. 'clipadapter fit' makes one"
    if not exists:
        hint = explain_missing(folder, "the one that 'clipadapter fit' wrote")
        return f"there is no folder {path}{hint}"
    if is_exported(folder):
        commands = "'clipadapter predict', 'eval', 'serve' and 'monitor'"
        return f"{path} is an exported file, which only {commands} take: {advice}"
    return f"{path} is a file: {advice}"
