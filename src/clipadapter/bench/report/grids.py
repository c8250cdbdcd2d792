"""Tables of numbers as tables of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clipadapter.bench.report.document import Grid
from clipadapter.bench.report.tables import Row, Table, compare_rows, format_shots
from clipadapter.bench.report.texts import (
    failure_messages,
    format_cell,
    format_difference,
    format_head,
    measurement_notes,
    transductive_mark,
)
from clipadapter.bench.run import Machine, Run
from clipadapter.bench.summary import format_metric
from clipadapter.formatting import shorten_name
from clipadapter.metrics import METRICS, mean_sd
from clipadapter.rendering.marks import TRANSDUCTIVE

INTERVAL = (
    "Difference of accuracy in points on the same draws, with the 95 % interval of a paired bootstrap over the draws. "
    "It covers the variance between draws only, and is too narrow with few draws: with three it contains the true mean "
    "in about 76 of 100 cases. With fewer than three draws for a number of shots or a data set there is none."
)


def measured_grid(table: Table) -> Grid:
    """A metric by head and column, with the best of each column marked."""
    best = {(i, j) for j, column in enumerate(table.columns, 1) for i in _best(table, column)}
    rows = [
        (
            format_head(row, table.runs[row]),
            *(_measurement_text(table, row, column) for column in table.columns),
        )
        for row in table.rows
    ]
    metric = METRICS[table.metric]
    better = "highest" if metric.higher_is_better else "lowest"
    unit = metric.title_with_unit
    notes = [f"{unit[0].upper()}{unit[1:]}. Bold: the {better} of a column among the heads without {TRANSDUCTIVE}."]
    if any("(" in cell or cell in ("failed", "not run yet") for row in rows for cell in row[1:]):
        notes.append("(2 of 3): two of three planned runs have results; the others failed or are not run yet.")
    notes += failure_messages({format_head(row, table.runs[row]): table.runs[row] for row in table.rows})
    return Grid(
        f"{metric.title[0].upper()}{metric.title[1:]}: {table.title}",
        ("head", *_headers(table)),
        tuple(rows),
        frozenset(best),
        tuple(notes),
        measurement_notes(table),
        minor=table.metric != "accuracy",
    )


def _headers(table: Table) -> list[str]:
    return [format_shots(column) if isinstance(column, int) else shorten_name(column) for column in table.columns]


def _measurement_text(table: Table, row: Row, column: str | int) -> str:
    measurement = table.measurements[row, column]
    return measurement.remark or format_cell(measurement.cell, table.metric)


def _best(table: Table, column: str | int) -> list[int]:
    """Positions of the unmarked heads whose printed mean is the best of a column."""
    printed = {}
    for i, row in enumerate(table.rows):
        cell = table.cell(row, column)
        if cell.values and not transductive_mark(table.runs[row]):
            printed[i] = float(format_metric(cell.mean, table.metric))
    if not printed:
        return []
    best_value = (max if METRICS[table.metric].higher_is_better else min)(printed.values())
    return [i for i, value in printed.items() if value == best_value]


def difference_grid(table: Table, reference: Row) -> Grid:
    """Differences of each head to the reference, by column, and over all shots together."""
    columns: list[tuple[str, list[str | int]]] = [
        (title, [column]) for title, column in zip(_headers(table), table.columns, strict=True)
    ]
    if table.axis == "shots" and len(table.columns) > 1:
        columns.append(("all shots", list(table.columns)))
    rows = []
    for row in table.rows:
        if row != reference:
            texts = [_difference_text(table, row, reference, own) for _, own in columns]
            rows.append((format_head(row, table.runs[row]), *texts))
    name = format_head(reference, table.runs[reference])
    header = ("head", *(title for title, _ in columns))
    return Grid(
        f"Difference to {name}: {table.title}", header, tuple(rows), notes=(INTERVAL,), common=measurement_notes(table)
    )


def _difference_text(table: Table, row: Row, reference: Row, columns: Sequence[str | int]) -> str:
    measurements = [table.measurements[one, column] for one in (row, reference) for column in columns]
    if any(measurement.remark for measurement in measurements) or not all(
        measurement.draws for measurement in measurements
    ):
        return "-"
    return format_difference(compare_rows(table, row, reference, columns))


def cost_grid(table: Table, minor: bool = True) -> Grid:
    """The cost of each head with the most shots; see `Grid` for ``minor``."""
    rows = []
    for row in table.rows:
        runs = select_most_shots(table.runs[row])
        accuracy = _by_seed(runs, lambda run: run.metrics and 100 * run.metrics.accuracy)
        rows.append(
            (
                format_head(row, table.runs[row]),
                _spread(accuracy, ".1f"),
                _spread(_by_seed(runs, lambda run: run.seconds and run.seconds.fit), ".3g"),
                _spread(_by_seed(runs, lambda run: run.seconds and 1000 * run.seconds.predict / run.n_test), ".3g"),
                _size_text(runs),
                _max_text([run.machine.peak_memory_mb for run in runs]),
            )
        )
    costed = select_most_shots(table.all_runs)
    machines = dict.fromkeys(_machine_text(run.machine) for run in costed)
    header = ("head", "accuracy in %", "fit in s", "predict in ms a picture", "stored numbers", "peak memory in MB")
    return Grid(
        f"Cost at {format_shots(costed[0].shots)}: {table.title}",
        header,
        tuple(rows),
        notes=(
            "Seconds are of the head alone: features were computed before. Peak memory is that of the worker process "
            "so far, so it includes heads that ran earlier in it. Stored numbers: the state of a fitted head, the largest "
            "of the draws. Over several test parts or data sets, all but the memory are means.",
            f"Machine: {'; '.join(machines)}.",
        ),
        common=measurement_notes(table),
        minor=minor,
    )


def _machine_text(machine: Machine) -> str:
    gpu = "" if machine.device == "cpu" else f", heads on {machine.device}"
    return f"{machine.cpus} CPUs, {machine.platform}{gpu}"


def select_most_shots(runs: Sequence[Run]) -> list[Run]:
    """The runs with the most shots."""
    max_shots = max((run.shots for run in runs), default=0)
    return [run for run in runs if run.shots == max_shots]


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    mean, sd = mean_sd(values)
    return f"{mean:{form}}" + (f" ± {sd:{form if form != '.3g' else '.2g'}}" if len(values) > 1 else "")


def _by_seed(runs: Sequence[Run], value: Callable[[Run], float | None]) -> list[float]:
    """The mean of a value over test parts and data sets, by seed; without seeds that lack some of them."""
    values: dict[int, list[float]] = {}
    for run in runs:
        if (number := value(run)) is not None:
            values.setdefault(run.seed, []).append(number)
    n_parts = max(map(len, values.values()), default=0)
    return [sum(parts) / len(parts) for parts in values.values() if len(parts) == n_parts]


def _size_text(runs: Sequence[Run]) -> str:
    """Stored numbers: the largest of the draws; over data sets their mean."""
    largest: dict[str, int] = {}
    for run in runs:
        if run.size is not None:
            largest[run.data.support] = max(run.size, largest.get(run.data.support, 0))
    return f"{sum(largest.values()) / len(largest):,.0f}" if largest else "-"


def _max_text(values: Sequence[int | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known):,}" if known else "-"
