"""Tables of a study: metrics by head and column, with what paired comparisons need, and means. No text is made here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal, NamedTuple

from clipadapter.bench.protocols import create_protocol
from clipadapter.bench.run import Run
from clipadapter.bench.statistics import Difference, paired_difference
from clipadapter.bench.study import Draw, Setting, Study, distinct_values
from clipadapter.bench.suite import ALL
from clipadapter.bench.summary import Cell, Metric
from clipadapter.formatting import shorten_name
from clipadapter.metrics import METRICS

Axis = Literal["shots", "test", "encoder"]
HARMONIC = "harmonic mean"


class Row(NamedTuple):
    """A head, with the name of its prompts if the suite has several."""

    label: str
    prompts: str


@dataclass(frozen=True)
class Measurement:
    """One head in one column.

    Args:
        by_seed: the metric by seed.
        draws: accuracy by draw.
        failed: number of failed runs.
        missing: number of planned runs that do not exist yet.
        remark: text in place of a number.
    """

    by_seed: Mapping[int, float] = field(default_factory=dict)
    draws: Mapping[Draw, float] = field(default_factory=dict)
    failed: int = 0
    missing: int = 0
    remark: str = ""

    @property
    def cell(self) -> Cell:
        """The metric over the seeds."""
        return Cell(tuple(self.by_seed[seed] for seed in sorted(self.by_seed)), self.failed, self.missing)


@dataclass(frozen=True, eq=False)
class Table:
    """Heads by columns.

    Args:
        title: above the table.
        fixed: fields of `Setting` that all its runs share.
        axis: the field of `Setting` that the columns are.
        rows: heads.
        columns: shots, test parts or encoders.
        measurements: by row and column.
        runs: the records, by row.
        metric: name of the metric.
        runs_by_column: the records, by column.
        has_harmonic_mean: whether the columns are base and new classes of one data set.
        measured_columns: those that are not computed from other columns.
    """

    title: str
    fixed: Mapping[str, str | int]
    axis: Axis
    rows: tuple[Row, ...]
    columns: tuple[str | int, ...]
    measurements: Mapping[tuple[Row, str | int], Measurement]
    runs: Mapping[Row, Sequence[Run]]
    runs_by_column: Mapping[str | int, Sequence[Run]]
    metric: Metric = "accuracy"
    has_harmonic_mean: bool = False
    measured_columns: tuple[str | int, ...] = ()

    @property
    def all_runs(self) -> list[Run]:
        """The records, failed ones too."""
        return [run for runs in self.runs.values() for run in runs]

    def cell(self, row: Row, column: str | int) -> Cell:
        """The metric of a head in a column."""
        return self.measurements[row, column].cell


def format_shots(n: int) -> str:
    """Such as "1 shot".

    >>> format_shots(1), format_shots(16)
    ('1 shot', '16 shots')
    """
    if n == ALL:
        return "all pictures"
    return f"{n} shot{'s' if n > 1 else ''}"


def reference_row(study: Study, table: Table) -> Row:
    """The head that the others of a table are compared with."""
    return next((row for row in table.rows if row.label == study.reference), table.rows[0])


def compare_rows(table: Table, row: Row, reference: Row, columns: Sequence[str | int]) -> Difference | None:
    """The difference of a head to the reference on the draws of some columns; None if they share no draw.

    Draws are resampled within a data set, an encoder, a test part and a number of shots.
    """
    ours = {draw: value for column in columns for draw, value in table.measurements[row, column].draws.items()}
    theirs = {draw: value for column in columns for draw, value in table.measurements[reference, column].draws.items()}
    if not ours.keys() & theirs.keys():
        return None
    return paired_difference(ours, theirs, group=lambda draw: draw[:4])


def make_tables(study: Study, metric: Metric = "accuracy") -> list[Table]:
    """The tables of a study. Their columns are test parts or shots, as the protocol says.

    With one number of shots and several encoders, the columns are encoders in place of shots.
    """
    axis = _axis(study)
    outer = [name for name in ("data", "encoder", "test", "shots") if name != axis]
    tables = []
    for values in product(*(distinct_values(study.settings, name) for name in outer)):
        fixed = dict(zip(outer, values, strict=True))
        settings = [setting for setting in study.settings if all(getattr(setting, k) == v for k, v in fixed.items())]
        if any(study.runs_at(setting) for setting in settings):
            tables.append(_table(settings, _heading(study, fixed), fixed, axis, study, metric))
    return [_with_derived_columns(table) for table in tables]


def _axis(study: Study) -> Axis:
    if create_protocol(study.suite.protocol).report_columns == "test":
        return "test"
    one = len(distinct_values(study.settings, "shots")) == 1
    return "encoder" if one and len(distinct_values(study.settings, "encoder")) > 1 else "shots"


def _heading(study: Study, fixed: Mapping[str, str | int]) -> str:
    parts = [shorten_name(str(fixed["data"]))]
    varying = {name for name in fixed if len(distinct_values(study.settings, name)) > 1}
    parts += [str(fixed[name]) for name in ("encoder", "test") if name in varying]
    if "shots" in fixed:
        parts.append(format_shots(int(fixed["shots"])))
    return ", ".join(parts)


def _table(
    settings: Sequence[Setting], title: str, fixed: Mapping[str, str | int], axis: Axis, study: Study, metric: Metric
) -> Table:
    rows = tuple(
        Row(str(label), str(prompts))
        for label in distinct_values(settings, "label")
        for prompts in distinct_values([setting for setting in settings if setting.label == label], "prompts")
    )
    columns = tuple(distinct_values(settings, axis))
    by_setting = {(Row(setting.label, setting.prompts), getattr(setting, axis)): setting for setting in settings}
    measurements = {}
    for spot in product(rows, columns):
        setting = by_setting.get(spot)
        measurements[spot] = Measurement() if setting is None else _figure(study, setting, metric)
    in_row = {row: [r for p in settings if Row(p.label, p.prompts) == row for r in study.runs_at(p)] for row in rows}
    in_column = {c: [r for p in settings if getattr(p, axis) == c for r in study.runs_at(p)] for c in columns}
    has_harmonic_mean = create_protocol(study.suite.protocol).has_harmonic_mean
    return Table(title, fixed, axis, rows, columns, measurements, in_row, in_column, metric, has_harmonic_mean, columns)


def _figure(study: Study, setting: Setting, metric: Metric) -> Measurement:
    cell = study.cell(setting, metric)
    return Measurement(study.by_seed(setting, metric), study.accuracy_by_draw(setting), cell.failed, cell.missing)


def _with_derived_columns(table: Table) -> Table:
    return add_transfer_mean(add_harmonic_mean(table) if table.has_harmonic_mean else table)


def add_harmonic_mean(table: Table) -> Table:
    """Add the harmonic mean of base and new classes as a last column, seed by seed.

    The table is returned unchanged if it does not have one column of each, or less is better: there is no harmonic mean
    of losses.
    """
    if not METRICS[table.metric].higher_is_better:
        return table
    kinds = {column: {run.data.protocol for run in runs} for column, runs in table.runs_by_column.items()}
    new = [column for column, column_kinds in kinds.items() if column_kinds == {"new"}]
    base = [column for column, column_kinds in kinds.items() if "new" not in column_kinds]
    if len(new) != 1 or len(base) != 1:
        return table
    return _with_column(table, HARMONIC, [base[0], new[0]], lambda values: harmonic_mean(*values))


def add_transfer_mean(table: Table) -> Table:
    """Add the mean over the test parts with shifted pictures or new classes as a last column, seed by seed.

    The table is returned unchanged if there are fewer than two of them.
    """
    if HARMONIC in table.columns:
        return table
    others = [
        column
        for column, runs in table.runs_by_column.items()
        if {run.data.protocol for run in runs} & {"shift", "new"}
    ]
    if len(others) < 2:
        return table
    return _with_column(table, f"mean of the {len(others)} others", others, lambda values: sum(values) / len(values))


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b); 0 if both are."""
    return 2 * a * b / (a + b) if a + b else 0.0


