"""Metrics of streams over their seeds, and their table in plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench.continual.learning import HEAD_WITHOUT_SHOTS
from clipadapter.bench.run import ContinualResult, Run
from clipadapter.bench.summary import Cell, fidelity_mark, fidelity_notes, format_metric
from clipadapter.errors import InputError
from clipadapter.formatting import shorten_name
from clipadapter.rendering.marks import BEST

CONTINUAL_METRICS = {
    "transfer": "Transfer",
    "average": "Average",
    "last": "Last",
    "forgetting": "forgetting",
    "forward_transfer": "forward transfer",
}
"""Metrics of a stream and their titles in tables."""
LOWER_IS_BETTER = "forgetting"
METRIC_DEFINITIONS = (
    "Transfer: accuracy on a task before it was learned, averaged over all earlier steps.",
    "Average: accuracy on a task over the whole stream, before and after it was learned.",
    "Last: accuracy on a task after the last one was learned.",
    "Forgetting: best accuracy on a task since it was learned, minus that at the end.",
    "Forward transfer: accuracy on a task just before it was learned, minus zero-shot's.",
)
"""Definitions of the metrics; each is then averaged over the tasks that have it."""
JOINT_DEFINITION = "Joint: fitted again to the shots of all tasks so far, whose features must all be stored."


@dataclass(frozen=True, eq=False)
class HeadRuns:
    """A head in a stream, over the seeds.

    Args:
        label: its name in tables.
        runs: by rising seed, failed ones too.
        missing: how many planned runs do not exist yet.
    """

    label: str
    runs: Sequence[Run]
    missing: int = 0

    @cached_property
    def results(self) -> list[ContinualResult]:
        """Results of the runs that did not fail."""
        return [run.continual for run in self.runs if run.continual is not None]

    @property
    def learns(self) -> str:
        """How the head learns: "task by task", "joint", or "nothing"."""
        streams = [run.stream for run in self.runs if run.stream is not None]
        if not streams:
            return "-"
        if self.runs[0].method == HEAD_WITHOUT_SHOTS:
            return "nothing"
        return "joint" if streams[0].joint else "task by task"

    @property
    def failed(self) -> int:
        """How many runs failed."""
        return sum(run.error is not None for run in self.runs)

    def cell(self, metric: str) -> Cell:
        """One of `CONTINUAL_METRICS` over the seeds."""
        values = [getattr(result.metrics, metric) for result in self.results]
        return Cell(tuple(value for value in values if value is not None), self.failed, self.missing)

    def by_task(self, metric: str) -> list[Cell]:
        """A metric of each task over the seeds, in the order of learning; empty cells where a task has none.

        Args:
            metric: one of `CONTINUAL_METRICS`, or "learned": just after the task was learned.
        """
        rows = [_by_task(result, metric) for result in self.results]
        return [
            Cell(tuple(value for value in column if value is not None), self.failed, self.missing)
            for column in zip(*rows, strict=True)
        ]

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(T, T) mean accuracy over the seeds: row t, column i is the accuracy on task i after task t, from 0."""
        return np.mean([result.accuracy for result in self.results], axis=0)

    def after_each(self, field: str) -> list[Cell]:
        """Seconds or size of each step over the seeds."""
        steps = zip(*(result.steps for result in self.results), strict=True)
        return [Cell(tuple(float(getattr(step, field)) for step in own)) for own in steps]

    @property
    def so_far(self) -> list[Cell]:
        """Mean accuracy on the tasks that were learned so far, after each task."""
        rows = [[float(np.mean(row[: t + 1])) for t, row in enumerate(result.accuracy)] for result in self.results]
        return [Cell(column) for column in zip(*rows, strict=True)]


def _by_task(result: ContinualResult, metric: str) -> list[float | None]:
    if metric == "learned":
        return [row[t] for t, row in enumerate(result.accuracy)]
    values = list(getattr(result.metrics, f"{metric}_per_task") or ())
    padding: list[float | None] = [None] * (len(result.steps) - len(values))
    return [*values, *padding] if metric == "forgetting" else [*padding, *values]


