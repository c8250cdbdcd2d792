"""A study: the plan of a suite, joined with its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from clipadapter.bench.plan import Entry, load_plan
from clipadapter.bench.records import read_existing_runs, records_file
from clipadapter.bench.run import Run
from clipadapter.bench.suite import Suite
from clipadapter.metrics import mean_sd

REFERENCE = "clip-adapter"


class Setting(NamedTuple):
    """What the runs of one cell of a table share; they differ in the seed."""

    data: str  # the data set that gives the shots, as the user named it
    encoder: str  # likewise
    prompts: str  # the suite's name for the prompts
    test: str  # name of the test part
    label: str  # the suite's name for the head
    shots: int


Value = Callable[[Run], float | None]
"""A number of a run; None if the run has none, as if it failed."""


def metric_value(name: str) -> Value:
    """The value of a metric of records."""
    return lambda run: run.metrics[name] if run.metrics is not None and name in run.metrics else None


ACCURACY = metric_value("accuracy")


@dataclass(frozen=True)
class Cell:
    """One head in one column."""

    values: tuple[float, ...] = ()  # of each seed whose run did not fail, by rising seed
    failed: int = 0  # number of failed runs
    missing: int = 0  # number of planned runs that do not exist yet
    remark: str = ""  # text in place of a number

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return mean_sd(self.values)[0]

    @property
    def sd(self) -> float:
        """Sample standard deviation over the seeds; 0 for one, so that plots draw nothing."""
        return mean_sd(self.values)[1]

    @property
    def known_sd(self) -> float | None:
        """Sample standard deviation over the seeds; None for fewer than two."""
        return self.sd if len(self.values) > 1 else None


class Spot(NamedTuple):
    """The runs of one head in one column on one data set, by rising seed, and how many planned ones are missing."""

    runs: Sequence[Run] = ()
    missing: int = 0

    @property
    def failed(self) -> int:
        """Number of failed runs."""
        return sum(run.error is not None for run in self.runs)

    def by_seed(self, value: Value = ACCURACY) -> dict[int, float]:
        """A value by seed."""
        return {run.seed: number for run in self.runs if (number := value(run)) is not None}

    def cell(self, value: Value = ACCURACY) -> Cell:
        """A value over the seeds."""
        return Cell(tuple(self.by_seed(value).values()), self.failed, self.missing)


@dataclass(frozen=True, eq=False)
class Study:
    """A suite with its planned and existing records.

    Args:
        suite: the suite.
        entries: the planned records.
        records: the existing records by key, failed ones too.
    """

    suite: Suite
    entries: tuple[Entry, ...]
    records: Mapping[str, Run]

    def select(self, keys: Collection[str]) -> Study:
        """The study of some of its records, by their keys."""
        entries = tuple(entry for entry in self.entries if entry.key in keys)
        return Study(self.suite, entries, {entry.key: run for entry in entries if (run := self.records.get(entry.key))})

    @cached_property
    def spots(self) -> dict[Setting, Spot]:
        """The runs of each setting in the order of the plan, and how many are missing; settings without runs are last.

        A plan has the entries of earlier calls behind those of the last one. A run of an older version must not count
        as another seed beside the run of the current version, nor is it missing if there is a newer run.
        """
        runs: dict[Setting, dict[int, Run]] = {}
        for entry in self.entries:
            if entry.key in self.records:
                runs.setdefault(get_setting(entry), {}).setdefault(entry.seed, self.records[entry.key])
        places = ((get_setting(entry), entry.seed) for entry in self.missing)
        missing = Counter(setting for setting, seed in places if seed not in runs.get(setting, {}))
        return {
            setting: Spot([run for _, run in sorted(runs.get(setting, {}).items())], missing[setting])
            for setting in dict.fromkeys([*runs, *missing])
        }

    @property
    def runs(self) -> list[Run]:
        """The existing records in the order of the plan, failed ones too."""
        return [self.records[entry.key] for entry in self.entries if entry.key in self.records]

    @property
    def superseded(self) -> int:
        """Number of records that a later one of the same setting and seed replaces, as after a new method version."""
        return len(self.runs) - sum(len(spot.runs) for spot in self.spots.values())

    @cached_property
    def missing(self) -> list[Entry]:
        """The planned records that do not exist yet."""
        return [entry for entry in self.entries if entry.key not in self.records]

    @property
    def failed(self) -> list[tuple[Setting, Run]]:
        """The failed runs with their settings."""
        return [(setting, run) for setting, spot in self.spots.items() for run in spot.runs if run.error is not None]

    def failures(self) -> list[str]:
        """A sentence for each head and reason of a failure, with how often it failed."""
        counts = Counter((setting.label, setting.data, run.error) for setting, run in self.failed)
        return [
            f"{label} on {data} failed{f' {n} times' if n > 1 else ''}: {error}"
            for (label, data, error), n in counts.items()
        ]

    @cached_property
    def varied_values(self) -> dict[str, float | str]:
        """The value of the varied parameter, by label."""
        return {entry.label: entry.value for entry in self.entries if entry.value is not None}

    @cached_property
    def labels(self) -> list[str]:
        """The suite's names for its heads, in its order."""
        return list(dict.fromkeys(entry.label for entry in self.entries))

    @cached_property
    def reference(self) -> str:
        """The head to compare with: CLIP-Adapter with defaults, else with other parameters, else the first head.

        Heads with a varied parameter are not considered.
        """
        if REFERENCE in self.labels:
            return REFERENCE
        methods = {setting.label: spot.runs[0].method for setting, spot in self.spots.items() if spot.runs}
        steady = [label for label in self.labels if label not in self.varied_values]
        return next((label for label in steady if methods.get(label) == REFERENCE), self.labels[0])


def get_setting(entry: Entry) -> Setting:
    """The setting of an entry."""
    return Setting(entry.data, entry.encoder, entry.prompts, entry.test, entry.label, entry.shots)


def distinct_values(settings: Iterable[Setting], field: str) -> list[str | int]:
    """The distinct values of one field in order; shots are sorted."""
    values = list(dict.fromkeys(getattr(setting, field) for setting in settings))
    return sorted(values) if field == "shots" else values


def load_study(folder: str | Path, suite_name: str) -> Study:
    """Read a study from a folder of records.

    Args:
        folder: the folder of records.
        suite_name: the suite's name.

    Raises:
        DataError: if the folder has no such suite, or a file is damaged; says which.
    """
    folder = Path(folder)
    plan = load_plan(folder, suite_name)
    assert plan is not None  # only missing_ok gives None
    runs = read_existing_runs(records_file(folder))
    records = {entry.key: runs[entry.key] for entry in plan.entries if entry.key in runs}
    return Study(plan.suite, tuple(plan.entries), records)
