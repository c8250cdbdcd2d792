"""Files that several packages read and write: atomic writes, CSV text, suffixes, and checks of paths.

Folders that this program writes and reads again (``.studio``, ``NAME.parts``, models, shards, records of studies) may
come from another person, with links in them. One rule is for all: a path that a person names may be a link, but nothing
below it that belongs to this program is (`path_without_links`), and only files with names of our own are overwritten or
removed.
"""

from __future__ import annotations

import csv
import difflib
import errno
import io
import json
import os
import re
import secrets
import shlex
import shutil
import stat
import sys
import time
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from clipadapter.errors import ClipAdapterError, InputError, brief, require


def default_cache_dir() -> Path:
    """The user's cache folder for this package; the folder may not exist yet."""
    if os.environ.get("XDG_CACHE_HOME"):
        base = Path(os.environ["XDG_CACHE_HOME"])
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path.home() / ".cache"
    return base / "clipadapter"


IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
    + (".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".heic", ".heif", ".hif")
)
"""Lower-case suffixes of the pictures that are read from folders."""
MAX_PIXELS = 100_000_000  # larger pictures are refused, unless `set_max_pixels` was called or the caller names a limit
MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")  # suffixes of the tables that list pictures
SHARDS_FILE = "shards.json"  # the file that makes a folder one of feature shards
ENCODER_KEY = "clipadapter.encoder"  # key of the encoder in the metadata of a Parquet file of features

LOCAL_WEIGHTS = re.compile(
    r"(?:open_clip:|timm:)?local-dir:|simclr:|(?:open_clip|timm):[^:\[,]+:|hf:(?=[/\\~.]|[A-Za-z]:)"
)
"""What stands before a path in the name of an encoder."""
PARQUET_MARK = b"PAR1"  # first and last bytes of a Parquet file
MAX_COMPARED_NAMES = 10_000  # names of a folder that a misspelt one is compared with, which takes 0.1 s
ABANDONED_SECONDS = 24 * 3600  # age from which a temporary file counts as abandoned
RANDOM_END = "-[a-z0-9_]{8}"  # pattern of what `tempfile` appends to the prefix of a temporary file or folder
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb]"
)
"""Control characters, line and paragraph separators, marks of the direction of text, invisible characters and halves of
characters. The joiners U+200C and U+200D are not among them: scripts and emoji need them."""
NOT_IN_FILE_NAMES = re.compile(UNPRINTABLE.pattern[:-1] + r'/\\:*?"<>|]')
"""What a file name can't have: on Windows the last nine."""
DEVICE_NAMES = frozenset(
    ("con", "prn", "aux", "nul", "conin$", "conout$", "clock$")
    + tuple(f"{kind}{n}" for kind in ("com", "lpt") for n in "0123456789¹²³")
)
"""Names that Windows reserves, with any suffix."""
MAX_FILE_NAME_BYTES = 100  # file systems allow 255; temporary files beside an entry have longer names
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "＝", "＋", "－", "＠")
"""First characters of a cell that spreadsheets may run as a formula. Some languages use the full-width forms."""


def encodable(path: str | Path) -> str:
    r"""A path or name as valid text: bytes that are no UTF-8 are written as escapes.

    >>> encodable("caf\udce9.jpg")
    'caf\\udce9.jpg'
    """
    return os.fspath(path).encode(errors="backslashreplace").decode()


def printable(path: str | Path) -> str:
    r"""A path or name for messages and the terminal: what is no letter, mark or space is written as an escape.

    Names come from anybody. Control characters could start a new line, clear the screen or change the title of the
    terminal, and invisible ones could turn the direction of the text or hide a part of it. The escapes are those of
    JSON, so that a JSON document stays one.
    """
    return UNPRINTABLE.sub(lambda match: json.dumps(match[0])[1:-1], os.fspath(path))


def safe_file_name(text: str, default: str = "_") -> str:
    """The nearest name of a file or folder that every system allows, that is not hidden and is no path."""
    base = NOT_IN_FILE_NAMES.sub("_", unicodedata.normalize("NFC", text)).strip()
    base = re.sub(r"[.\s]+$", "", re.sub(r"^\.+", "_", base)) or default
    stem, dot, ending = base.partition(".")
    if stem.strip().casefold() in DEVICE_NAMES:
        base = f"{stem}_{dot}{ending}"  # the suffix does not matter to Windows
    if len(base.encode()) > MAX_FILE_NAME_BYTES:
        from hashlib import blake2b  # late: loads OpenSSL, and every command imports this module

        cut = base.encode()[: MAX_FILE_NAME_BYTES - 9].decode(errors="ignore").rstrip(". ")
        base = f"{cut}-{blake2b(text.encode(errors='replace'), digest_size=4).hexdigest()}"
    return base


def free_name(base: str, suffix: str, used: Collection[str]) -> str:
    """Return the name with a number, if it needs one to be none of the used ones, in the form of `fold_name`."""
    name, number = base + suffix, 2
    while fold_name(name) in used:
        name, number = f"{base}-{number}{suffix}", number + 1
    return name


