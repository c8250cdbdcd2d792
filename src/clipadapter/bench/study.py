"""A study: the plan of a suite, joined with its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from clipadapter.bench.plan import Entry, load_plan
from clipadapter.bench.records import read_existing_runs, records_file
from clipadapter.bench.run import Run
from clipadapter.bench.suite import Suite

REFERENCE = "clip-adapter"


class Setting(NamedTuple):
    """What the runs of one cell of a table share; they differ in the seed."""

    data: str  # the data set that gives the shots, as the user named it
    encoder: str  # likewise
    prompts: str  # the suite's name for the prompts
    test: str  # name of the test part
    label: str  # the suite's name for the head
    shots: int


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
    def runs_by_setting(self) -> dict[Setting, list[Run]]:
        """The runs of each setting by rising seed, failed ones too; settings in the order of the plan.

        A plan has the entries of earlier calls behind those of the last one. A run of an older version must not count
        as another seed beside the run of the current version.
        """
        runs: dict[Setting, dict[int, Run]] = {}
        for entry in self.entries:
            if entry.key in self.records:
                runs.setdefault(get_setting(entry), {}).setdefault(entry.seed, self.records[entry.key])
        return {setting: [own[seed] for seed in sorted(own)] for setting, own in runs.items()}

    @property
    def runs(self) -> list[Run]:
        """The existing records in the order of the plan, failed ones too."""
        return [self.records[entry.key] for entry in self.entries if entry.key in self.records]

    @property
    def superseded(self) -> int:
        """Number of records that a later one of the same setting and seed replaces, as after a new method version."""
        return len(self.runs) - sum(map(len, self.runs_by_setting.values()))

    @cached_property
    def missing(self) -> list[Entry]:
        """The planned records that do not exist yet."""
        return [entry for entry in self.entries if entry.key not in self.records]

    @property
    def failed(self) -> list[tuple[Setting, Run]]:
        """The failed runs with their settings."""
        return [
            (setting, run) for setting, runs in self.runs_by_setting.items() for run in runs if run.error is not None
        ]

    def failures(self) -> list[str]:
        """A sentence for each head and reason of a failure, with how often it failed."""
        counts = Counter((setting.label, setting.data, run.error) for setting, run in self.failed)
        return [
            f"{label} on {data} failed{f' {n} times' if n > 1 else ''}: {error}"
            for (label, data, error), n in counts.items()
        ]

    @cached_property
    def missing_by_setting(self) -> dict[Setting, int]:
        """Number of missing runs of each setting. One of an older version is not missing if there is a newer run."""
        done = {(setting, run.seed) for setting, runs in self.runs_by_setting.items() for run in runs}
        return Counter(setting for entry in self.missing if ((setting := get_setting(entry)), entry.seed) not in done)

    @cached_property
    def settings(self) -> list[Setting]:
        """All settings in the order of the plan; those without any run are last."""
        return list(dict.fromkeys([*self.runs_by_setting, *self.missing_by_setting]))

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
        methods = {setting.label: runs[0].method for setting, runs in self.runs_by_setting.items()}
        steady = [label for label in self.labels if label not in self.varied_values]
        return next((label for label in steady if methods.get(label) == REFERENCE), self.labels[0])

    def runs_at(self, setting: Setting) -> list[Run]:
        """The runs of a setting by rising seed, failed ones too."""
        return self.runs_by_setting.get(setting, [])


def get_setting(entry: Entry) -> Setting:
    """The setting of an entry."""
    return Setting(entry.data, entry.encoder, entry.prompts, entry.test, entry.label, entry.shots)


def distinct_values(settings: Sequence[Setting], field: str) -> list[str | int]:
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
