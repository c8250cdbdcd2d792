"""Means over test parts and over data sets, seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product

from clipadapter.bench.reports.tables import HARMONIC, Figure, Row, Table, shots_text
from clipadapter.bench.study import Draw


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