def fold_name(name: str) -> str:
    """Return the same text for names that some file system takes for one: they differ in case or form of accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def check_file_name(name: str) -> str:
    """Return a name that a file or folder gets, if it is one on every system.

    Every name that a file from elsewhere states goes through this function or `safe_file_name` before it is joined to a
    folder.
    """
    safe = safe_file_name(name)
    if safe != unicodedata.normalize("NFC", name):
        raise InputError(f"{brief(name)} can't be the name of a file: choose another, such as '{safe}'")
    return name


def is_same_name(name: str, other: str) -> bool:
    """Whether two names are those of one file on some system. On Windows ends of dots and spaces do not count.

    A colon begins the name of a part of the file there. Short names such as ``STUDIO~1`` are not compared.

    >>> is_same_name("Mine. ", "mine"), is_same_name("mine::$DATA", "mine"), is_same_name("mine.", ".mine")
    (True, True, False)
    """
    first, second = (fold_name(each.partition(":")[0]).rstrip(". ") for each in (name, other))
    return first == second


def has_local_weights(name: str) -> bool:
    """Whether weights of an encoder are in a file or folder of this machine.

    >>> has_local_weights("open_clip:ViT-B-32:/home/ann/own.pt"), has_local_weights("open_clip:ViT-B-32/openai")
    (True, False)
    """
    return LOCAL_WEIGHTS.search(name) is not None


def suggest_path(missing: Path) -> str:
    """A question that names an existing path of a similar name, after a space; "" if there is none."""
    steps = [missing, *missing.parents]
    try:
        first = next((step for step in reversed(steps) if not step.exists()), missing)
        with os.scandir(first.parent) as entries:
            siblings = [entry.name for entry in islice(entries, MAX_COMPARED_NAMES)]
        names = {name.casefold(): name for name in sorted(siblings)}
        close = difflib.get_close_matches(first.name.casefold(), names, n=3)
        candidates = (first.with_name(names[name]) / missing.relative_to(first) for name in close)
        meant = next((path for path in candidates if path.exists()), None)
    except (OSError, ValueError):  # no right to read a folder, or names that no file can have
        return ""
    return f" Did you mean '{printable(meant)}'?" if meant is not None else ""


def explain_missing(missing: Path, wanted: str = "") -> str:
    """What follows "there is no PATH" in a message: the path that was probably meant, and what to give if wanted.

    >>> explain_missing(Path("nowhere/at/all"), "a folder with pictures")
    ': give a folder with pictures'
    """
    hint = suggest_path(missing)
    if not wanted:
        return f".{hint}" if hint else ""
    return f".{hint} Give {wanted}" if hint else f": give {wanted}"


def quote_path(path: str | Path) -> str:
    """A path as one word of a command that a message prints.

    >>> quote_path("my model"), quote_path("model")
    ("'my model'", 'model')
    """
    return shlex.quote(printable(path))


def without_paths(name: str) -> str:
    """The name of an encoder; of paths of this machine only the last part is kept."""
    base, bracket, blocks = name.rpartition("[final")
    if not bracket:
        prefix = LOCAL_WEIGHTS.match(name)
        return prefix[0] + re.split(r"[/\\]", name[prefix.end() :].rstrip("/\\"))[-1] if prefix else name
    # A block is ENCODER/LAYER, or a layer of the encoder that comes first.
    pairs = (block.rpartition("/") for block in blocks.split(","))
    return without_paths(base) + bracket + ",".join(without_paths(uri) + slash + layer for uri, slash, layer in pairs)


def path_without_links(base: str | Path, *names: str, error: type[ClipAdapterError] = InputError) -> Path:
    """The path of a file or folder of this program, which need not exist.

    ``base`` is what a person named, which may be a link; no step from there may be one. Windows can open no file
    without following links, so each step is looked at before anything is opened.
    """
    path = Path(base)
    for i, name in enumerate(names, start=1):
        path = path / name
        try:
            status = path.lstat()
        except OSError:  # there is nothing, or nothing that can be opened: what opens it says why
            break
        kind, is_last = stat.S_IFMT(status.st_mode), i == len(names)
        is_junction = getattr(status, "st_reparse_tag", 0) == getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", -1)
        if kind == stat.S_IFLNK or is_junction:
            with suppress(OSError):
                name = f"{name} -> {path.readlink()}"
            problem = f"is a link ({printable(name)}); links are not followed in the program's own folders"
        elif kind == stat.S_IFDIR or (kind == stat.S_IFREG and is_last):
            continue
        else:
            problem = f"is no {'file' if is_last else 'folder'}"
        raise error(f"{printable(path)} {problem}: remove it, or put the file or folder itself there")
    return Path(base, *names)


def folder_without_links(base: str | Path, *names: str, error: type[ClipAdapterError] = InputError) -> Path:
    """The path of a folder of this program, below which there are no links either; see `path_without_links`."""
    folder = path_without_links(base, *names, error=error)
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path_without_links(parent, name, error=error)
    return folder


def remove_abandoned(folder: Path, pattern: str, min_age: float = ABANDONED_SECONDS) -> None:
    """Remove temporary files and folders that a killed process left behind, once they are a day old.

    Where many processes write into one folder without locks, only age shows that no process uses a file any more. An
    age of 0 is for folders with a lock.
    """
    with suppress(OSError):  # there is no folder to read
        for path in [each for each in folder.iterdir() if re.fullmatch(pattern, each.name)]:
            with suppress(OSError):  # another process removed it first
                newest = max(entry.lstat().st_mtime for entry in (path, *path.rglob("*")))
                if time.time() - newest < min_age:
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    r"""A table as CSV in which no text is a formula.

    Spreadsheets run a cell that begins with ``=``, ``+``, ``-`` or ``@``, and names of classes, data sets and heads
    can come from anybody. Such a text gets an apostrophe in front, which makes the spreadsheet show it as text. Numbers
    are written unchanged, also negative ones.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([_cell(value) for value in row] for row in rows)
    return file.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    plain = value.replace("\r", " ")  # the csv module does not quote it, and spreadsheets start a row there
    return f"'{plain}" if plain.startswith(FORMULA_STARTS) else plain


