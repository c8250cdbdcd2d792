"""Formats of exported models: their files, how they are written, and what runs them.

A backend has its format as the attribute ``format``. `clipadapter.runtime.export` writes files and
`clipadapter.runtime` opens them by this table. Every command reads it: it loads no numpy, no torch and no runtime.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO

from clipadapter.errors import ArtifactError, InputError, brief
from clipadapter.runtime.engines.base import BACKENDS
from clipadapter.runtime.engines.export_format import ExportFormat
from clipadapter.utils.files import open_regular

if TYPE_CHECKING:
    import hashlib


DEFAULT_FORMAT = "onnx"


@cache
def load_formats() -> Mapping[str, ExportFormat]:
    """All formats by name, the default first: those of the backends, also of other packages."""
    formats = [each for name in BACKENDS.list() if (each := BACKENDS.info(name).cls.format) is not None]
    formats.sort(key=lambda each: (each.name != DEFAULT_FORMAT, each.name))
    return MappingProxyType({each.name: each for each in formats})


def get_format(name: str) -> ExportFormat:
    """The format of a name."""
    formats = load_formats()
    if name not in formats:
        raise InputError(f"format is {' or '.join(formats)}, not {brief(name)}")
    return formats[name]


def find_format(path: Path) -> ExportFormat | None:
    """The format of a file by its suffix, in lower or upper case; None if it is no exported model."""
    return next((each for each in load_formats().values() if each.suffix == path.suffix.lower()), None)


def require_format(path: Path) -> ExportFormat:
    """As `find_format`, for a file that must be an exported model."""
    export_format = find_format(path)
    if export_format is None:
        raise ArtifactError(
            f"{path} is not an exported model: those end in {' or '.join(export_suffixes())}; 'clipadapter export' "
            "makes one of a saved model"
        )
    return export_format


def is_exported(path: Path) -> bool:
    """Whether a path has the suffix of an exported model."""
    return find_format(path) is not None


def export_suffixes() -> tuple[str, ...]:
    """Suffixes of the files to open, that of the default format first."""
    return tuple(each.suffix for each in load_formats().values())


def companion_files(path: Path) -> tuple[Path, ...]:
    """`ExportFormat.companion_files` of a path; none if it is no exported model."""
    export_format = find_format(path)
    return () if export_format is None else export_format.companion_files(path)


def list_openers(format_name: str) -> list[str]:
    """Names of the backends that open files of a format, the one that brings the format first."""
    classes = {name: BACKENDS.info(name).cls for name in BACKENDS.list()}
    own = [name for name, cls in classes.items() if cls.format is not None and cls.format.name == format_name]
    return own + [name for name, cls in classes.items() if format_name in cls.opens]


def list_inference_backends() -> list[str]:
    """Names of all backends that open exported models, those of the default format first."""
    return list(dict.fromkeys(name for each in load_formats() for name in list_openers(each)))


# ---- The SHA-256 at the end of the file to open ----
# `Predictor` checks it before a backend opens the file. It shows damage, not malice: whoever changes a file on purpose
# can write another one. Its digits stand between the two parts of `checksum_ending`. They cover the companion files
# first, then the file itself up to the digits, so that a graph with the weights of another export is noticed as well.

N_DIGITS = 64
BLOCK_BYTES = 1 << 20


def check_file(path: Path) -> str:
    """Compare an exported file with the checksum at its end, which is returned."""
    export_format, total = require_format(path), _new_hash()
    before, after = export_format.checksum_ending
    *companions, main = export_format.existing_files(path)
    with open_model(main) as file:
        n_covered = os.fstat(file.fileno()).st_size - N_DIGITS - len(after)
        file.seek(max(0, n_covered - len(before)))
        pattern = re.escape(before) + rb"([0-9a-f]{%d})" % N_DIGITS + re.escape(after)
        ending = re.fullmatch(pattern, file.read(len(before) + N_DIGITS + len(after)))
        if ending is None:
            raise ArtifactError(
                f"{path} was not written by 'clipadapter export', or it was altered: the SHA-256 at its end is "
                "missing. Copy or export it again"
            )
        for companion in companions:
            with open_model(companion) as companion_file:
                add_bytes(total, companion_file)
        file.seek(0)
        add_bytes(total, file, n_covered)
    digits = ending[1].decode("ascii")
    if total.hexdigest() != digits:
        fault = " was altered after its export"
        if export_format.companion_suffixes:
            others = " and ".join(export_format.companion_suffixes)
            fault = f" and its {others} are not of one export, or one of them was altered"
        raise ArtifactError(
            f"{path}{fault}: SHA-256 is {total.hexdigest()}, but {digits} was written: copy or export it again"
        )
    return digits


def is_intact(path: Path) -> bool:
    """Whether an exported file is there and was not altered."""
    try:
        check_file(path)
    except ArtifactError:
        return False
    return True


def append_checksum(path: Path) -> None:
    """Append its checksum to a file."""
    export_format, total = require_format(path), _new_hash()
    before, after = export_format.checksum_ending
    with path.open("ab") as file:
        file.write(before)
    for part in export_format.existing_files(path):
        with open_model(part) as file:
            add_bytes(total, file)
    with path.open("ab") as file:
        file.write(total.hexdigest().encode("ascii") + after)


def open_model(path: Path) -> BinaryIO:
    """Open a regular file, or a link to one, for reading; devices and pipes are refused, which may never end."""
    try:
        return open_regular(path)
    except OSError as error:
        raise ArtifactError(f"{path} can't be read ({error.strerror or error}): copy the model to a file") from error


def _new_hash() -> hashlib._Hash:
    from hashlib import sha256  # late: loads OpenSSL, and every command imports this module

    return sha256()


def add_bytes(total: hashlib._Hash, file: BinaryIO, n_bytes: int | None = None) -> None:
    """Add the first bytes of a file to a hash; by default as many as the file has now, even if it grows meanwhile."""
    remaining = os.fstat(file.fileno()).st_size if n_bytes is None else n_bytes
    while remaining > 0 and (block := file.read(min(remaining, BLOCK_BYTES))):
        total.update(block)
        remaining -= len(block)
