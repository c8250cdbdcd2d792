"""A run: one JSON record of what was fitted on which shots, and what came out. Tables and plots are made from these."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError, model_validator
from typing_extensions import Self

from clipadapter.bench.continual.metrics import ContinualMetrics, continual_metrics
from clipadapter.errors import DataError, InputError
from clipadapter.metrics import check_metrics, metrics_shown

FORMAT = 3
KEY_FIELDS = {
    "method",
    "method_version",
    "measurement_version",
    "params",
    "encoder",
    "data",
    "templates",
    "text",
    "shots",
    "seed",
    "rows",
    "flags",
    "versions",
}
"""The fields that decide the figures. Two runs that agree in them are the same run."""
MEASUREMENT_VERSION = 1
"""Version of ``bench.score`` and of the metrics. Raise it if the same logits give another figure."""


class Part(BaseModel):
    """Base: frozen, and no field that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EncoderPart(Part):
    """The encoder that made the features."""

    name: str
    fingerprint: str


class DataPart(Part):
    """The data.

    Args:
        support: name of the data set that the shots were drawn from.
        test: name of the test part; the same if the rows that were not drawn are it.
        protocol: ``"given"`` if the test part stands apart, ``"rest"`` if it is the rows that were not drawn,
            ``"shift"`` if its pictures come from elsewhere but show classes of the support, ``"new"`` if it has other
            classes, which the head knows by their text alone, ``"stream"`` for the test parts of tasks that come one
            after the other, ``"folds"`` if it is all rows, each measured by a fit to other folds.
        digest: hash of features and labels of both.
    """

    support: str
    test: str
    protocol: str
    digest: str


class Flags(Part):
    """What must be told beside a figure.

    Args:
        validation: labelled pictures beyond the shots that the head was given: ``"none"``.
        transductive: whether the head looks at the test pictures as a whole.
        oracle: whether something was chosen on the test part.
    """

    validation: str = "none"
    transductive: bool = False
    oracle: bool = False


class Metrics(RootModel[dict[str, float]]):
    """Metrics on the test part by their name in `clipadapter.metrics.METRICS`.

    Records of earlier versions may lack metrics that are optional.

    >>> Metrics(accuracy=0.5, macro_f1=0.4, log_loss=0.7)["macro_f1"]
    0.4
    """

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_metrics(self.root, metrics_shown("record", "single-label"))
        return self

    @property
    def accuracy(self) -> float:
        """Share of pictures whose most probable class is the true one."""
        return self.root["accuracy"]

    def __getitem__(self, name: str) -> float:
        return self.root[name]

    def __contains__(self, name: str) -> bool:
        return name in self.root


class Seconds(Part):
    """How long it took."""

    fit: float
    predict: float


class Machine(Part):
    """Where it ran; peak memory is the process's up to then, None where the system doesn't tell."""

    cpus: int
    platform: str
    peak_memory_mb: int | None = None


class Task(Part):
    """One task of a stream.

    Args:
        name: what tables call it.
        part: name of the test part that has its test pictures.
        classes: its classes; a class may be in several tasks.
        shots: how many shots it brings, of all its classes together.
    """

    name: str
    part: str
    classes: list[str] = Field(min_length=1)
    shots: int = Field(ge=0)


class Stream(Part):
    """How tasks come, and how a head learns them.

    Args:
        task_known: whether an answer is among the classes of the picture's own task, as if someone said which it is
            (MTIL); else it is among the classes of all tasks (X-TAIL).
        joint: whether the head is fitted anew to the shots of all tasks so far; else it goes on from what it learned,
            and sees the shots of the new task alone.
        tasks: the tasks in the order in which they are learned.
    """

    task_known: bool
    joint: bool
    tasks: list[Task] = Field(min_length=1)

    def split_rows(self, rows: Sequence[int]) -> list[list[int]]:
        """The rows of each task, of all drawn rows in the order of the tasks.

        >>> tasks = [Task(name=name, part="test", classes=[name], shots=n) for name, n in (("a", 1), ("b", 2))]
        >>> Stream(task_known=False, joint=False, tasks=tasks).split_rows([7, 8, 9])
        [[7], [8, 9]]
        """
        found, start = [], 0
        for task in self.tasks:
            found.append(list(rows[start : start + task.shots]))
            start += task.shots
        return found


class Step(Part):
    """What came of learning one task.

    Args:
        seconds: of this fit.
        size: how many numbers are kept to answer and to go on: those of the head, and for one that is fitted anew each
            time the features of all shots so far.
        metrics: figures on every task, learned or not, in the order of the tasks.
    """

    seconds: float
    size: int
    metrics: list[Metrics]


class ContinualResult(Part):
    """What came of a stream of T tasks.

    Args:
        zero_shot: accuracy of the class text alone on each task; None if a class has no text.
        steps: T, one after each task.
    """

    zero_shot: list[float] | None = None
    steps: list[Step]

    @property
    def accuracy(self) -> list[list[float]]:
        """(T, T): row t, column i is the accuracy on task i after task t."""
        return [[one.accuracy for one in step.metrics] for step in self.steps]

    @property
    def metrics(self) -> ContinualMetrics:
        """Transfer, Average, Last, forgetting and forward transfer."""
        return continual_metrics(self.accuracy, self.zero_shot)


