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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from clipadapter.cli.outputs import check_output_file, has_parquet_key
from clipadapter.errors import DataError, InputError, require
from clipadapter.utils.files import RANDOM_END, csv_text, folder_without_links, keep_mode, sync_folder, write_atomically
from clipadapter.utils.prediction import Prediction, PredictionColumns

MAX_SHOWN_VALUE = 40  # characters of a value that a message shows
PURPOSE = "A Parquet file of predictions"
RUN_FILE = "run.json"
LOCK_FILE = "lock"
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP})
"""Errors of a file system, such as some over a network, that has no locks."""
RUN_KEY = "clipadapter.predictions"
"""Key of the run in ``run.json`` and in the metadata of a Parquet file, by which they are known as ours."""
PARTS_SUFFIX = ".parts"
ROWS_PER_GROUP = 1 << 16  # rows of a row group of the finished Parquet file
SEPARATOR = "|"  # between several classes in a field of CSV
PART_NAME = re.compile(r"\d{8}-\d+-\d+-[0-9a-f]{32}-[0-9a-f]{32}\.\w+")
"""Number of the part, rows, rows without a prediction, digest of the inputs, and digest of the content."""
UNFINISHED_NAME = re.compile(rf"\.(\d{{8}}-\d+-\d+-[0-9a-f]{{32}}|joined)\.\w+|\.{RUN_FILE}{RANDOM_END}")
"""What a run that was killed had not finished."""
RECORD_KEYS = tuple(Prediction("", None, None, ()).record())
CSV_HEADER = "source,label,probability,top_labels,top_scores,nearest,unlike_every_class,ood_score,reason,labels,error\n"
COLUMNS = CSV_HEADER.rstrip().split(",")


@dataclass(frozen=True, eq=False)
class AnsweredRows:
    """The predictions for some rows of a table of features."""

    sources: Sequence[str]  # (m,) names of the pictures
    errors: Sequence[str | None]  # (m,) why a row has no prediction; None if it has one
    columns: PredictionColumns  # of the rows without an error, in their order

    def __len__(self) -> int:
        return len(self.sources)

    def __iter__(self) -> Iterator[Prediction]:
        return self.columns.with_unreadable(self.sources, self.errors)


Rows: TypeAlias = Sequence[Prediction] | AnsweredRows  # predictions that are ready at once


def list_unreadable(rows: Rows) -> list[tuple[str, str]]:
    """The names of what has no prediction, each with the reason."""
    if isinstance(rows, AnsweredRows):
        pairs = list(zip(rows.sources, rows.errors, strict=True))
    else:
        pairs = [(row.source, row.error) for row in rows]
    return [(source, error) for source, error in pairs if error is not None]


def check_prediction_file(path: Path, *inputs: Path) -> dict[str, Any] | None:
    """Refuse, before the work, a file that can't or must not be written. Returns the run of earlier parts, if any."""
    check_output_file(path, "file of predictions", _is_own, *inputs, suffixes=(".parquet", ".jsonl", ".csv"))
    parts = folder_without_links(path.parent, path.name + PARTS_SUFFIX)
    if parts.exists() and not parts.is_dir():
        raise InputError(f"{parts}, the folder for parts of {path.name}, is no folder: give another name")
    stated = parts / RUN_FILE
    run: dict[str, Any] | None = None
    try:
        run = {**json.loads(stated.read_text(encoding="utf-8"))[RUN_KEY]}
    except FileNotFoundError:  # no file says which run the parts are of
        pass
    except OSError as error:
        raise InputError(f"{stated} can't be read ({error.strerror}): remove {parts}, or give another name") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{stated} was not written by this program: move it away, or give another name") from error
    lock = parts / LOCK_FILE
    if lock.exists() and (not lock.is_file() or lock.stat().st_size):
        raise InputError(f"{lock} was not written by this program: move it away, or give another name")
    return run


