"""Records in a file ``runs.jsonl``, one run a line; of several lines with the same key the last one counts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import ValidationError

from clipadapter.bench.run import FORMAT, Run
from clipadapter.errors import DataError, InputError
from clipadapter.utils.files import path_without_links

RECORD_START = b'{"format":'
"""First bytes of each record."""


def records_file(folder: Path) -> Path:
    """The file of the records of a folder, which is no link."""
    return path_without_links(folder, "runs.jsonl", error=DataError)


def append_runs(path: str | Path, runs: Iterable[Run]) -> None:
    """Append runs to a file, one line each. Existing lines are not changed.

    Several processes may append: one waits for the other. An incomplete record at the end, as after a full disk, is
    removed.
    """
    path = path_without_links(Path(path).parent, Path(path).name)
    data = "".join(f"{run.model_dump_json()}\n" for run in runs).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path_without_links(path.parent, f".{path.name}.lock")), path.open("ab+") as file:
            _drop_torn_line(file, path)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror or error}; give a folder you may write to") from error


def read_runs(path: str | Path) -> list[Run]:
    """Read the runs of a file, in order; an incomplete last line is left out.

    Raises:
        DataError: if the file can't be read, or a line is no run; says which.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror or error}") from error
    runs = (parse_run(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip())
    last: dict[str, Run] = {}
    for run in runs:
        last.pop(run.key, None)
        last[run.key] = run
    return list(last.values())


def read_existing_runs(path: str | Path | None) -> dict[str, Run]:
    """The runs of a file by their keys; none if there is no file yet."""
    if path is None or not Path(path).is_file():
        return {}
    return {run.key: run for run in read_runs(path)}


def parse_run(where: str, line: bytes) -> Run:
    """Parse a record; ``where`` is its place for messages, such as "runs.jsonl, line 3"."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no run: {error}; delete it") from error
    number = record.get("format") if isinstance(record, dict) else None
    if isinstance(number, int) and number != FORMAT:
        raise DataError(f"{where} has format {number}, this version reads {FORMAT}; move it away to start anew")
    try:
        return Run.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{where} is no run: {field} {first['msg']}; delete it") from error


def _drop_torn_line(file: Any, path: Path) -> None:
    end = file.seek(0, os.SEEK_END)
    if not end:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    content = file.read()
    start = content.rfind(b"\n") + 1
    if not content.startswith(RECORD_START, start) and not RECORD_START.startswith(content[start:]):
        raise InputError(f"{path} is not a file of runs: give another folder, or move the file away")
    file.truncate(start)