def is_number_list(kind: Any) -> bool:
    """Whether a column of a Parquet file has lists of numbers, such as features."""
    types = require("pyarrow.types", "parquet", "Reading Parquet")
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return is_list and (types.is_floating(kind.value_type) or types.is_integer(kind.value_type))


def describe_parquet_error(error: Exception, path: str | Path | None = None) -> str:
    """What is wrong with a Parquet file that can't be read; messages of pyarrow are not for users.

    >>> describe_parquet_error(ValueError("there is no column 'path'"))
    "there is no column 'path'"
    """
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    if isinstance(error, KeyError):
        return f"it lacks {error.args[0]}"
    if not isinstance(error, OSError) and not type(error).__module__.startswith("pyarrow"):
        return str(error)
    if path is None:
        return "it is no complete Parquet file"
    first, last = read_ends(path)
    if first != PARQUET_MARK:
        return "it is not in the format Parquet" if first else "it is empty"
    return "its data are damaged" if last == PARQUET_MARK else "it is not complete, its end is missing"


def read_ends(path: str | Path) -> tuple[bytes, bytes]:
    """The first and the last four bytes of a file, which has at least eight if both are full."""
    with open_regular(path) as file:
        first = file.read(4)
        file.seek(max(4, file.seek(0, os.SEEK_END) - 4))
        return first, file.read(4)


Stamp = tuple[int, int, int, int]
"""Device, inode, size and time of the last change of a file. A move does not change it."""


def stamp_files(paths: Iterable[str | Path]) -> tuple[Stamp, ...] | None:
    """What changes when one of some files is replaced or overwritten; None if one of them is gone."""
    try:
        stats = [Path(path).stat() for path in paths]
    except OSError:
        return None
    return tuple((each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns) for each in stats)


def write_atomically(path: str | Path, data: str | bytes, sync: bool = True) -> Path:
    """Write a file and its folder, and return the path. If the write fails, an older file stays. Links are followed.

    The file has the mode of the one that it replaces; a new one obeys the umask. ``sync`` waits until the data are on
    the disk, which takes milliseconds a file: caches need it not.
    """
    target, temporary = Path(path).resolve(), None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        name = target.with_name(f".{target.name[:100]}-{secrets.token_hex(4)}")
        with name.open("xb") as file:
            temporary = name
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        keep_mode(temporary, target)
        temporary.replace(target)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise InputError(f"can't write {path}: {error.strerror or error}; give a place you may write to") from error
    return Path(path)


def keep_mode(new: Path, old: Path) -> None:
    """Give a file the mode of the one that it is about to replace."""
    with suppress(OSError):  # there is none
        new.chmod(stat.S_IMODE(old.stat().st_mode))


MARKED_BYTES = 1 << 16  # at the start and at the end of a file, where marks are


def mark(writer: str) -> str:
    """A sentence in a file that a command writes, by which the command knows that it may write the file again.

    >>> mark("report")
    'clipadapter report wrote this file and may replace it'
    """
    return f"clipadapter {writer} wrote this file and may replace it"


def is_marked(path: str | Path, writer: str) -> bool:
    """Whether a file has the mark of a command."""
    with suppress(OSError, ValueError), open_regular(path) as file:
        parts = [file.read(MARKED_BYTES)]
        file.seek(max(0, file.seek(0, os.SEEK_END) - MARKED_BYTES))
        parts.append(file.read())
        return any(mark(writer).encode() in part for part in parts)
    return False


def sync_folder(folder: Path) -> None:
    """Sync the entries of a folder to the disk, as after a rename. Systems that can't sync a folder need no call."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file to read bytes. Pipes and devices are refused (OSError): reading them could block or never end.

    ValueError means that the path has a null character.
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):  # opening a device can already have an effect
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    # The file may be replaced by a pipe in the meantime: O_NONBLOCK keeps that from blocking, and fstat checks again.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def open_text(path: str | Path, newline: str | None = None) -> TextIO:
    """Open a regular file as `open_regular` does, to read UTF-8 text, with or without a byte order mark."""
    return io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline=newline)
