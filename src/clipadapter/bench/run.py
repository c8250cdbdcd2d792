"""A run: one JSON record of a fit, its shots and its metrics, and the file ``runs.jsonl`` of records.

All tables and plots are made from records.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, RootModel, ValidationError, model_validator
from typing_extensions import Self

from clipadapter.errors import DataError, InputError
from clipadapter.metrics import check_metrics, metrics_shown
from clipadapter.metrics.continual import ContinualMetrics, continual_metrics
from clipadapter.persistence.format import FrozenModel, describe_first_error
from clipadapter.utils.files import path_without_links

if TYPE_CHECKING:
    from clipadapter.classifier.evaluation import Score

FORMAT = 1
KEY_FIELDS = (
    *("method", "method_version", "measurement_version", "params", "encoder", "data", "templates", "text"),
    *("shots", "seed", "rows", "flags", "versions"),
)
"""The fields that determine the metrics. Two runs with the same values are the same run."""
MEASUREMENT_VERSION = 1
"""Version of ``classifier.evaluation.score`` and of the metrics. Raise it if the same logits give other metrics."""


class RunEncoder(FrozenModel):
    """The encoder of the features."""

    name: str
    fingerprint: str


class RunData(FrozenModel):
    """The data, and in ``protocol`` what the test pictures are; that is not the name of a registered protocol.

    ``"given"`` if the test part is separate, ``"rest"`` if it is the rows that were not drawn, ``"shift"`` if its
    pictures are of another data set with classes of the support, ``"new"`` if it has other classes, of which the head
    has only the text, ``"stream"`` for the test parts of a stream of tasks, ``"folds"`` if it is all rows, each
    predicted by a fit to other folds.
    """

    support: str  # name of the data set that the shots were drawn from
    test: str  # name of the test part; that of the support if the rows that were not drawn are the test part
    protocol: str
    digest: str  # of features and labels of both


class Flags(FrozenModel):
    """What qualifies the metrics of a record."""

    transductive: bool = False  # the head uses the unlabelled test pictures


class Metrics(RootModel[dict[str, float]]):
    """Metrics on the test part by their name in `clipadapter.metrics.METRICS`. Optional ones may be absent."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_metrics(self.root, metrics_shown("record", "single-label"))
        return self

    @classmethod
    def of_score(cls, score: Score) -> Self:
        """The metrics of a score that a record has."""
        return cls({name: score.evaluation.metrics[name] for name in metrics_shown("record", "single-label")})

    @property
    def accuracy(self) -> float:
        """Share of pictures whose most probable class is the true one."""
        return self.root["accuracy"]

    def __getitem__(self, name: str) -> float:
        return self.root[name]

    def __contains__(self, name: str) -> bool:
        return name in self.root


class Seconds(FrozenModel):
    """Duration of the fit and of the prediction."""

    fit: float
    predict: float


class Machine(FrozenModel):
    """The machine."""

    cpus: int  # its cores
    platform: str  # system and kind of processor
    peak_memory_mb: int | None = None  # of the process so far, without that of a GPU; None if it is unknown
    device: str = "cpu"  # where the head computed; see `devices.describe_device`


class Task(FrozenModel):
    """One task of a stream."""

    name: str  # in tables
    part: str  # name of the test part that has its test pictures
    classes: list[str] = Field(min_length=1)  # a class may be in several tasks
    shots: int = Field(ge=0)  # of all its classes together


class TaskStream(FrozenModel):
    """A stream of tasks, in the order in which they are learned, and how a head learns it."""

    task_known: bool  # the head predicts among the classes of the picture's task (MTIL); else of all tasks (X-TAIL)
    joint: bool  # the head is fitted again to all shots so far; else it continues, and gets those of the new task only
    tasks: list[Task] = Field(min_length=1)


class Step(FrozenModel):
    """The result of learning one task."""

    seconds: float  # of this fit
    size: int  # numbers that are stored to predict and to learn on: the state, and for a joint head all shots so far
    metrics: list[Metrics]  # on every task, learned or not, in the order of the tasks


class ContinualResult(FrozenModel):
    """The result of a stream of T tasks."""

    zero_shot: list[float] | None = None  # accuracy of the class text alone on each task; None if a class has no text
    steps: list[Step] = Field(min_length=1)  # T, one after each task

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        widths = {len(step.metrics) for step in self.steps} | ({len(self.zero_shot)} if self.zero_shot else set())
        if widths != {len(self.steps)}:
            raise ValueError(f"every step must measure all {len(self.steps)} tasks, but there are {widths} figures")
        return self

    @property
    def accuracy(self) -> list[list[float]]:
        """(T, T): row t, column i is the accuracy on task i after task t."""
        return [[one.accuracy for one in step.metrics] for step in self.steps]

    @property
    def metrics(self) -> ContinualMetrics:
        """Transfer, Average, Last, forgetting and forward transfer."""
        return continual_metrics(self.accuracy, self.zero_shot)


