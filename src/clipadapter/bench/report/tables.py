"""Tables of a study: figures by head and column, with what paired comparisons need, and means. No text is made here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal, NamedTuple

from clipadapter.bench.protocols import create_protocol
from clipadapter.bench.run import Run
from clipadapter.bench.statistics import Difference, paired_difference
from clipadapter.bench.study import Draw, Setting, Study, distinct
from clipadapter.bench.suite import ALL
from clipadapter.bench.summary import Cell, Metric

Axis = Literal["shots", "test", "encoder"]
HARMONIC = "harmonic mean"


class Row(NamedTuple):
    """A head, with the text it was given if the suite has several."""

    label: str
    prompts: str


@dataclass(frozen=True)
class Figure:
    """One head in one column.

    Args:
        by_seed: the figure by seed.
        draws: accuracy by draw.
        failed: how many runs failed.
        missing: how many are not run yet.
        remark: what stands there in place of a figure.
    """

    by_seed: Mapping[int, float] = field(default_factory=dict)
    draws: Mapping[Draw, float] = field(default_factory=dict)
    failed: int = 0
    missing: int = 0
    remark: str = ""

    @property
    def cell(self) -> Cell:
        """The figure over the seeds."""
        return Cell(tuple(self.by_seed[seed] for seed in sorted(self.by_seed)), self.failed, self.missing)


@dataclass(frozen=True, eq=False)
class Table:
    """Heads by columns.

    Args:
        title: what it is about.
        fixed: what all its runs share: data set and others of the coordinates.
        axis: what the columns are.
        rows: heads.
        columns: shots, test parts or encoders.
        figures: by row and column.
        runs: the records, by row.
        metric: which figure.
        columns_run: the records, by column.
    """

    title: str
    fixed: Mapping[str, str | int]
    axis: Axis
    rows: tuple[Row, ...]
    columns: tuple[str | int, ...]
    figures: Mapping[tuple[Row, str | int], Figure]
    runs: Mapping[Row, Sequence[Run]]
    columns_run: Mapping[str | int, Sequence[Run]]
    metric: Metric = "accuracy"

    @property
    def all_runs(self) -> list[Run]:
        """The records, failed ones too."""
        return [run for runs in self.runs.values() for run in runs]

    def cell(self, row: Row, column: str | int) -> Cell:
        """The figure of a head in a column."""
        return self.figures[row, column].cell


def shots_text(n: int) -> str:
    """Such as "1 shot".

    >>> shots_text(1), shots_text(16)
    ('1 shot', '16 shots')
    """
    if n == ALL:
        return "all pictures"
    return f"{n} shot{'s' if n > 1 else ''}"


def reference_row(study: Study, table: Table) -> Row:
    """The head that the others of a table are compared with."""
    return next((row for row in table.rows if row.label == study.reference), table.rows[0])


def difference(table: Table, row: Row, reference: Row, columns: Sequence[str | int]) -> Difference | None:
    """How far a head is above the reference on the draws of some columns; None if they share none.

    Draws are resampled within a data set, an encoder, a test part and a number of shots.
    """
    ours = {draw: value for column in columns for draw, value in table.figures[row, column].draws.items()}
    theirs = {draw: value for column in columns for draw, value in table.figures[reference, column].draws.items()}
    if not ours.keys() & theirs.keys():
        return None
    return paired_difference(ours, theirs, group=lambda draw: draw[:4])


def tables(study: Study, metric: Metric = "accuracy") -> list[Table]:
    """The tables of a study: their columns are test parts where these are the point, else shots.

    With one number of shots and several encoders, the columns are encoders.
    """
    axis = _axis(study)
    outer = [name for name in ("data", "encoder", "test", "shots") if name != axis]
    found = []
    for values in product(*(distinct(study.settings, name) for name in outer)):
        fixed = dict(zip(outer, values, strict=True))
        settings = [setting for setting in study.settings if all(getattr(setting, k) == v for k, v in fixed.items())]
        if any(study.at(setting) for setting in settings):
            found.append(_table(settings, _heading(study, fixed), fixed, axis, study, metric))
    return [with_transfer_mean(with_harmonic(table)) for table in found]


def _axis(study: Study) -> Axis:
    if create_protocol(study.suite.protocol).report_columns == "test":
        return "test"
    one = len(distinct(study.settings, "shots")) == 1
    return "encoder" if one and len(distinct(study.settings, "encoder")) > 1 else "shots"


def _heading(study: Study, fixed: Mapping[str, str | int]) -> str:
    parts = [str(fixed["data"])]
    several = {name for name in fixed if len(distinct(study.settings, name)) > 1}
    parts += [str(fixed[name]) for name in ("encoder", "test") if name in several]
    if "shots" in fixed:
        parts.append(shots_text(int(fixed["shots"])))
    return ", ".join(parts)


def _table(
    settings: Sequence[Setting], title: str, fixed: Mapping[str, str | int], axis: Axis, study: Study, metric: Metric
) -> Table:
    rows = tuple(
        Row(str(label), str(prompts))
        for label in distinct(settings, "label")
        for prompts in distinct([setting for setting in settings if setting.label == label], "prompts")
    )
    columns = tuple(distinct(settings, axis))
    by_setting = {(Row(setting.label, setting.prompts), getattr(setting, axis)): setting for setting in settings}
    figures = {}
    for spot in product(rows, columns):
        setting = by_setting.get(spot)
        figures[spot] = Figure() if setting is None else _figure(study, setting, metric)
    in_row = {row: [r for p in settings if Row(p.label, p.prompts) == row for r in study.at(p)] for row in rows}
    in_column = {c: [r for p in settings if getattr(p, axis) == c for r in study.at(p)] for c in columns}
    return Table(title, fixed, axis, rows, columns, figures, in_row, in_column, metric)


def _figure(study: Study, setting: Setting, metric: Metric) -> Figure:
    cell = study.cell(setting, metric)
    return Figure(study.by_seed(setting, metric), study.draws(setting), cell.failed, cell.missing)


def with_harmonic(table: Table) -> Table:
    """With the harmonic mean of base and new classes as a last column, seed by seed.

    The table is given back as it is if it has not one column of each.
    """
    kinds = {column: {run.data.protocol for run in runs} for column, runs in table.columns_run.items()}
    new = [column for column, found in kinds.items() if found == {"new"}]
    base = [column for column, found in kinds.items() if "new" not in found]
    if len(new) != 1 or len(base) != 1:
        return table
    return _with_column(table, HARMONIC, [base[0], new[0]], lambda values: harmonic(*values))


def with_transfer_mean(table: Table) -> Table:
    """With the mean over the test parts that are not those of the shots as a last column, seed by seed.

    The table is given back as it is if there are not two of them.
    """
    if HARMONIC in table.columns:
        return table
    others = [
        column for column, runs in table.columns_run.items() if {run.data.protocol for run in runs} & {"shift", "new"}
    ]
    if len(others) < 2:
        return table
    return _with_column(table, f"mean of the {len(others)} others", others, lambda values: sum(values) / len(values))


def harmonic(a: float, b: float) -> float:
    """2ab / (a + b); 0 if both are."""
    return 2 * a * b / (a + b) if a + b else 0.0


def _with_column(
    table: Table, title: str, columns: Sequence[str | int], combine: Callable[[Sequence[float]], float]
) -> Table:
    figures = dict(table.figures)
    for row in table.rows:
        parts = [table.figures[row, column] for column in columns]
        draws = {
            # The first part's name stands for all: draws of one table are of the same rows in every part.
            draws[0]: combine([part.draws[draw] for part, draw in zip(parts, draws, strict=True)])
            for draws in _same_draws(parts)
        }
        by_seed = {seed: combine([part.by_seed[seed] for part in parts]) for seed in _common(parts)}
        figures[row, title] = Figure(
            by_seed, draws, max(p.failed for p in parts), max(p.missing for p in parts), _first_remark(parts)
        )
    runs = {**table.columns_run, title: [run for column in columns for run in table.columns_run[column]]}
    return replace(table, columns=(*table.columns, title), figures=figures, columns_run=runs)


def _common(parts: Sequence[Figure]) -> list[int]:
    return sorted(set.intersection(*(set(part.by_seed) for part in parts)))


def _same_draws(parts: Sequence[Figure]) -> Iterator[list[Draw]]:
    """Draws of the first part with those of the others that differ from it in the test part alone."""
    known = [{_without_test(draw): draw for draw in part.draws} for part in parts]
    for same in known[0]:
        if all(same in other for other in known):
            yield [other[same] for other in known]


def _without_test(draw: Draw) -> tuple[object, ...]:
    return (*draw[:2], *draw[3:])


def _first_remark(parts: Iterable[Figure]) -> str:
    return next((part.remark for part in parts if part.remark), "")


def mean_tables(found: Sequence[Table]) -> list[Table]:
    """The means over data sets; none if there is one data set only."""
    names = {table.fixed["data"] for table in found}
    if len(names) < 2:
        return []
    # The rows that were not drawn have another name than a part that stands apart, but are the test part as well.
    one_each = len(found) == len({_kind(table, "data", "test") + (table.fixed["data"],) for table in found})
    groups: dict[tuple[str | int, ...], list[Table]] = {}
    for table in found:
        groups.setdefault(_kind(table, *(("data", "test") if one_each else ("data",))), []).append(table)
    return [
        mean_table(group, ", ".join([f"Mean over {len(group)} data sets", *_differing(group, list(groups.values()))]))
        for group in groups.values()
        if len(group) > 1
    ]


def _kind(table: Table, *without: str) -> tuple[str | int, ...]:
    return tuple(value for name, value in table.fixed.items() if name not in without)


def _differing(group: Sequence[Table], groups: Sequence[Sequence[Table]]) -> list[str]:
    names = [name for name in group[0].fixed if name != "data"]
    several = [name for name in names if len({other[0].fixed[name] for other in groups}) > 1]
    return [
        shots_text(int(value)) if name == "shots" else str(value)
        for name in several
        for value in [group[0].fixed[name]]
    ]


def mean_table(found: Sequence[Table], title: str) -> Table:
    """The mean over data sets, seed by seed; a head that has not every data set gets no figure.

    Args:
        found: tables of one kind, one a data set.
        title: of the new one.
    """
    rows = tuple(dict.fromkeys(row for table in found for row in table.rows))
    columns = tuple(dict.fromkeys(column for table in found for column in table.columns))
    if found[0].axis == "shots":
        columns = tuple(sorted(columns, key=int))
    figures = {(row, column): _mean_figure(row, column, found) for row, column in product(rows, columns)}
    runs = {row: [run for table in found for run in table.runs.get(row, ())] for row in rows}
    by_column = {column: [run for table in found for run in table.columns_run.get(column, ())] for column in columns}
    return replace(
        found[0],
        title=title,
        fixed={name: value for name, value in found[0].fixed.items() if name != "data"},
        rows=rows,
        columns=columns,
        figures=figures,
        runs=runs,
        columns_run=by_column,
    )


def _mean_figure(row: Row, column: str | int, found: Sequence[Table]) -> Figure:
    parts = [table.figures.get((row, column), Figure()) for table in found]
    whole = [part for part in parts if part.by_seed]
    if len(whole) < len(parts):
        return Figure(remark=f"{len(whole)} of {len(parts)} sets" if whole else "-")
    seeds = _common(parts)
    by_seed = {seed: sum(part.by_seed[seed] for part in parts) / len(parts) for seed in seeds}
    draws = {draw: value for part in parts for draw, value in part.draws.items()}
    return Figure(by_seed, draws, max(p.failed for p in parts), max(p.missing for p in parts))