class PredictionFile:
    """A file of predictions of a run (values of JSON) that is written in parts, while no other process can."""

    def __init__(self, path: Path, run: Mapping[str, Any], keep_unreadable: bool = True) -> None:
        earlier = check_prediction_file(path)
        self.keep_unreadable = keep_unreadable
        self.path, self.run, self.folder = path, dict(run), path.with_name(path.name + PARTS_SUFFIX)
        if self.folder.is_dir() and any(PART_NAME.fullmatch(file.name) for file in self.folder.iterdir()):
            _refuse_another_run(self.folder, earlier, self.run)
        self._lock = _lock(self.folder)
        write_atomically(self.folder / RUN_FILE, json.dumps({RUN_KEY: self.run}, indent=1))
        self._remove(UNFINISHED_NAME)
        self._parts: list[Path] = []
        self.n_rows = self.n_unreadable = 0  # of these parts

    def __enter__(self) -> PredictionFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def keep_parts(self, total: int, stamp: Callable[[int, int], str]) -> int:
        """Keep the parts of an earlier run that answer the first of `total` inputs, whose number is returned.

        The first part that is not whole, or lacks the ``stamp`` of its inputs, and all after it are removed.
        """
        found = sorted(path for path in self.folder.iterdir() if PART_NAME.fullmatch(path.name) and path.is_file())
        for i, part in enumerate(found):
            number, *counts, own_stamp, _ = part.stem.split("-")
            n_rows, n_unreadable = map(int, counts)
            is_next = int(number) == i and self.n_rows + n_rows <= total and (self.keep_unreadable or not n_unreadable)
            if not is_next or stamp(self.n_rows, n_rows) != own_stamp or not _is_whole(part):
                for other in found[i:]:
                    other.unlink()
                break
            self._add(part, n_rows, n_unreadable)
        return self.n_rows

    def write(self, blocks: Sequence[Rows], stamp: str) -> None:
        """Write the next part: predictions for the inputs of this stamp."""
        if not isinstance(blocks[0], AnsweredRows):  # pictures come one by one
            blocks = [list(chain.from_iterable(blocks))]
        n_rows, n_unreadable = (sum(map(len, each)) for each in (blocks, map(list_unreadable, blocks)))
        name = f"{len(self._parts):08}-{n_rows}-{n_unreadable}-{stamp}"
        partial = self.folder / f".{name}{self.path.suffix}"
        with _explain_errors(self.path):
            _write_part(partial, blocks)
            part = self.folder / f"{name}-{_digest_content(partial)}{self.path.suffix}"
            _replace(partial, part)
        self._add(part, n_rows, n_unreadable)

    def _add(self, part: Path, n_rows: int, n_unreadable: int) -> None:
        self._parts.append(part)
        self.n_rows += n_rows
        self.n_unreadable += n_unreadable

    def finish(self) -> None:
        """Join the parts to the file, which appears at once, and remove them."""
        for part in self._parts:
            if not _is_whole(part):
                raise DataError(f"{part} is damaged: check the disk; the same command then makes this part anew")
        joined = self.folder / f".joined{self.path.suffix}"
        with _explain_errors(self.path):
            _join_parts(joined, self._parts, json.dumps(self.run))
            _replace(joined, self.path)
        self.remove_parts()

    def remove_parts(self) -> None:
        """Remove the parts, and their folder unless other files are in it. Other processes may then write there."""
        # Only who holds the lock may remove, so it is removed last: what another process writes after that must stay.
        with suppress(OSError):
            self._remove(PART_NAME, UNFINISHED_NAME)
            (self.folder / RUN_FILE).unlink(missing_ok=True)
            if os.name == "nt":  # an open file can't be removed there
                self._lock.close()
            (self.folder / LOCK_FILE).unlink(missing_ok=True)
            self.folder.rmdir()
        self._lock.close()

    def _remove(self, *names: re.Pattern[str]) -> None:
        """Remove the files of the folder with these names."""
        for path in list(self.folder.iterdir()):
            if any(each.fullmatch(path.name) for each in names) and path.is_file():
                path.unlink(missing_ok=True)


def _refuse_another_run(folder: Path, earlier: Mapping[str, Any] | None, run: Mapping[str, Any]) -> None:
    """Refuse to mix parts with those of another run. What differs is named, with both values unless they are long."""
    if earlier is None:
        raise InputError(f"{folder} has no {RUN_FILE}: remove the folder, or give another name")
    differences = []
    for name in {**run, **earlier}:
        there, here = (json.dumps(each.get(name)) for each in (earlier, run))
        if there != here:
            is_long = max(len(there), len(here)) > MAX_SHOWN_VALUE
            differences.append(name if is_long else f"{name} ({there} there, {here} here)")
    if differences:
        raise InputError(
            f"{folder} has parts of a stopped run that differs from this command in {', '.join(differences)}: "
            "repeat its command to finish it, remove the folder, or give another name"
        )


def _replace(source: Path, target: Path) -> None:
    """Rename a file that was written, once its content is on the disk."""
    with source.open("rb+") as file:
        os.fsync(file.fileno())
    keep_mode(source, target)
    source.replace(target)
    sync_folder(target.parent)


def _digest_content(path: Path) -> str:
    return blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _is_whole(part: Path) -> bool:
    """Whether a part has the content that its name says. After a loss of power, or an edit, it may have another."""
    with suppress(OSError):
        return _digest_content(part) == part.stem.rpartition("-")[2]
    return False


