"""Predictions as a file: Parquet, JSON lines or CSV, written in parts so that a stopped run continues.

``answers.parquet.parts/`` beside the file holds the parts and ``run.json``, which says what the run is: the model, the
options and the inputs. Each part is written atomically; its name has digests of the inputs that it answers and of its
content. At the end the parts are joined and removed, and so is the folder, unless other files are in it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from clipadapter.errors import DataError, InputError, require
from clipadapter.utils.files import RANDOM_END, csv_text, folder_without_links, sync_folder, write_atomically
from clipadapter.utils.prediction import Prediction, PredictionColumns

MAX_SHOWN_VALUE = 40
"""Characters of a value that a message shows."""
PURPOSE = "A Parquet file of predictions"
RUN_FILE = "run.json"
LOCK_FILE = "lock"
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP})
"""Errors of a file system, such as some over a network, that has no locks."""
RUN_KEY = "clipadapter.predictions"
"""Key of the run in ``run.json`` and in the metadata of a Parquet file, by which they are known as ours."""
PARTS_SUFFIX = ".parts"
SUFFIXES = (".parquet", ".jsonl", ".csv")
ROWS_PER_GROUP = 1 << 16
"""Rows of a row group of the finished Parquet file."""
SEPARATOR = "|"
"""Between several classes in a field of CSV."""
PART_NAME = re.compile(r"\d{8}-\d+-\d+-[0-9a-f]{32}-[0-9a-f]{32}\.\w+")
"""Number of the part, rows, rows without a prediction, digest of the inputs, and digest of the content."""
UNFINISHED_NAME = re.compile(rf"\.(\d{{8}}-\d+-\d+-[0-9a-f]{{32}}|joined)\.\w+|\.{RUN_FILE}{RANDOM_END}")
"""What a run that was killed had not finished."""
RECORD_KEYS = tuple(Prediction("", None, None, ()).record())


@dataclass(frozen=True, eq=False)
class AnsweredRows:
    """The predictions for some rows of a table of features.

    Args:
        sources: (m,) names of the pictures.
        errors: (m,) why a row has no prediction; None if it has one.
        columns: the predictions for the rows without an error, in their order.
    """

    sources: Sequence[str]
    errors: Sequence[str | None]
    columns: PredictionColumns

    def __len__(self) -> int:
        """Number of rows, those with an error included."""
        return len(self.sources)

    @property
    def n_unreadable(self) -> int:
        """Number of rows with an error."""
        return len(self.sources) - len(self.columns)

    def predictions(self) -> Iterator[Prediction]:
        """The predictions one by one."""
        names = [source for source, error in zip(self.sources, self.errors, strict=True) if error is None]
        answered = self.columns.predictions(names)
        for source, error in zip(self.sources, self.errors, strict=True):
            yield next(answered) if error is None else Prediction(source, None, None, (), error)


Rows: TypeAlias = Sequence[Prediction] | AnsweredRows


def check_prediction_file(path: Path) -> None:
    """Refuse, before the work, a file that can't or must not be written.

    Raises:
        InputError: if the suffix is unknown, it is a folder, or it was not written as a file of predictions.
        DataError: if there is no folder for it, or nothing can be written there.
        MissingExtraError: if pyarrow is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} does not end with {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}: give such a name")
    if path.suffix.lower() == ".parquet":
        require("pyarrow.parquet", "parquet", PURPOSE)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise DataError(f"{path} can't be written: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{path} can't be written: you may not write to {folder}")
    _check_parts_folder(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file: give another name")
    if path.exists() and path.stat().st_size and not _format_of(path).is_own(path):
        raise InputError(f"{path} exists and is no file of predictions: give another name, or remove it")


class PredictionFile:
    """A file of predictions that is written in parts. Use it as a context manager.

    Args:
        path: of the file; its suffix is the format.
        run: what the run is: values of JSON.
        keep_unreadable: whether parts of an earlier run are kept that have rows without a prediction.

    Raises:
        InputError: if parts of another run are there, or another process writes them.
        DataError: if nothing can be written.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], keep_unreadable: bool = True) -> None:
        check_prediction_file(path)
        self.keep_unreadable = keep_unreadable
        self.path, self.run, self.folder, self._format = path, dict(run), _parts_folder(path), _format_of(path)
        self._refuse_another_run()
        self._lock = _lock(self.folder)
        write_atomically(self.folder / RUN_FILE, json.dumps({RUN_KEY: self.run}, indent=1))
        self._remove(UNFINISHED_NAME)
        parts = sorted(path for path in self.folder.iterdir() if PART_NAME.fullmatch(path.name) and path.is_file())
        self._parts = [path for i, path in enumerate(parts) if path.name.startswith(f"{i:08}-")]
        self._n_kept = self.n_rows = self.n_unreadable = 0

    def __enter__(self) -> PredictionFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def next_length(self) -> int | None:
        """Number of inputs that the next part of an earlier run answers; None if there is none."""
        if self._n_kept == len(self._parts):
            return None
        return int(self._parts[self._n_kept].name.split("-")[1])

    def keep_next(self, stamp: str) -> bool:
        """Whether the next part of an earlier run is whole and answers these inputs, so that it is kept.

        Else it and all after it are removed, to be made anew.

        Args:
            stamp: of the next inputs, see `stamp_files`.
        """
        part = self._parts[self._n_kept]
        _, n_rows, n_unreadable, own_stamp, _ = part.stem.split("-")
        is_allowed = self.keep_unreadable or n_unreadable == "0"
        if stamp != own_stamp or not is_allowed or not _is_whole(part):
            self.drop_rest()
            return False
        self._n_kept += 1
        self.n_rows += int(n_rows)
        self.n_unreadable += int(n_unreadable)
        return True

    def drop_rest(self) -> None:
        """Remove the parts that were not kept."""
        for part in self._parts[self._n_kept :]:
            part.unlink()
        del self._parts[self._n_kept :]

    def write(self, blocks: Sequence[Rows], stamp: str) -> None:
        """Write the next part.

        Args:
            blocks: the predictions.
            stamp: of their inputs, see `stamp_files`.

        Raises:
            DataError: if it can't be written.
        """
        n_rows, n_unreadable = sum(map(len, blocks)), sum(map(_count_unreadable, blocks))
        name = f"{self._n_kept:08}-{n_rows}-{n_unreadable}-{stamp}"
        partial = self.folder / f".{name}{self.path.suffix}"
        with _explain_errors(self.path):
            self._format.write(partial, blocks)
            part = self.folder / f"{name}-{_digest_content(partial)}{self.path.suffix}"
            _replace(partial, part)
        self._parts.append(part)
        self._n_kept += 1
        self.n_rows += n_rows
        self.n_unreadable += n_unreadable

    def finish(self) -> None:
        """Join the parts to the file, which appears at once, and remove them.

        Raises:
            DataError: if it can't be written, or a part was damaged meanwhile.
        """
        self.drop_rest()
        for part in self._parts:
            if not _is_whole(part):
                raise DataError(f"{part} is damaged: check the disk; the same command then makes this part anew")
        joined = self.folder / f".joined{self.path.suffix}"
        with _explain_errors(self.path):
            self._format.join(joined, self._parts, json.dumps(self.run))
            _replace(joined, self.path)
        self.remove_parts()

    def remove_parts(self) -> None:
        """Remove the parts, and their folder unless other files are in it."""
        # Only who holds the lock may remove, so it is removed last: what another process writes after that must stay.
        with suppress(OSError):
            self._remove(PART_NAME)
            self._remove(UNFINISHED_NAME)
            (self.folder / RUN_FILE).unlink(missing_ok=True)
            if os.name == "nt":  # an open file can't be removed there
                self.close()
            (self.folder / LOCK_FILE).unlink(missing_ok=True)
            self.folder.rmdir()
        self.close()

    def close(self) -> None:
        """Let other processes write the parts."""
        self._lock.close()

    def _remove(self, names: re.Pattern[str]) -> None:
        """Remove the files of the folder with these names."""
        for path in list(self.folder.iterdir()):
            if names.fullmatch(path.name) and path.is_file():
                path.unlink(missing_ok=True)

    def _refuse_another_run(self) -> None:
        if not self.folder.is_dir() or not any(PART_NAME.fullmatch(file.name) for file in self.folder.iterdir()):
            return
        earlier = _read_run(self.folder)
        if earlier is None:
            raise InputError(f"{self.folder} has no {RUN_FILE}: remove the folder, or give another name")
        if earlier != json.loads(json.dumps(self.run)):
            names = [name for name in {**self.run, **earlier} if earlier.get(name) != self.run.get(name)]
            differences = [_describe_difference(name, earlier.get(name), self.run.get(name)) for name in names]
            raise InputError(
                f"{self.folder} has parts of a stopped run that differs from this command in {', '.join(differences)}: "
                "repeat its command to finish it, remove the folder, or give another name"
            )


def _describe_difference(name: str, there: object, here: object) -> str:
    """Name what differs, with both values unless they are digests or long."""
    texts = [json.dumps(value) for value in (there, here)]
    if max(map(len, texts)) > MAX_SHOWN_VALUE:
        return name
    return f"{name} ({texts[0]} there, {texts[1]} here)"


def _count_unreadable(rows: Rows) -> int:
    return rows.n_unreadable if isinstance(rows, AnsweredRows) else sum(each.error is not None for each in rows)


def file_facts(path: Path) -> bytes:
    """A digest of what changes when a file is written, replaced or renamed. Take it before the file is read.

    A person can set the time of a file (mtime), but not the time of that (ctime), which Windows and some file systems
    over a network lack: there, a new file of the same size, time and number counts as the old one.

    Args:
        path: of the file; it need not exist.
    """
    facts: tuple[object, ...] = (str(path),)
    with suppress(OSError, ValueError):
        status = path.stat()
        facts += (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return blake2b(repr(facts).encode(), digest_size=16).digest()


def stamp_files(files: Iterable[bytes], *facts: object) -> str:
    """A digest of files and of other facts.

    Args:
        files: of each the `file_facts`.
        facts: further facts that must be equal.
    """
    digest = blake2b(repr(facts).encode(), digest_size=16)
    for file in files:
        digest.update(file)
    return digest.hexdigest()


def _replace(source: Path, target: Path) -> None:
    """Rename a file that was written, once its content is on the disk."""
    with source.open("rb+") as file:
        os.fsync(file.fileno())
    source.replace(target)
    sync_folder(target.parent)


def _parts_folder(path: Path) -> Path:
    return path.with_name(path.name + PARTS_SUFFIX)


def _check_parts_folder(path: Path) -> None:
    """Refuse a folder for the parts that has links, or files of others where ours would be.

    Raises:
        InputError: if so.
    """
    parts = folder_without_links(path.parent, path.name + PARTS_SUFFIX)
    if parts.exists() and not parts.is_dir():
        raise InputError(f"{parts}, the folder for parts of {path.name}, is no folder: give another name")
    _read_run(parts)
    lock = parts / LOCK_FILE
    if lock.exists() and (not lock.is_file() or lock.stat().st_size):
        raise InputError(f"{lock} was not written by this program: move it away, or give another name")


def _read_run(folder: Path) -> dict[str, Any] | None:
    """The run that the parts in a folder are of; None if no file says it.

    Raises:
        InputError: if the file can't be read, or is of another program.
    """
    path = folder / RUN_FILE
    try:
        run = json.loads(path.read_text(encoding="utf-8"))[RUN_KEY]
        return {**run}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}): remove {folder}, or give another name") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{path} was not written by this program: move it away, or give another name") from error


def _digest_content(path: Path) -> str:
    return blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _is_whole(part: Path) -> bool:
    """Whether a part has the content that its name says. After a loss of power, or an edit, it may have another."""
    with suppress(OSError):
        return _digest_content(part) == part.stem.rpartition("-")[2]
    return False


def _lock(folder: Path) -> BinaryIO:
    """Make a folder with a lock that no other process can take until this one ends, however it ends.

    On Windows, and on a file system without locks, there is none.
    """
    refusal = f"another process writes to {folder}: wait for it, or give another name"
    try:
        folder.mkdir(exist_ok=True)
        file = (folder / LOCK_FILE).open("ab")
    except FileNotFoundError as error:  # the other one removed the folder at this moment
        raise InputError(refusal) from error
    with suppress(ModuleNotFoundError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_there = os.path.samestat(os.fstat(file.fileno()), (folder / LOCK_FILE).stat())
        except OSError as error:
            if error.errno in NO_LOCKS:
                return file
            file.close()
            raise InputError(refusal) from error
        if not is_there:  # the lock of a folder that was removed, beside which there may be another one
            file.close()
            raise InputError(refusal)
    return file


class _explain_errors:  # noqa: N801 - a context manager
    """Turn errors of the file system into one that says what to do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise DataError(
                f"{self.path} can't be written ({error.strerror or error}): check its folder and free space; the same "
                "command then continues"
            ) from error


class _Format(ABC):
    """One format of files."""

    @abstractmethod
    def is_own(self, path: Path) -> bool:
        """Whether the file is one of predictions."""

    @abstractmethod
    def write(self, path: Path, blocks: Sequence[Rows]) -> None:
        """Write a part."""

    @abstractmethod
    def join(self, path: Path, parts: Sequence[Path], run: str) -> None:
        """Write all parts as one file."""


class _Text(_Format):
    """A format of lines, after a header."""

    header = ""

    @abstractmethod
    def lines(self, predictions: Iterable[Prediction]) -> str:
        """The lines of some predictions."""

    def write(self, path: Path, blocks: Sequence[Rows]) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            for rows in blocks:
                file.write(self.lines(rows.predictions() if isinstance(rows, AnsweredRows) else rows))

    def join(self, path: Path, parts: Sequence[Path], run: str) -> None:
        with path.open("wb") as file:
            file.write(self.header.encode())
            for part in parts:
                with part.open("rb") as lines:
                    shutil.copyfileobj(lines, file)


class _JsonLines(_Text):
    def is_own(self, path: Path) -> bool:
        try:
            with path.open(encoding="utf-8") as file:
                return tuple(json.loads(file.readline())) == RECORD_KEYS
        except (OSError, ValueError, TypeError, RecursionError):
            return False

    def lines(self, predictions: Iterable[Prediction]) -> str:
        return "".join(json.dumps(prediction.record()) + "\n" for prediction in predictions)


class _Csv(_Text):
    header = "source,label,probability,top_labels,top_scores,nearest,unlike_every_class,ood_score,reason,labels,error\n"

    def is_own(self, path: Path) -> bool:
        try:
            with path.open(encoding="utf-8") as file:
                return file.readline() == self.header
        except (OSError, ValueError):
            return False

    def lines(self, predictions: Iterable[Prediction]) -> str:
        return csv_text(_csv_row(prediction) for prediction in predictions)


def _csv_row(prediction: Prediction) -> list[object]:
    return [
        prediction.source,
        prediction.label or "",
        "" if prediction.probability is None else prediction.probability,
        SEPARATOR.join(name for name, _ in prediction.top),
        SEPARATOR.join(str(score) for _, score in prediction.top),
        prediction.nearest or "",
        str(prediction.unlike_every_class).lower(),
        "" if prediction.ood_score is None else prediction.ood_score,
        prediction.reason or "",
        SEPARATOR.join(prediction.labels or ()),
        prediction.error or "",
    ]


class _Parquet(_Format):
    def is_own(self, path: Path) -> bool:
        parquet = require("pyarrow.parquet", "parquet", PURPOSE)
        try:
            return RUN_KEY.encode() in (parquet.read_schema(path).metadata or {})
        except (OSError, ValueError):
            return False

    def write(self, path: Path, blocks: Sequence[Rows]) -> None:
        pa, parquet = (require(name, "parquet", PURPOSE) for name in ("pyarrow", "pyarrow.parquet"))
        schema = _schema(pa)
        tables = [
            _table_of_columns(pa, rows, schema) if isinstance(rows, AnsweredRows) else _table(pa, rows, schema)
            for rows in blocks
        ]
        parquet.write_table(pa.concat_tables(tables), path, **_writer_options())

    def join(self, path: Path, parts: Sequence[Path], run: str) -> None:
        pa, parquet = (require(name, "parquet", PURPOSE) for name in ("pyarrow", "pyarrow.parquet"))
        schema = _schema(pa).with_metadata({RUN_KEY: run})
        waiting: list[Any] = []
        with parquet.ParquetWriter(path, schema, **_writer_options()) as writer:

            def write() -> None:
                writer.write_table(pa.concat_tables(waiting).replace_schema_metadata(schema.metadata))
                waiting.clear()

            for part in parts:
                waiting.append(parquet.read_table(part))
                if sum(map(len, waiting)) >= ROWS_PER_GROUP:
                    write()
            if waiting:
                write()


def _schema(pa: Any) -> Any:
    text, names = pa.string(), pa.list_(pa.string())
    return pa.schema(
        [
            ("source", text),
            ("label", text),
            ("probability", pa.float64()),
            ("top_labels", names),
            ("top_scores", pa.list_(pa.float64())),
            ("nearest", text),
            ("unlike_every_class", pa.bool_()),
            ("ood_score", pa.float64()),
            ("reason", text),
            ("labels", names),
            ("error", text),
        ]
    )


def _writer_options() -> dict[str, Any]:
    """Names of classes come often, those of pictures and scores once: a dictionary of these would cost time only."""
    names = ["label", "top_labels.list.element", "nearest", "reason", "labels.list.element", "error"]
    return {"use_dictionary": names, "compression": "snappy"}


def _table(pa: Any, predictions: Sequence[Prediction], schema: Any) -> Any:
    columns = {
        "source": [each.source for each in predictions],
        "label": [each.label for each in predictions],
        "probability": [each.probability for each in predictions],
        "top_labels": [[name for name, _ in each.top] for each in predictions],
        "top_scores": [[score for _, score in each.top] for each in predictions],
        "nearest": [each.nearest for each in predictions],
        "unlike_every_class": [each.unlike_every_class for each in predictions],
        "ood_score": [each.ood_score for each in predictions],
        "reason": [each.reason for each in predictions],
        "labels": [None if each.labels is None else list(each.labels) for each in predictions],
        "error": [each.error for each in predictions],
    }
    return pa.table(columns, schema=schema)


def _table_of_columns(pa: Any, rows: AnsweredRows, schema: Any) -> Any:
    """The same from columns. No object is made per row, but for reasons and errors, of which there are few."""
    columns, n = rows.columns, len(rows)
    names = pa.array(columns.class_names, pa.string())

    def classes(positions: Any, mask: Any = None) -> Any:
        return names.take(pa.array(positions, pa.int64(), mask=mask))

    has_one = np.array([error is None for error in rows.errors], bool)
    positions = pa.array(np.cumsum(has_one) - 1, pa.int64(), mask=~has_one)

    def spread(array: Any) -> Any:
        """Nulls for the rows with an error."""
        return array if len(columns) == n else array.take(positions)

    def lists(offsets: Any, values: Any, is_null: Any = None) -> Any:
        """Empty lists for the rows with an error, or nulls."""
        lengths = np.zeros(n, np.int64)
        lengths[has_one] = np.diff(offsets)
        all_offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        return pa.ListArray.from_arrays(all_offsets, values, mask=None if is_null is None else pa.array(is_null))

    members = pa.nulls(n, schema.field("labels").type)
    if columns.members is not None:
        members = lists(columns.member_offsets, classes(columns.members), ~has_one)
    has_scores, unlike = columns.ood_scores is not None, np.zeros(n, bool)
    unlike[has_one] = has_scores and np.array([reason is not None for reason in columns.reasons], bool)
    scores = pa.array(columns.ood_scores, pa.float64()) if has_scores else pa.nulls(len(columns), pa.float64())
    arrays = {
        "label": spread(classes(columns.best, columns.rejected)),
        "probability": spread(pa.array(columns.probabilities, pa.float64())),
        "top_labels": lists(columns.top_offsets, classes(columns.top)),
        "top_scores": lists(columns.top_offsets, pa.array(columns.top_scores, pa.float64())),
        "nearest": spread(classes(columns.best)),
        "unlike_every_class": pa.array(unlike),
        "ood_score": spread(scores),
        "reason": spread(pa.array(columns.reasons, pa.string())),
        "labels": members,
    }
    arrays["source"] = pa.array(rows.sources, pa.string())
    arrays["error"] = pa.array(rows.errors, pa.string()) if len(columns) < n else pa.nulls(n, pa.string())
    return pa.table([arrays[name] for name in schema.names], schema=schema)


_FORMATS: dict[str, Callable[[], _Format]] = {".parquet": _Parquet, ".jsonl": _JsonLines, ".csv": _Csv}


def _format_of(path: Path) -> _Format:
    return _FORMATS[path.suffix.lower()]()
