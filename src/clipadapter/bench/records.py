"""Records as a folder: one JSON file per run, written atomically, by any number of processes."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

from clipadapter.bench.run import Run, append_runs, parse_run
from clipadapter.errors import DataError
from clipadapter.files import (
    RANDOM_END,
    folder_without_links,
    path_without_links,
    remove_abandoned,
    write_atomically,
)

MAX_RECORD_BYTES = 16 << 20
"""A longer file is no record."""


class RecordFolder:
    """Runs by their key, in ``FOLDER/runs/KEY.json``. ``FOLDER/runs.jsonl`` has them in the order of their fits.

    Args:
        folder: created when the first record is written.

    Raises:
        DataError: if something in it is a link, see `path_without_links`.

    >>> RecordFolder("no-such-folder").keys()
    set()
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.runs = folder_without_links(self.folder, "runs", error=DataError)
        self.log = path_without_links(self.folder, "runs.jsonl", error=DataError)
        folder_without_links(self.folder, "features", error=DataError)

    def _files(self) -> list[Path]:
        return [path for path in self.runs.glob("*.json") if path.is_file()]

    def keys(self) -> set[str]:
        """Keys of the stored runs, failed ones too."""
        return {path.stem for path in self._files()}

    def write(self, runs: Iterable[Run]) -> None:
        """Add runs. A run with the same key is replaced, such as one that failed before.

        Raises:
            InputError: if the folder can't be written.
        """
        runs = list(runs)
        for run in runs:
            write_atomically(self.runs / f"{run.key}.json", run.model_dump_json() + "\n")
        append_runs(self.log, runs)

    def append_missing_to_log(self) -> None:
        """Add the runs to ``runs.jsonl`` that it lacks: a process may be killed between the two writes.

        Temporary files of killed processes are removed after a day.

        Raises:
            DataError: if a file is no record; says which.
            InputError: if the folder can't be written.
        """
        remove_abandoned(self.runs, rf"\.[0-9a-f]{{32}}\.json{RANDOM_END}")
        logged = set()
        if self.log.is_file():
            with self.log.open("rb") as file:
                logged = {_digest(line) for line in file if line.endswith(b"\n")}  # without a line that was cut short
        missing = [path.stem for path in self._files() if _digest(path.read_bytes()) not in logged]
        if missing:
            append_runs(self.log, sorted(map(self.get, missing), key=lambda run: (run.created, run.key)))

    def read(self) -> list[Run]:
        """All runs, oldest first.

        Raises:
            DataError: if a file is no record; says which.
        """
        return sorted((self.get(path.stem) for path in self._files()), key=lambda run: (run.created, run.key))

    def get(self, key: str) -> Run:
        """One run.

        Raises:
            DataError: if the file does not exist, is no record, or holds a record with another key.
        """
        path = self.runs / f"{key}.json"
        try:
            if path.stat().st_size > MAX_RECORD_BYTES:
                raise DataError(f"{path} is no run: it has more than {MAX_RECORD_BYTES >> 20} MB; delete it")
            run = parse_run(str(path), path.read_bytes())
        except OSError as error:
            raise DataError(f"can't read {path}: {error.strerror or error}") from error
        if run.key != key:
            raise DataError(f"{path} holds the run {run.key}: it was changed or renamed; delete it")
        return run


def _digest(line: bytes) -> bytes:
    return blake2b(line.strip(), digest_size=16).digest()