def _lock(folder: Path) -> BinaryIO:
    """Make a folder with a lock that no process can take while this one lives; Windows and some disks have none."""
    refusal = InputError(f"another process writes to {folder}: wait for it, or give another name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("ab")
    except FileNotFoundError as error:  # the other one removed the folder at this moment
        raise refusal from error
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Else this is the lock of a folder that was removed, beside which there may be another one.
        is_own = os.path.samestat(os.fstat(file.fileno()), (folder / LOCK_FILE).stat())
    except ModuleNotFoundError:
        return file
    except OSError as error:
        is_own = error.errno in NO_LOCKS
    if not is_own:
        file.close()
        raise refusal
    return file


@contextmanager
def _explain_errors(path: Path) -> Iterator[None]:
    """Turn errors of the file system into one that says what to do."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} can't be written ({error.strerror or error}): check its folder and free space; the same command "
            "then continues"
        ) from error


# ---- The formats ----


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _is_own(path: Path) -> bool:
    """Whether an existing file is one of predictions."""
    if _is_parquet(path):
        return has_parquet_key(path, RUN_KEY)
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline()
        return first == CSV_HEADER if path.suffix.lower() == ".csv" else tuple(json.loads(first)) == RECORD_KEYS
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _write_part(path: Path, blocks: Sequence[Rows]) -> None:
    if _is_parquet(path):
        pa, parquet = (require(name, "parquet", PURPOSE) for name in ("pyarrow", "pyarrow.parquet"))
        schema = _schema(pa)
        parquet.write_table(pa.concat_tables([_table(pa, rows, schema) for rows in blocks]), path, **_writer_options())
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        for rows in blocks:
            if path.suffix.lower() == ".csv":
                records = map(_fields, rows)
                file.write(csv_text([_csv_cell(record[name]) for name in COLUMNS] for record in records))
            else:
                file.writelines(json.dumps(prediction.record()) + "\n" for prediction in rows)


def _join_parts(path: Path, parts: Sequence[Path], run: str) -> None:
    """Write all parts as one file."""
    if not _is_parquet(path):
        with path.open("wb") as file:
            file.write(CSV_HEADER.encode() if path.suffix.lower() == ".csv" else b"")
            for part in parts:
                with part.open("rb") as lines:
                    shutil.copyfileobj(lines, file)
        return
    pa, parquet = (require(name, "parquet", PURPOSE) for name in ("pyarrow", "pyarrow.parquet"))
    schema, group = _schema(pa).with_metadata({RUN_KEY: run}), list[Any]()
    with parquet.ParquetWriter(path, schema, **_writer_options()) as writer:
        for i, part in enumerate(parts, start=1):
            group.append(parquet.read_table(part))
            if i == len(parts) or sum(map(len, group)) >= ROWS_PER_GROUP:
                writer.write_table(pa.concat_tables(group).replace_schema_metadata(schema.metadata))
                group.clear()


def _fields(prediction: Prediction) -> dict[str, Any]:
    """The record of a prediction with a list of classes and one of scores in place of the list of pairs."""
    record = prediction.record()
    top = record.pop("top")
    return {**record, "top_labels": [each["label"] for each in top], "top_scores": [each["score"] for each in top]}


def _csv_cell(value: object) -> object:
    if isinstance(value, list):
        return SEPARATOR.join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else "" if value is None else value


def _schema(pa: Any) -> Any:
    text, number = pa.string(), pa.float64()
    types = {"probability": number, "ood_score": number, "unlike_every_class": pa.bool_()}
    types |= {"top_labels": pa.list_(text), "top_scores": pa.list_(number), "labels": pa.list_(text)}
    return pa.schema([(name, types.get(name, text)) for name in COLUMNS])


def _writer_options() -> dict[str, Any]:
    """Names of classes come often, those of pictures and scores once: a dictionary of these would cost time only."""
    names = ["label", "top_labels.list.element", "nearest", "reason", "labels.list.element", "error"]
    return {"use_dictionary": names, "compression": "snappy"}


def _table(pa: Any, rows: Rows, schema: Any) -> Any:
    if not isinstance(rows, AnsweredRows) or len(rows) > len(rows.columns):
        return pa.Table.from_pylist(list(map(_fields, rows)), schema)
    # No object is made per row, but for reasons, of which there are few.
    columns, n = rows.columns, len(rows)
    names = pa.array(columns.class_names, pa.string())

    def classes(positions: Any, mask: Any = None) -> Any:
        return names.take(pa.array(positions, pa.int64(), mask=mask))

    def lists(offsets: Any, values: Any) -> Any:
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)

    has_scores = columns.ood_scores is not None
    arrays = {
        "source": pa.array(rows.sources, pa.string()),
        "label": classes(columns.best, columns.rejected),
        "probability": pa.array(columns.probabilities, pa.float64()),
        "top_labels": lists(columns.top_offsets, classes(columns.top)),
        "top_scores": lists(columns.top_offsets, pa.array(columns.top_scores, pa.float64())),
        "nearest": classes(columns.best),
        "unlike_every_class": pa.array([has_scores and reason is not None for reason in columns.reasons], pa.bool_()),
        "ood_score": pa.array(columns.ood_scores, pa.float64()) if has_scores else pa.nulls(n, pa.float64()),
        "reason": pa.array(columns.reasons, pa.string()),
        "labels": pa.nulls(n, schema.field("labels").type),
        "error": pa.nulls(n, pa.string()),
    }
    if columns.members is not None:
        arrays["labels"] = lists(columns.member_offsets, classes(columns.members))
    return pa.table([arrays[name] for name in schema.names], schema=schema)
