"""Writing a file whole or not at all; what a path is, where a model is expected; and names without paths."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from clipadapter.errors import InputError

EXPORTED = (".onnx", ".xml")
"""How files end that `clipadapter.export` writes and `clipadapter.runtime` opens."""


def why_no_model(path: str | Path) -> str:
    """Why a path is not the folder of a saved model, and what to do; "" if it looks like one.

    >>> why_no_model("nowhere")
    "there is no folder nowhere: give the one that 'clipadapter fit' wrote"
    """
    place = Path(path)
    try:
        there, folder, config = place.exists(), place.is_dir(), (place / "config.json").is_file()
    except (OSError, ValueError) as error:
        return f"{path} can't be looked at ({error}): give the folder that 'clipadapter fit' wrote"
    if folder:
        return "" if config else f"{path} holds no model: it has no config.json. 'clipadapter fit' makes one"
    if not there:
        return f"there is no folder {path}: give the one that 'clipadapter fit' wrote"
    if place.suffix.lower() in EXPORTED:
        return (
            f"{path} is an exported file, which 'clipadapter predict' and 'serve' take: this needs the folder that "
            "'clipadapter fit' wrote"
        )
    return f"{path} is a file: give the folder that 'clipadapter fit' wrote"


def without_paths(name: str) -> str:
    """The name of an encoder with the last part alone of paths of this machine.

    >>> without_paths("open_clip:local-dir:/home/ann/clip")
    'open_clip:local-dir:clip'
    """
    # A folder may be called "a+b"; where a plus joins two encoders, the second one's scheme follows it.
    parts = re.compile(r"(local-dir:|simclr:)(.*?)(?=\+[a-z_]+:|$)")
    return parts.sub(lambda found: found[1] + re.split(r"[/\\]", found[2].rstrip("/\\"))[-1], name)


def write_whole(path: str | Path, data: str | bytes) -> Path:
    """Write a file, and its folder; whatever stops it leaves an older file as it was. A link is followed.

    Args:
        path: to write.
        data: bytes, or text for UTF-8.

    Returns:
        The path, as it was given.

    Raises:
        InputError: if it can't be written.
    """
    target, temporary = Path(path).resolve(), None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name[:100]}-", delete=False) as file:
            temporary = Path(file.name)
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise InputError(f"can't write {path}: {error.strerror or error}; give a place you may write to") from error
    return Path(path)