class Run(Part):
    """One head, fitted once on drawn shots and measured once.

    Args:
        format: number of this layout.
        head: what tables call it.
        method: the name that the head is registered by.
        method_version: its version; see `methods.method_version`.
        measurement_version: see `MEASUREMENT_VERSION`.
        params: parameters of the head.
        encoder: which encoder.
        data: which data.
        templates: what the class names were put into, if the features tell.
        text: hash of the class text.
        shots: shots a class that were asked for; a smaller class gives all it has.
        seed: of the draw, and of the head if it takes one.
        rows: the drawn rows of the support data.
        flags: what must be told beside the figures.
        code: hash of the source of this package. The key does not depend on it.
        versions: of the libraries.
        n_classes: number of classes.
        n_test: number of test pictures.
        size: how many numbers the fitted head keeps; None if it failed.
        seconds: how long it took; None if it failed.
        metrics: what came out; None if it failed.
        learned: numbers that the head chose or learned, such as ``alpha_``.
        error: why it failed, else None.
        machine: where it ran.
        created: when, in UTC.
        stream: the tasks, where they came one after the other; else None. The figures above are then means over the
            tasks, as they are known at the end, and the seconds are of all fits together.
        continual: what came out after each task; None if it failed, or there is no stream.
    """

    format: int = FORMAT
    head: str
    method: str
    method_version: str = "1"
    measurement_version: int = MEASUREMENT_VERSION
    params: dict[str, bool | int | float | str | None]
    encoder: EncoderPart
    data: DataPart
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
    learned: dict[str, float] = Field(default_factory=dict)
    error: str | None = None
    machine: Machine
    created: str
    stream: Stream | None = None
    continual: ContinualResult | None = None

    @property
    def key(self) -> str:
        """Hash of the fields that decide the figures: of `KEY_FIELDS`, and of the tasks of a stream.

        It names the method, its version and its parameters, the data and the libraries. It does not depend on the
        source code or on the release of this package: a study goes on after an upgrade, and fits again only what a
        method's author gave another version.
        """
        fields = {*KEY_FIELDS, *(["stream"] if self.stream is not None else [])}
        facts = self.model_dump(mode="json", include=fields)
        facts["versions"] = {name: number for name, number in self.versions.items() if name != "clipadapter"}
        return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def append_runs(path: str | Path, runs: Iterable[Run]) -> None:
    """Append runs to a JSONL file, one line each; what stands in it is never changed.

    A last line that was cut short, as by a full disk, is no record and gives way.

    Raises:
        InputError: if the file can't be written.
    """
    data = "".join(f"{run.model_dump_json()}\n" for run in runs).encode()
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("ab+") as file:
            _drop_torn_line(file)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror or error}; give a place you may write to") from error


def read_runs(path: str | Path) -> list[Run]:
    """The runs of a JSONL file, in order; a last line that was cut short is left out.

    Raises:
        DataError: if the file can't be read, or a line is no run; says which.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror or error}") from error
    return [parse_run(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]


def parse_run(where: str, line: bytes) -> Run:
    """A record from its JSON.

    Args:
        where: what messages call the place, such as "runs.jsonl, line 3".
        line: the JSON.

    Raises:
        DataError: if it is no record, or one of another format.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no run: {error}; delete it") from error
    number = record.get("format") if isinstance(record, dict) else None
    if number == 2:
        record = _from_format_2(record)
    elif isinstance(number, int) and number != FORMAT:
        raise DataError(f"{where} has format {number}, this version reads {FORMAT}; move it away to start anew")
    try:
        return Run.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{where} is no run: {field} {first['msg']}; delete it") from error


def _from_format_2(record: dict[str, Any]) -> dict[str, Any]:
    """A record of format 2, whose key had a hash of the source code in place of the versions, as one of format 3.

    All such records are of version 1. No method gave other figures while format 2 was written.
    """
    other = {key: value for key, value in record.items() if key not in ("stream", "course")}
    stream = record.get("stream")
    if isinstance(stream, dict) and "lessons" in stream:
        stream = {**{key: value for key, value in stream.items() if key != "lessons"}, "tasks": stream["lessons"]}
    present = {"format": FORMAT, "method_version": "1", "measurement_version": 1}
    return {**other, **present, "stream": stream, "continual": record.get("course")}


def _drop_torn_line(file: Any) -> None:
    end = file.seek(0, os.SEEK_END)
    if not end:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


@cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that figures depend on, and of Python."""
    names = ("clipadapter", "torch", "scikit-learn", "numpy")
    return {**{name: version(name) for name in names}, "python": platform.python_version()}


def describe_machine() -> Machine:
    """Facts of this machine and process."""
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
    """Hash of bytes and lists of texts.

    >>> digest(b"ab", ["c"]) == digest(b"a", ["bc"])
    False
    """
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else "\0".join(part).encode(errors="surrogatepass")
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()
