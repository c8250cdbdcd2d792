"""The runs of one comparison by head and number of shots, as a table in plain text or Markdown, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench.run import Run
from clipadapter.bench.statistics import difference_on_pictures
from clipadapter.bench.stream_report import HeadRuns, stream_text
from clipadapter.bench.study import Cell, Pivot, fit_seconds, format_shots, metric_value, pivot_runs
from clipadapter.bench.tables import (
    Column,
    Reference,
    check_runs,
    device_notes,
    failure_messages,
    fidelity_notes,
    head_names,
    make_grid,
    metric_columns,
    number_range,
    plain_name,
    run_fidelity,
    transductive_mark,
)
from clipadapter.metrics import METRICS
from clipadapter.metrics.intervals import Z_95
from clipadapter.rendering.marks import BEST, TRANSDUCTIVE
from clipadapter.utils.formatting import shorten_name


def summarise(runs: Sequence[Run], metric: str = "accuracy") -> dict[str, Any]:
    """For JSON: one row per head and number of shots, the seconds of a fit with the most shots, and fidelities.

    Raises:
        InputError: if there are no records.
        UnknownNameError: if records have no such metric.
    """
    check_runs(runs, metric)
    table, rows, seconds, fidelity = pivot_runs(runs), [], {}, {}
    for row in table.rows:
        name = plain_name(table, row)
        for n in table.parts:
            cell = table.cell(row, n, metric_value(metric))
            mean = cell.mean if cell.values else None
            counts = {"seeds": len(cell.values), "failed": cell.failed}
            rows.append({"head": name, "shots": n, "mean": mean, "sd": cell.known_sd, **counts})
        cell, stated = table.cell(row, table.parts[-1], fit_seconds), run_fidelity(table.runs(row)[0])
        seconds[name] = cell.mean if cell.values else None
        fidelity[name] = f"{stated.kind}, own recipe" if stated.own_recipe else stated.kind
    return {"metric": metric, "rows": rows, "fit_seconds": seconds, "fidelity": fidelity}


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
    most, columns, notes = pivot.parts[-1], metric_columns(pivot, metric), _comparison_notes(pivot, metric, markdown)
    cells = [pivot.cell(row, most, metric_value(beside) if beside else fit_seconds) for row in pivot.rows]
    if beside is None:
        cells = [Cell(cell.values and (cell.mean,)) for cell in cells]  # seconds without a deviation
        columns.append(Column(f"fit at {most}", cells, "{:.2f} s".format))
        notes.insert(1, f"fit at {most}: seconds of one fit of the head alone; features were computed before")
    else:
        columns.append(Column(f"{METRICS[beside].title} at {most}", cells, METRICS[beside].format))
    names = list(head_names(pivot).values())
    takes_part = [not transductive_mark(pivot.runs(row)) for row in pivot.rows]
    if reference is not None:
        names, takes_part = [shorten_name(reference.name), *names], [False, *takes_part]
        levels = [Cell((reference.metrics[metric],))] * len(pivot.parts)
        levels.append(Cell((reference.metrics[beside],)) if beside else Cell())
        columns = [replace(own, cells=[level, *own.cells]) for own, level in zip(columns, levels, strict=True)]
    grid = make_grid("", names, columns, takes_part=takes_part)
    # Markdown joins consecutive lines.
    below = [line for note in notes for line in ((note, "") if markdown else (note,))]
    return "\n".join([grid.to_markdown() if markdown else grid.to_text(), "", *below])


def _comparison_notes(pivot: Pivot, metric: str, markdown: bool) -> list[str]:
    runs = pivot.runs()
    seeds, classes = {run.seed for run in runs}, sorted({run.n_classes for run in runs})
    spread = f"mean ± sd over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    mark, escaped = ("bold", f"\\{TRANSDUCTIVE}") if markdown else (BEST, TRANSDUCTIVE)  # "* " makes a list
    is_marked = transductive_mark(runs)
    notes = [
        f"{METRICS[metric].title_with_unit}, {spread}, {number_range(run.n_test for run in runs)} test pictures of "
        f"{', '.join(map(str, classes))} classes; {mark}: best at these shots"
        + (f", of the heads without {escaped}" if is_marked else "")
    ]
    notes += _lead_notes(pivot) if metric == "accuracy" else []
    if is_marked:
        notes.append(
            f"{escaped} transductive: fitted to the test pictures too, without their labels; heads without "
            f"{escaped} did not see them"
        )
    failures = failure_messages({plain_name(pivot, row): pivot.runs(row) for row in pivot.rows})
    return [*notes, *device_notes(runs), *fidelity_notes(runs), *failures]


def _lead_notes(table: Pivot) -> list[str]:
    """How far the best head of each column is above the next, with the margin of error, as one note or none."""
    phrases = []
    for n in table.parts:
        leaders: list[tuple[float, str, dict[int, NDArray[np.bool_]]]] = []
        for row in table.rows:
            pictures = {run.seed: run.correct_pictures for run in table.runs(row, n)}
            if known := {seed: own for seed, own in pictures.items() if own is not None}:
                leaders.append((table.cell(row, n).mean, row.label, known))
        leaders.sort(key=lambda leader: -leader[0])
        if len(leaders) < 2:
            continue
        (_, first, ours), (_, second, theirs) = leaders[:2]
        if (difference := difference_on_pictures(ours, theirs)) is not None:
            points, margin = 100 * difference[0], 100 * Z_95 * difference[1]
            phrases.append(f"{format_shots(int(n))}: {first} - {second} {points:+.1f} ± {margin:.1f}")
    lead = "lead over the next head in points, with its 95 % margin of error on the same pictures and draws"
    return [f"{lead}: {'; '.join(phrases)}"] if phrases else []
