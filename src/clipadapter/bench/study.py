"""A study: the plan of a suite with its records, and tables of their numbers: heads by shots, test parts or encoders.

A number of a report comes about here. `Study.spots` says which runs a cell has, `Pivot.by_seed` what is combined of
them seed by seed, and `Cell` is the mean over the seeds. `bench.tables` writes it as text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

from clipadapter.bench.methods import HEAD_WITHOUT_SHOTS
from clipadapter.bench.plan import Entry, load_plan
from clipadapter.bench.protocols import protocol_rules
from clipadapter.bench.run import ContinualResult, Run, read_existing_runs, records_file
from clipadapter.bench.suite import ALL, Suite
from clipadapter.metrics import METRICS, mean_sd
from clipadapter.metrics.intervals import Difference, paired_difference
from clipadapter.utils.formatting import format_count, shorten_name

REFERENCE = "clip-adapter"
HARMONIC = "harmonic mean"

Axis = Literal["shots", "test", "encoder"]
Part = str | int  # a column: a number of shots, a test part or an encoder
PairKey = tuple[tuple[int, Part], int, tuple[int, ...]]
"""(data set, column), seed, drawn rows: the key by which two heads are compared in pairs."""
Value = Callable[[Run], float | None]  # a number of a run; None if the run has none, as if it failed


# ---- The records in their places ----


class Setting(NamedTuple):
    """What the runs of one cell of a table share; they differ in the seed."""

    data: str  # the data set that gives the shots, as the user named it
    encoder: str  # likewise
    prompts: str  # the suite's name for the prompts
    test: str  # name of the test part
    label: str  # the suite's name for the head
    shots: int


def metric_value(name: str) -> Value:
    """The value of a metric of records."""
    return lambda run: None if run.metrics is None else run.metrics.root.get(name)


ACCURACY = metric_value("accuracy")


def fit_seconds(run: Run) -> float | None:
    """Seconds of the fit."""
    return None if run.seconds is None else run.seconds.fit


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
    label: str = ""  # the head's name in tables

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

    # ---- Of a stream of tasks ----

    @property
    def results(self) -> list[ContinualResult]:
        """Results of the streams that did not fail."""
        return [run.continual for run in self.runs if run.continual is not None]

    @property
    def learns(self) -> str:
        """How the head learns a stream: "task by task", "joint", or "nothing"."""
        streams = [run.stream for run in self.runs if run.stream is not None]
        if not streams:
            return "-"
        if self.runs[0].method == HEAD_WITHOUT_SHOTS:
            return "nothing"
        return "joint" if streams[0].joint else "task by task"

    def by_step(self, values: Callable[[ContinualResult], Sequence[float | None]]) -> list[Cell]:
        """One value for each step or task over the seeds."""
        columns = zip(*map(values, self.results), strict=True)
        return [Cell(tuple(one for one in own if one is not None), self.failed, self.missing) for own in columns]


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
        return replace(self, entries=tuple(entry for entry in self.entries if entry.key in keys))

    @cached_property
    def spots(self) -> dict[Setting, Spot]:
        """The runs of each setting in the order of the plan, and how many are missing; settings without runs are last.

        A plan has the entries of earlier calls behind those of the last one. A run of an older version must not count
        as another seed beside the run of the current version, nor is it missing if there is a newer run.
        """
        runs: dict[Setting, dict[int, Run]] = {}
        for entry in self.entries:
            if entry.key in self.records:
                runs.setdefault(_setting(entry), {}).setdefault(entry.seed, self.records[entry.key])
        places = ((_setting(entry), entry.seed) for entry in self.missing)
        missing = Counter(setting for setting, seed in places if seed not in runs.get(setting, {}))
        return {
            setting: Spot([run for _, run in sorted(runs.get(setting, {}).items())], missing[setting], setting.label)
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

    def failures(self) -> list[str]:
        """A sentence for each head and reason of a failure, with how often it failed."""
        return failure_messages(
            (f"{setting.label} on {setting.data}", run) for setting, spot in self.spots.items() for run in spot.runs
        )

    @cached_property
    def varied_values(self) -> dict[str, float | str]:
        """The value of the varied parameter, by label."""
        return {entry.label: entry.value for entry in self.entries if entry.value is not None}

    @cached_property
    def reference(self) -> str:
        """The head to compare with: CLIP-Adapter with defaults, else with other parameters, else the first head.

        Heads with a varied parameter are not considered.
        """
        labels = list(dict.fromkeys(entry.label for entry in self.entries))
        if REFERENCE in labels:
            return REFERENCE
        methods = {setting.label: spot.runs[0].method for setting, spot in self.spots.items() if spot.runs}
        steady = [label for label in labels if label not in self.varied_values]
        return next((label for label in steady if methods.get(label) == REFERENCE), labels[0])


def failure_messages(named_runs: Iterable[tuple[str, Run]]) -> list[str]:
    """Why runs failed: a sentence for each name and reason."""
    counts = Counter((name, run.error) for name, run in named_runs if run.error is not None)
    return [
        f"{name} failed{f' {n} times' if n > 1 else ''}: {error.rstrip('.')}." for (name, error), n in counts.items()
    ]


def _setting(entry: Entry) -> Setting:
    return Setting(entry.data, entry.encoder, entry.prompts, entry.test, entry.label, entry.shots)


def distinct_values(settings: Iterable[Setting], name: str) -> list[str | int]:
    """The distinct values of one field in order; shots are sorted."""
    values = list(dict.fromkeys(getattr(setting, name) for setting in settings))
    return sorted(values) if name == "shots" else values


def load_study(folder: str | Path, suite_name: str) -> Study:
    """Read a study from a folder of records.

    Args:
        folder: the folder of records.
        suite_name: the suite's name.

    Raises:
        DataError: if the folder has no such suite, or a file is damaged; says which.
    """
    plan = load_plan(Path(folder), suite_name)
    return Study(plan.suite, tuple(plan.entries), read_existing_runs(records_file(Path(folder))))


# ---- Tables ----


class Row(NamedTuple):
    """A head, with the name of its prompts if the suite has several."""

    label: str
    prompts: str = ""


class Derived(NamedTuple):
    """How a column is computed from measured ones, seed by seed."""

    parts: tuple[Part, ...]
    combine: Callable[[Sequence[float]], float]
    higher_is_better_only: bool = False


@dataclass(frozen=True, eq=False)
class Pivot:
    """Heads by columns, of one data set, or the mean of several, seed by seed."""

    title: str  # above the table
    fixed: Mapping[str, str | int]  # fields of `Setting` that all its runs share
    axis: Axis  # the field of `Setting` that the columns are
    rows: tuple[Row, ...]  # heads
    parts: tuple[Part, ...]  # the columns that were measured
    spots: Mapping[tuple[Row, Part], Sequence[Spot]]  # the runs by row and column, of each data set
    # columns behind them that are computed from them, by title
    derived: Mapping[Part, Derived] = field(default_factory=dict)

    def columns(self, metric: str = "accuracy") -> tuple[Part, ...]:
        """All columns for a metric: there is no harmonic mean of losses."""
        higher = METRICS[metric].higher_is_better
        return (*self.parts, *(name for name, one in self.derived.items() if higher or not one.higher_is_better_only))

    def _definition(self, column: Part) -> Derived:
        return self.derived.get(column) or Derived((column,), _mean)

    def runs(self, row: Row | None = None, part: Part | None = None) -> list[Run]:
        """The records, failed ones too; all, or those of a row or a column."""
        parts = self.parts if part is None else self._definition(part).parts
        rows = self.rows if row is None else (row,)
        return [run for spot in product(rows, parts) for one in self.spots.get(spot, ()) for run in one.runs]

    def by_seed(self, row: Row, column: Part, value: Value = ACCURACY) -> dict[int, float]:
        """A value by rising seed: the mean over the data sets of each part, and then what the column makes of them."""
        parts, combine, _ = self._definition(column)
        means = [combine_by_seed([spot.by_seed(value) for spot in self.spots.get((row, part), ())]) for part in parts]
        return combine_by_seed(means, combine)

    def cell(self, row: Row, column: Part, value: Value = ACCURACY) -> Cell:
        """A value over the seeds, or why there is none."""
        by_part = [self.spots.get((row, part), ()) for part in self._definition(column).parts]
        for spots in by_part:
            n_measured = sum(bool(spot.by_seed(value)) for spot in spots)
            if len(spots) > 1 and n_measured < len(spots):
                return Cell(remark=f"{n_measured} of {len(spots)} sets" if n_measured else "-")
        return Cell(
            tuple(self.by_seed(row, column, value).values()),
            max((spot.failed for spots in by_part for spot in spots), default=0),
            max((spot.missing for spots in by_part for spot in spots), default=0),
        )

    def draws(self, row: Row, column: Part) -> dict[PairKey, float]:
        """Accuracy by draw. The draws of a computed column are its seeds."""
        spots = self.spots.get((row, self._definition(column).parts[0]), ())
        runs = [(i, run) for i, spot in enumerate(spots) for run in spot.runs]
        if column not in self.derived:
            accuracies = {((i, column), run.seed, tuple(run.rows)): ACCURACY(run) for i, run in runs}
            return {draw: accuracy for draw, accuracy in accuracies.items() if accuracy is not None}
        return {
            ((0, column), seed, tuple(drawn for _, run in runs if run.seed == seed for drawn in run.rows)): value
            for seed, value in self.by_seed(row, column).items()
        }

    def difference(self, row: Row, reference: Row, columns: Sequence[Part]) -> Difference | None:
        """The difference of accuracy to the reference on the draws of some columns; None if they share no draw."""
        ours, theirs = (
            {draw: accuracy for column in columns for draw, accuracy in self.draws(one, column).items()}
            for one in (row, reference)
        )
        return paired_difference(ours, theirs, group=lambda draw: draw[0])

    def reference_row(self, label: str) -> Row:
        """The head that the others are compared with."""
        return next((row for row in self.rows if row.label == label), self.rows[0])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def combine_by_seed(
    values: Sequence[Mapping[int, float]], combine: Callable[[Sequence[float]], float] = _mean
) -> dict[int, float]:
    """One value of several by rising seed; seeds that lack one are left out."""
    seeds = sorted(set.intersection(*map(set, values))) if values else []
    return {seed: combine([one[seed] for one in values]) for seed in seeds}


def harmonic_mean(values: Sequence[float]) -> float:
    """2ab / (a + b) of two values; 0 if both are."""
    a, b = values
    return 2 * a * b / (a + b) if a + b else 0.0


def format_shots(n: int) -> str:
    """Such as "1 shot".

    >>> format_shots(1), format_shots(16), format_shots(ALL)
    ('1 shot', '16 shots', 'all pictures')
    """
    return "all pictures" if n == ALL else format_count(n, "shot")


def pivot_runs(runs: Sequence[Run]) -> Pivot:
    """The table of the runs of one comparison: heads by shots."""
    rows = tuple(Row(label) for label in dict.fromkeys(run.head for run in runs))
    shots = tuple(sorted({run.shots for run in runs}))
    spots: dict[tuple[Row, Part], list[Run]] = {spot: [] for spot in product(rows, shots)}
    for run in sorted(runs, key=lambda run: run.seed):
        spots[Row(run.head), run.shots].append(run)
    return Pivot("", {}, "shots", rows, shots, {spot: [Spot(own, label=spot[0].label)] for spot, own in spots.items()})


def make_tables(study: Study) -> list[Pivot]:
    """The tables of a study: by test parts or shots, as the protocol says, or by encoders if these alone differ."""
    protocol, everything = protocol_rules(study.suite.protocol), list(study.spots)
    counts = {name: len(distinct_values(everything, name)) for name in ("data", "encoder", "test", "shots")}
    axis: Axis = "test" if protocol.report_columns == "test" else "shots"
    if axis == "shots" and counts["shots"] == 1 and counts["encoder"] > 1:
        axis = "encoder"
    outer = [name for name in counts if name != axis]
    tables = []
    for values in product(*(distinct_values(everything, name) for name in outer)):
        fixed = dict(zip(outer, values, strict=True))
        settings = [setting for setting in everything if all(getattr(setting, k) == v for k, v in fixed.items())]
        if not any(study.spots[setting].runs for setting in settings):
            continue
        labels = distinct_values(settings, "label")
        rows = dict.fromkeys(Row(setting.label, setting.prompts) for setting in settings)
        ordered = tuple(row for label in labels for row in rows if row.label == label)
        parts = tuple(distinct_values(settings, axis))
        spots = {(Row(one.label, one.prompts), getattr(one, axis)): [study.spots[one]] for one in settings}
        title = [shorten_name(str(fixed["data"]))]
        title += [str(fixed[name]) for name in ("encoder", "test") if name in fixed and counts[name] > 1]
        title += [format_shots(int(fixed["shots"]))] if "shots" in fixed else []
        pivot = Pivot(", ".join(title), fixed, axis, ordered, parts, spots)
        tables.append(replace(pivot, derived=_derived(pivot, protocol.has_harmonic_mean)))
    return tables


def _derived(pivot: Pivot, has_harmonic_mean: bool) -> dict[Part, Derived]:
    """The harmonic mean of base and new classes, or the mean over the other data sets if there are several."""
    kinds = {part: {run.data.protocol for run in pivot.runs(part=part)} for part in pivot.parts}
    if has_harmonic_mean:
        new = [part for part, own in kinds.items() if own == {"new"}]
        base = [part for part, own in kinds.items() if "new" not in own]
        return {HARMONIC: Derived((*base, *new), harmonic_mean, True)} if len(new) == len(base) == 1 else {}
    others = tuple(part for part, own in kinds.items() if own & {"shift", "new"})
    return {f"mean of the {len(others)} others": Derived(others, _mean)} if len(others) > 1 else {}


def make_mean_tables(tables: Sequence[Pivot]) -> list[Pivot]:
    """The means over data sets; none if there is one data set only. A title says in what it differs from the others."""
    groups: dict[tuple[str | int | None, ...], list[Pivot]] = {}
    # Rows that were not drawn have another name than a separate test part, but are the test part as well.
    for names in (("encoder", "shots"), ("encoder", "test", "shots")):
        groups = {}
        for table in tables:
            groups.setdefault(tuple(map(table.fixed.get, names)), []).append(table)
        if all(len({table.fixed["data"] for table in group}) == len(group) for group in groups.values()):
            break
    means = []
    for first, *others in (group for group in groups.values() if len(group) > 1):
        group, title = [first, *others], [f"Mean over {1 + len(others)} data sets"]
        fixed = {name: value for name, value in first.fixed.items() if name != "data"}
        for name, value in fixed.items():
            if len({other[0].fixed[name] for other in groups.values()}) > 1:
                title.append(format_shots(int(value)) if name == "shots" else str(value))
        rows = tuple(dict.fromkeys(row for table in group for row in table.rows))
        parts = tuple(dict.fromkeys(part for table in group for part in table.parts))
        parts = tuple(sorted(parts, key=int)) if first.axis == "shots" else parts
        places = product(rows, parts)
        spots = {place: [own for table in group for own in table.spots.get(place, [Spot()])] for place in places}
        mean = Pivot(", ".join(title), fixed, first.axis, rows, parts, spots)
        # As in the papers, the harmonic mean of several data sets is that of the two means.
        means.append(replace(mean, derived=_derived(mean, HARMONIC in first.derived)))
    return means