def group_by_head(runs: Sequence[Run]) -> list[HeadRuns]:
    """The heads of some records of streams, in the order of the records."""
    labels = list(dict.fromkeys(run.head for run in runs))
    runs_by_label = {
        label: sorted((run for run in runs if run.head == label), key=lambda run: run.seed) for label in labels
    }
    return [HeadRuns(label, runs_by_label[label]) for label in labels]


def best_heads(heads: Sequence[HeadRuns], metric: str) -> set[int]:
    """Positions of the heads whose printed mean is best. Joint heads are left out: they keep all shots."""
    printed = {
        i: float(format_metric(head.cell(metric).mean, "accuracy"))
        for i, head in enumerate(heads)
        if head.cell(metric).values and head.learns == "task by task"
    }
    if not printed:
        return set()
    best_value = (min if metric == LOWER_IS_BETTER else max)(printed.values())
    return {i for i, value in printed.items() if value == best_value}


def format_continual_metric(cell: Cell, metric: str) -> str:
    """A metric as tables print it: in %, differences with their sign.

    >>> format_continual_metric(Cell((0.5, 0.7)), "last"), format_continual_metric(Cell((0.012,)), "forward_transfer")
    ('60.0 ± 14.1', '+1.2')
    """
    if not cell.values:
        return "failed" if cell.failed else "not run yet" if cell.missing else "-"
    sign = "+" if metric == "forward_transfer" else ""
    mean = f"{round(100 * cell.mean, 1) + 0.0:{sign}.1f}"
    n_done = len(cell.values)
    spread = f" ± {format_metric(cell.sd, 'accuracy')}" if n_done > 1 else ""
    planned = n_done + cell.failed + cell.missing
    return mean + spread + (f" ({n_done} of {planned})" if planned > n_done else "")


def stream_table(runs: Sequence[Run], notes: bool = True) -> str:
    """Transfer, Average, Last, forgetting and forward transfer of each head, as plain text.

    Args:
        runs: records of one stream, as `learn_task_stream` returns them: several heads, several seeds.
        notes: whether definitions of the metrics follow the table.

    Raises:
        InputError: if there are no records, or none is of a stream.
    """
    stream_runs = [run for run in runs if run.stream is not None]
    if not stream_runs:
        raise InputError("there are no records of streams to make a table of")
    heads = group_by_head(stream_runs)
    best = {metric: best_heads(heads, metric) for metric in CONTINUAL_METRICS}
    rows = [
        [
            f"{shorten_name(head.label)} {fidelity_mark({run.method for run in head.runs})}".rstrip(),
            head.learns,
            *(
                (BEST if i in best[metric] else "") + format_continual_metric(head.cell(metric), metric)
                for metric in CONTINUAL_METRICS
            ),
        ]
        for i, head in enumerate(heads)
    ]
    lines = [["head", "learns", *CONTINUAL_METRICS.values()], *rows]
    widths = [max(len(line[j]) for line in lines) for j in range(len(lines[0]))]
    grid = [
        "  ".join(
            cell.ljust(width) if j < 2 else cell.rjust(width)
            for j, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    seeds = len({run.seed for run in stream_runs})
    spread = f"mean ± sd over {seeds} seeds" if seeds > 1 else "one seed"
    notes_below = (
        [f"in %, {spread}; {BEST}: best of the heads that learn task by task", *METRIC_DEFINITIONS, JOINT_DEFINITION]
        if notes
        else []
    )
    notes_below += fidelity_notes(run.method for run in stream_runs) if notes else []
    errors = dict.fromkeys(f"{run.head} failed: {run.error}" for run in stream_runs if run.error is not None)
    return "\n".join(
        [*(line.rstrip() for line in grid), *([""] if notes_below or errors else []), *notes_below, *errors]
    )