def _with_column(
    table: Table, title: str, columns: Sequence[str | int], combine: Callable[[Sequence[float]], float]
) -> Table:
    measurements = dict(table.measurements)
    for row in table.rows:
        parts = [table.measurements[row, column] for column in columns]
        draws = {
            # The name of the first part is used: draws of one table are of the same rows in every part.
            draws[0]: combine([part.draws[draw] for part, draw in zip(parts, draws, strict=True)])
            for draws in _same_draws(parts)
        }
        by_seed = {seed: combine([part.by_seed[seed] for part in parts]) for seed in _common(parts)}
        measurements[row, title] = Measurement(
            by_seed, draws, max(p.failed for p in parts), max(p.missing for p in parts), _first_remark(parts)
        )
    runs = {**table.runs_by_column, title: [run for column in columns for run in table.runs_by_column[column]]}
    return replace(table, columns=(*table.columns, title), measurements=measurements, runs_by_column=runs)


def _common(parts: Sequence[Measurement]) -> list[int]:
    return sorted(set.intersection(*(set(part.by_seed) for part in parts)))


def _same_draws(parts: Sequence[Measurement]) -> Iterator[list[Draw]]:
    """Draws of the first part, with those of the others that differ only in the test part."""
    known = [{_without_test(draw): draw for draw in part.draws} for part in parts]
    for same in known[0]:
        if all(same in other for other in known):
            yield [other[same] for other in known]


