"""The runs of one comparison by head and number of shots, as a table in plain text or Markdown, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipadapter.bench.continual.summary import HeadRuns, stream_text
from clipadapter.bench.grids import Column, head_names, make_grid, metric_columns
from clipadapter.bench.notes import device_notes, failure_messages, fidelity_notes, lead_notes, number_range
from clipadapter.bench.pivot import Pivot, Row, fit_seconds, format_shots, pivot_runs
from clipadapter.bench.run import Run
from clipadapter.bench.study import Cell, metric_value
from clipadapter.errors import InputError
from clipadapter.heads import fidelity_of
from clipadapter.metrics import METRICS, metrics_shown
from clipadapter.rendering.marks import BEST, TRANSDUCTIVE
from clipadapter.utils.formatting import shorten_name
from clipadapter.utils.registry import unknown


@dataclass(frozen=True)
class Reference:
    """What an answer without a model reaches, such as always the largest class: a row of a table, a level of a plot."""

    name: str  # of the row
    metrics: Mapping[str, float]  # by name


def check_runs(runs: Sequence[Run], metric: str) -> None:
    """Refuse to summarise no runs, or by a metric that records do not have."""
    if metric not in metrics_shown("record"):
        raise unknown("metric of records", metric, list(metrics_shown("record")))
    if not runs:
        raise InputError("there are no records to make a table of")


def summarise(runs: Sequence[Run], metric: str = "accuracy") -> dict[str, Any]:
    """For JSON: one row per head and number of shots, the seconds of a fit with the most shots, and fidelities.

    Raises:
        InputError: if there are no records.
        UnknownNameError: if records have no such metric.
    """
    check_runs(runs, metric)
    table, rows = pivot_runs(runs), []
    names = {row: plain_name(table, row) for row in table.rows}
    for row, name in names.items():
        for n in table.parts:
            cell = table.cell(row, n, metric_value(metric))
            mean = cell.mean if cell.values else None
            counts = {"seeds": len(cell.values), "failed": cell.failed}
            rows.append({"head": name, "shots": n, "mean": mean, "sd": cell.known_sd, **counts})
    seconds = {names[row]: cell.mean if cell.values else None for row, cell in _fit_seconds(table).items()}
    fidelity = {}
    for row, name in names.items():
        run = table.runs(row)[0]
        stated = fidelity_of(run.method, run.params)
        fidelity[name] = f"{stated.kind}, own recipe" if stated.own_recipe else stated.kind
    return {"metric": metric, "rows": rows, "fit_seconds": seconds, "fidelity": fidelity}


def plain_name(table: Pivot, row: Row) -> str:
    """A head's name with what qualifies its metrics, in words."""
    is_transductive = any(run.flags.transductive for run in table.runs(row))
    return f"{row.label} (transductive)" if is_transductive else row.label


def _fit_seconds(table: Pivot) -> dict[Row, Cell]:
    """Seconds of a fit of each head with the most shots."""
    most = table.parts[-1]
    return {row: table.cell(row, most, fit_seconds) for row in table.rows}


def table(
    runs: Sequence[Run],
    metric: str = "accuracy",
    markdown: bool = False,
    reference: Reference | None = None,
    beside: str | None = None,
) -> str:
    """Mean ± sd (the mean alone for one seed) by head and shots, with the best of each column marked, and notes below.

    Of runs of a stream, its metrics as plain text, whatever the metric.

    Args:
        runs: records of one comparison.
        metric: name of the metric.
        markdown: a Markdown table with the best in bold; else plain text with a dot before it.
        reference: a first row, which takes no part in the choice of the best.
        beside: metric of the last column, with the most shots; None: the last column is the time of a fit.

    Raises:
        InputError: if there are no records.
    """
    check_runs(runs, metric)
    pivot = pivot_runs(runs)
    if runs[0].stream is not None:
        heads = {int(n): [HeadRuns(row.label, pivot.spots[row, n][0]) for row in pivot.rows] for n in pivot.parts}
        return stream_text({format_shots(n): own for n, own in heads.items()})
    most = pivot.parts[-1]
    columns = metric_columns(pivot, metric)
    if beside is None:
        seconds = [Cell(cell.values and (cell.mean,)) for cell in _fit_seconds(pivot).values()]
        columns.append(Column(f"fit at {most}", seconds, "{:.2f} s".format))
    else:
        cells = [pivot.cell(row, most, metric_value(beside)) for row in pivot.rows]
        columns.append(Column(f"{METRICS[beside].title} at {most}", cells, METRICS[beside].format))
    names, takes_part = list(head_names(pivot).values()), [not own for own in _transductive(pivot)]
    if reference is not None:
        names, takes_part = [shorten_name(reference.name), *names], [False, *takes_part]
        levels = [Cell((reference.metrics[metric],))] * len(pivot.parts)
        levels.append(Cell() if beside is None else Cell((reference.metrics[beside],)))
        columns = [
            Column(column.header, [level, *column.cells], column.format, column.best)
            for column, level in zip(columns, levels, strict=True)
        ]
    grid = make_grid("", names, columns, takes_part=takes_part)
    notes = _notes(pivot, metric, markdown)
    if beside is None:
        notes.insert(1, f"fit at {most}: seconds of one fit of the head alone; features were computed before")
    # Markdown joins consecutive lines.
    below = [line for note in notes for line in ((note, "") if markdown else (note,))]
    return "\n".join([grid.to_markdown() if markdown else grid.to_text(), "", *below])


def _transductive(pivot: Pivot) -> list[bool]:
    return [any(run.flags.transductive for run in pivot.runs(row)) for row in pivot.rows]


def _notes(pivot: Pivot, metric: str, markdown: bool) -> list[str]:
    runs = pivot.runs()
    seeds = {run.seed for run in runs}
    spread = f"mean ± sd over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    pictures, classes = number_range(run.n_test for run in runs), sorted({run.n_classes for run in runs})
    mark, escaped = ("bold", f"\\{TRANSDUCTIVE}") if markdown else (BEST, TRANSDUCTIVE)  # "* " makes a list
    is_marked = any(_transductive(pivot))
    notes = [
        f"{METRICS[metric].title_with_unit}, {spread}, {pictures} test pictures of "
        f"{', '.join(map(str, classes))} classes; {mark}: best at these shots"
        + (f", of the heads without {escaped}" if is_marked else "")
    ]
    notes += lead_notes(pivot) if metric == "accuracy" else []
    if is_marked:
        notes.append(
            f"{escaped} transductive: fitted to the test pictures too, without their labels; heads without "
            f"{escaped} did not see them"
        )
    failures = failure_messages({plain_name(pivot, row): pivot.runs(row) for row in pivot.rows})
    return [*notes, *device_notes(runs), *fidelity_notes(runs), *failures]
