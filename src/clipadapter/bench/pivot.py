"""Runs as a table of heads by columns, from which all tables and plots of records are made. No text is made here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal, NamedTuple

from clipadapter.bench.protocols import create_protocol
from clipadapter.bench.run import Run
from clipadapter.bench.statistics import Difference, paired_difference
from clipadapter.bench.study import ACCURACY, Cell, Setting, Spot, Study, Value, distinct_values
from clipadapter.bench.suite import ALL
from clipadapter.metrics import METRICS
from clipadapter.utils.formatting import format_count, shorten_name

Axis = Literal["shots", "test", "encoder"]
Part = str | int
"""A column: a number of shots, a test part or an encoder."""
Draw = tuple[tuple[int, Part], int, tuple[int, ...]]
"""(data set, column), seed, drawn rows: the key by which two heads are compared in pairs."""
HARMONIC = "harmonic mean"


def fit_seconds(run: Run) -> float | None:
    """Seconds of the fit."""
    return None if run.seconds is None else run.seconds.fit


class Row(NamedTuple):
    """A head, with the name of its prompts if the suite has several."""

    label: str
    prompts: str = ""


class Derived(NamedTuple):
    """A column that is computed from others, seed by seed."""

    parts: tuple[Part, ...]
    combine: Callable[[Sequence[float]], float]
    higher_is_better_only: bool = False


@dataclass(frozen=True, eq=False)
class Pivot:
    """Heads by columns, of one data set or several.

    With several data sets a value is their mean, seed by seed; a head without results for every one has none.
    """

    title: str  # above the table
    fixed: Mapping[str, str | int]  # fields of `Setting` that all its runs share
    axis: Axis  # the field of `Setting` that the columns are
    rows: tuple[Row, ...]  # heads
    parts: tuple[Part, ...]  # the columns that were measured
    spots: Mapping[tuple[Row, Part], Sequence[Spot]]  # the runs by row and column, of each data set
    # columns behind them that are computed from them, by title
    derived: Mapping[str, Derived] = field(default_factory=dict)

    def columns(self, metric: str = "accuracy") -> tuple[Part, ...]:
        """All columns for a metric: there is no harmonic mean of losses."""
        higher = METRICS[metric].higher_is_better
        return (*self.parts, *(name for name, one in self.derived.items() if higher or not one.higher_is_better_only))

    def runs(self, row: Row | None = None, part: Part | None = None) -> list[Run]:
        """The records, failed ones too; all, or those of a row or a column."""
        parts = self.derived[str(part)].parts if part in self.derived else self.parts if part is None else (part,)
        rows = self.rows if row is None else (row,)
        return [run for spot in product(rows, parts) for one in self.spots.get(spot, ()) for run in one.runs]

    def by_seed(self, row: Row, column: Part, value: Value = ACCURACY) -> dict[int, float]:
        """A value by rising seed."""
        if column in self.derived:
            derived = self.derived[str(column)]
            return _combine([self.by_seed(row, part, value) for part in derived.parts], derived.combine)
        return _combine([spot.by_seed(value) for spot in self.spots.get((row, column), ())], _mean)

    def cell(self, row: Row, column: Part, value: Value = ACCURACY) -> Cell:
        """A value over the seeds, or why there is none."""
        parts = self.derived[str(column)].parts if column in self.derived else (column,)
        spots = [spot for part in parts for spot in self.spots.get((row, part), ())]
        for part in parts:
            own = self.spots.get((row, part), ())
            n_measured = sum(bool(spot.by_seed(value)) for spot in own)
            if len(own) > 1 and n_measured < len(own):
                return Cell(remark=f"{n_measured} of {len(own)} sets" if n_measured else "-")
        return Cell(
            tuple(self.by_seed(row, column, value).values()),
            max((spot.failed for spot in spots), default=0),
            max((spot.missing for spot in spots), default=0),
        )

    def draws(self, row: Row, column: Part) -> dict[Draw, float]:
        """Accuracy by draw. The draws of a computed column are its seeds."""
        if column in self.derived:
            spots = self.spots.get((row, self.derived[str(column)].parts[0]), ())
            return {
                (
                    (0, column),
                    seed,
                    tuple(i for spot in spots for run in spot.runs if run.seed == seed for i in run.rows),
                ): value
                for seed, value in self.by_seed(row, column).items()
            }
        return {
            ((i, column), run.seed, tuple(run.rows)): accuracy
            for i, spot in enumerate(self.spots.get((row, column), ()))
            for run in spot.runs
            if (accuracy := ACCURACY(run)) is not None
        }

    def difference(self, row: Row, reference: Row, columns: Sequence[Part]) -> Difference | None:
        """The difference of accuracy to the reference on the draws of some columns; None if they share no draw."""
        ours, theirs = (
            {draw: accuracy for column in columns for draw, accuracy in self.draws(one, column).items()}
            for one in (row, reference)
        )
        return paired_difference(ours, theirs, group=lambda draw: draw[0]) if ours.keys() & theirs.keys() else None

    def reference_row(self, label: str) -> Row:
        """The head that the others are compared with."""
        return next((row for row in self.rows if row.label == label), self.rows[0])


def _combine(values: Sequence[Mapping[int, float]], combine: Callable[[Sequence[float]], float]) -> dict[int, float]:
    seeds = sorted(set.intersection(*map(set, values))) if values else []
    return {seed: combine([one[seed] for one in values]) for seed in seeds}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def harmonic_mean(values: Sequence[float]) -> float:
    """2ab / (a + b) of two values; 0 if both are.

    >>> harmonic_mean([0.75, 0.25])
    0.375
    """
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
    return Pivot("", {}, "shots", rows, shots, {spot: [Spot(own)] for spot, own in spots.items()})


def make_tables(study: Study) -> list[Pivot]:
    """The tables of a study. Their columns are test parts or shots, as the protocol says.

    With one number of shots and several encoders, the columns are encoders in place of shots.
    """
    axis = _axis(study)
    outer = [name for name in ("data", "encoder", "test", "shots") if name != axis]
    tables = []
    for values in product(*(distinct_values(list(study.spots), name) for name in outer)):
        fixed = dict(zip(outer, values, strict=True))
        settings = [setting for setting in list(study.spots) if all(getattr(setting, k) == v for k, v in fixed.items())]
        if any(study.spots[setting].runs for setting in settings):
            tables.append(_table(study, settings, fixed, axis))
    return tables


def _axis(study: Study) -> Axis:
    if create_protocol(study.suite.protocol).report_columns == "test":
        return "test"
    one = len(distinct_values(list(study.spots), "shots")) == 1
    return "encoder" if one and len(distinct_values(list(study.spots), "encoder")) > 1 else "shots"


def _table(study: Study, settings: Sequence[Setting], fixed: Mapping[str, str | int], axis: Axis) -> Pivot:
    rows = tuple(
        Row(str(label), str(prompts))
        for label in distinct_values(settings, "label")
        for prompts in distinct_values([setting for setting in settings if setting.label == label], "prompts")
    )
    columns = tuple(distinct_values(settings, axis))
    spots: dict[tuple[Row, Part], list[Spot]] = {spot: [Spot()] for spot in product(rows, columns)}
    for setting in settings:
        spots[Row(setting.label, setting.prompts), getattr(setting, axis)] = [study.spots[setting]]
    pivot = Pivot(_heading(study, fixed), fixed, axis, rows, columns, spots)
    return replace(pivot, derived=_derived(pivot, create_protocol(study.suite.protocol).has_harmonic_mean))


def _heading(study: Study, fixed: Mapping[str, str | int]) -> str:
    parts = [shorten_name(str(fixed["data"]))]
    varying = {name for name in fixed if len(distinct_values(list(study.spots), name)) > 1}
    parts += [str(fixed[name]) for name in ("encoder", "test") if name in varying]
    if "shots" in fixed:
        parts.append(format_shots(int(fixed["shots"])))
    return ", ".join(parts)


def _derived(pivot: Pivot, has_harmonic_mean: bool) -> dict[str, Derived]:
    """The harmonic mean of base and new classes, or the mean over the other data sets if there are several."""
    kinds = {part: {run.data.protocol for run in pivot.runs(part=part)} for part in pivot.parts}
    if has_harmonic_mean:
        new = [part for part, own in kinds.items() if own == {"new"}]
        base = [part for part, own in kinds.items() if "new" not in own]
        return {HARMONIC: Derived((*base, *new), harmonic_mean, True)} if len(new) == len(base) == 1 else {}
    others = tuple(part for part, own in kinds.items() if own & {"shift", "new"})
    return {f"mean of the {len(others)} others": Derived(others, _mean)} if len(others) > 1 else {}


def make_mean_tables(tables: Sequence[Pivot]) -> list[Pivot]:
    """The means over data sets; none if there is one data set only."""
    if len({table.fixed["data"] for table in tables}) < 2:
        return []
    # Rows that were not drawn have another name than a separate test part, but are the test part as well.
    one_each = len(tables) == len({(*_kind(table, "data", "test"), table.fixed["data"]) for table in tables})
    groups: dict[tuple[str | int, ...], list[Pivot]] = {}
    for table in tables:
        groups.setdefault(_kind(table, *(("data", "test") if one_each else ("data",))), []).append(table)
    return [_mean_table(group, list(groups.values())) for group in groups.values() if len(group) > 1]


def _kind(table: Pivot, *without: str) -> tuple[str | int, ...]:
    return tuple(value for name, value in table.fixed.items() if name not in without)


def _mean_table(tables: Sequence[Pivot], groups: Sequence[Sequence[Pivot]]) -> Pivot:
    """The mean over data sets; its title says in what it differs from other means."""
    fixed = {name: value for name, value in tables[0].fixed.items() if name != "data"}
    varying = [name for name in fixed if len({other[0].fixed[name] for other in groups}) > 1]
    details = [format_shots(int(fixed[name])) if name == "shots" else str(fixed[name]) for name in varying]
    parts = tuple(dict.fromkeys(part for table in tables for part in table.parts))
    rows = tuple(dict.fromkeys(row for table in tables for row in table.rows))
    mean = replace(
        tables[0],
        title=", ".join([f"Mean over {len(tables)} data sets", *details]),
        fixed=fixed,
        rows=rows,
        parts=tuple(sorted(parts, key=int)) if tables[0].axis == "shots" else parts,
        spots={
            spot: [own for table in tables for own in table.spots.get(spot, [Spot()])] for spot in product(rows, parts)
        },
    )
    # As in the papers, the harmonic mean of several data sets is that of the two means.
    return replace(mean, derived=_derived(mean, HARMONIC in tables[0].derived))