def _without_test(draw: Draw) -> tuple[object, ...]:
    return (*draw[:2], *draw[3:])


def _first_remark(parts: Iterable[Measurement]) -> str:
    return next((part.remark for part in parts if part.remark), "")


def make_mean_tables(tables: Sequence[Table]) -> list[Table]:
    """The means over data sets; none if there is one data set only."""
    names = {table.fixed["data"] for table in tables}
    if len(names) < 2:
        return []
    # Rows that were not drawn have another name than a separate test part, but are the test part as well.
    one_each = len(tables) == len({_kind(table, "data", "test") + (table.fixed["data"],) for table in tables})
    groups: dict[tuple[str | int, ...], list[Table]] = {}
    for table in tables:
        groups.setdefault(_kind(table, *(("data", "test") if one_each else ("data",))), []).append(table)
    return [
        make_mean_table(
            group, ", ".join([f"Mean over {len(group)} data sets", *_differing(group, list(groups.values()))])
        )
        for group in groups.values()
        if len(group) > 1
    ]


def _kind(table: Table, *without: str) -> tuple[str | int, ...]:
    return tuple(value for name, value in table.fixed.items() if name not in without)


def _differing(group: Sequence[Table], groups: Sequence[Sequence[Table]]) -> list[str]:
    names = [name for name in group[0].fixed if name != "data"]
    varying = [name for name in names if len({other[0].fixed[name] for other in groups}) > 1]
    return [
        format_shots(int(value)) if name == "shots" else str(value)
        for name in varying
        for value in [group[0].fixed[name]]
    ]


def make_mean_table(tables: Sequence[Table], title: str) -> Table:
    """The mean over data sets, seed by seed; a head without results for every data set gets none.

    Args:
        tables: tables of one kind, one per data set.
        title: of the new table.
    """
    rows = tuple(dict.fromkeys(row for table in tables for row in table.rows))
    columns = tuple(dict.fromkeys(column for table in tables for column in table.measured_columns))
    if tables[0].axis == "shots":
        columns = tuple(sorted(columns, key=int))
    measurements = {(row, column): _mean_figure(row, column, tables) for row, column in product(rows, columns)}
    runs = {row: [run for table in tables for run in table.runs.get(row, ())] for row in rows}
    by_column = {
        column: [run for table in tables for run in table.runs_by_column.get(column, ())] for column in columns
    }
    mean = replace(
        tables[0],
        title=title,
        fixed={name: value for name, value in tables[0].fixed.items() if name != "data"},
        rows=rows,
        columns=columns,
        measurements=measurements,
        runs=runs,
        runs_by_column=by_column,
        measured_columns=columns,
    )
    # As in the papers, the harmonic mean is that of the two means over the data sets.
    return _with_derived_columns(mean)


def _mean_figure(row: Row, column: str | int, tables: Sequence[Table]) -> Measurement:
    parts = [table.measurements.get((row, column), Measurement()) for table in tables]
    measured = [part for part in parts if part.by_seed]
    if len(measured) < len(parts):
        return Measurement(remark=f"{len(measured)} of {len(parts)} sets" if measured else "-")
    seeds = _common(parts)
    by_seed = {seed: sum(part.by_seed[seed] for part in parts) / len(parts) for seed in seeds}
    draws = {draw: value for part in parts for draw, value in part.draws.items()}
    return Measurement(by_seed, draws, max(p.failed for p in parts), max(p.missing for p in parts))