class Run(FrozenModel):
    """One head, fitted once on drawn shots and measured once.

    Args:
        format: number of this layout.
        head: the head's name in tables.
        method: registered name of the head.
        method_version: its version; see `methods.method_version`.
        measurement_version: see `MEASUREMENT_VERSION`.
        params: parameters of the head.
        encoder: the encoder.
        data: the data.
        templates: templates of the class text, if the features have them.
        text: hash of the class text.
        shots: requested shots per class; a smaller class gives all its rows.
        seed: of the draw, and of the head if it has a parameter ``seed``.
        rows: the drawn rows of the support data.
        flags: what qualifies the metrics.
        code: hash of the source of this package. The key does not depend on it.
        versions: of the libraries.
        n_classes: number of classes.
        n_test: number of test pictures.
        size: how many numbers the state of the fitted head has; None if it failed.
        seconds: of the fit and of the prediction; None if it failed.
        metrics: on the test part; None if it failed.
        correct: which test pictures are right, a bit each in the order of the test part, as hexadecimal digits. None if
            it failed, or the test pictures depend on the draw.
        learned: numbers that the head chose or learned, such as ``alpha_``.
        error: the reason if it failed, else None.
        machine: the machine.
        created: when, in UTC.
        stream: the stream of tasks; None for other protocols. With a stream, the metrics are means over the tasks after
            the last one, and the seconds are of all fits together.
        continual: results after each task; None if it failed, or there is no stream.
    """

    format: int = FORMAT
    head: str
    method: str
    method_version: str = "1"
    measurement_version: int = MEASUREMENT_VERSION
    params: dict[str, bool | int | float | str | None]
    encoder: RunEncoder
    data: RunData
    templates: list[str]
    text: str
    shots: int = Field(ge=1)
    seed: int
    rows: list[int]
    flags: Flags = Flags()
    code: str
    versions: dict[str, str]
    n_classes: int
    n_test: int
    size: int | None = None
    seconds: Seconds | None = None
    metrics: Metrics | None = None
    correct: str | None = Field(default=None, pattern="^([0-9a-f]{2})*$")
    learned: dict[str, float] = Field(default_factory=dict)
    error: str | None = None
    machine: Machine
    created: str
    stream: TaskStream | None = None
    continual: ContinualResult | None = None

    @model_validator(mode="after")
    def _check_correct(self) -> Self:
        if self.correct is not None and len(self.correct) != 2 * math.ceil(self.n_test / 8):
            raise ValueError(f"correct has {len(self.correct)} digits, which {self.n_test} test pictures do not give")
        return self

    @property
    def correct_pictures(self) -> NDArray[np.bool_] | None:
        """(m,) which test pictures are right; None as for ``correct``."""
        if self.correct is None:
            return None
        return np.unpackbits(np.frombuffer(bytes.fromhex(self.correct), np.uint8), count=self.n_test).astype(bool)

    @property
    def key(self) -> str:
        """Hash of the fields that determine the metrics: of `KEY_FIELDS`, and of the tasks of a stream.

        It covers the method, its version and its parameters, the data and the libraries. It does not depend on the
        source code or on the release of this package: a study continues after an upgrade, and repeats only the fits of
        methods with a new version. It does not depend on the device either, which changes logits by rounding only: a
        study that was begun on a CPU continues on a GPU. `Run.machine` says which device made a record.
        """
        fields = {*KEY_FIELDS, *(["stream"] if self.stream is not None else [])}
        facts = self.model_dump(mode="json", include=fields)
        facts["versions"] = {name: number for name, number in self.versions.items() if name != "clipadapter"}
        return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def pack_correct(correct: NDArray[np.bool_]) -> str:
    """`Run.correct` of (m,) test pictures."""
    return np.packbits(correct).tobytes().hex()


@cache
def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that metrics depend on."""
    names = ("clipadapter", "torch", "scikit-learn", "numpy")
    return {**{name: version(name) for name in names}, "python": platform.python_version()}


def describe_machine() -> Machine:
    """Describe this machine and process."""
    return Machine(
        cpus=os.cpu_count() or 1, platform=f"{platform.system()} {platform.machine()}", peak_memory_mb=_peak_memory()
    )


def _peak_memory() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) >> (20 if sys.platform == "darwin" else 10)


def digest(*parts: bytes | Sequence[str]) -> str:
    """Hash of bytes and lists of texts, and of where each ends."""
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else "\0".join(part).encode(errors="surrogatepass")
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()


# ---- The file of records: one run a line, of several lines with the same key the last one counts ----

RECORD_START = b'{"format":'  # first bytes of each record


def records_file(folder: Path) -> Path:
    """The file of the records of a folder, which is no link."""
    return path_without_links(folder, "runs.jsonl", error=DataError)


def append_runs(path: str | Path, runs: Iterable[Run]) -> None:
    """Append runs to a file, one line each; several processes may do so."""
    path = path_without_links(Path(path).parent, Path(path).name)
    data = "".join(f"{run.model_dump_json()}\n" for run in runs).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path_without_links(path.parent, f".{path.name}.lock")), path.open("ab+") as file:
            # As after a full disk.
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
        raise DataError(f"{where} is no run: {describe_first_error(error)}; delete it") from error


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
