"""Metrics of streams over their seeds, and their table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench.grids import Column, format_points, make_grid
from clipadapter.bench.methods import HEAD_WITHOUT_SHOTS
from clipadapter.bench.notes import failure_messages, fidelity_mark, fidelity_notes, seeds_note
from clipadapter.bench.run import ContinualResult, Run
from clipadapter.bench.study import Cell, Spot, Value
from clipadapter.metrics import METRICS
from clipadapter.rendering.marks import BEST
from clipadapter.rendering.tables import Grid
from clipadapter.utils.formatting import shorten_name

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
BEST_NOTE = "best of the heads that learn task by task."
JOINT = (
    "Learns task by task: the head gets the shots of each task once. Joint: it is fitted again to the shots of all "
    "tasks so far, whose features must all be stored."
)


@dataclass(frozen=True, eq=False)
class HeadRuns:
    """A head in a stream, over the seeds."""

    label: str
    spot: Spot

    @property
    def runs(self) -> Sequence[Run]:
        """Its runs by rising seed, failed ones too."""
        return self.spot.runs

    @property
    def results(self) -> list[ContinualResult]:
        """Results of the runs that did not fail."""
        return [run.continual for run in self.runs if run.continual is not None]

    @property
    def name(self) -> str:
        """Its name in a table, with its marks."""
        return f"{shorten_name(self.label)} {fidelity_mark(self.runs)}".rstrip()

    @property
    def learns(self) -> str:
        """How the head learns: "task by task", "joint", or "nothing"."""
        streams = [run.stream for run in self.runs if run.stream is not None]
        if not streams:
            return "-"
        if self.runs[0].method == HEAD_WITHOUT_SHOTS:
            return "nothing"
        return "joint" if streams[0].joint else "task by task"

    def cell(self, metric: str) -> Cell:
        """One of `CONTINUAL_METRICS` over the seeds."""
        return self.spot.cell(_of_result(lambda result: result.metrics.mean(metric)))

    def by_step(self, values: Callable[[ContinualResult], Sequence[float | None]]) -> list[Cell]:
        """One value for each step or task over the seeds."""
        n = len(self.results[0].steps) if self.results else 0
        return [self.spot.cell(_of_result(lambda result, i=i: values(result)[i])) for i in range(n)]  # type: ignore[misc]

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(T, T) mean accuracy over the seeds: row t, column i is the accuracy on task i after task t, from 0."""
        return np.mean([result.accuracy for result in self.results], axis=0)

    @property
    def so_far(self) -> list[Cell]:
        """Mean accuracy on the tasks that were learned so far, after each task."""
        return self.by_step(lambda one: [float(np.mean(row[: t + 1])) for t, row in enumerate(one.accuracy)])


def _of_result(value: Callable[[ContinualResult], float | None]) -> Value:
    return lambda run: None if run.continual is None else value(run.continual)


def by_task(metric: str) -> Callable[[ContinualResult], list[float | None]]:
    """A metric of each task in the order of learning, or "learned": just after it was learned. None without one."""
    if metric == "learned":
        return lambda result: [row[t] for t, row in enumerate(result.accuracy)]
    return lambda result: list(result.metrics.per_task[metric])


def format_metric(metric: str) -> Callable[[float], str]:
    """How tables print a metric: in %, differences with their sign.

    >>> format_metric("last")(0.6), format_metric("forward_transfer")(0.012)
    ('60.0', '+1.2')
    """
    if metric == "forward_transfer":
        return format_points
    return lambda value: f"{round(100 * value, 1) + 0.0:.1f}"


def metric_columns(heads: Sequence[HeadRuns], metrics: Sequence[str] = tuple(CONTINUAL_METRICS)) -> list[Column]:
    """A column for each metric."""
    return [
        Column(
            CONTINUAL_METRICS[metric],
            [head.cell(metric) for head in heads],
            format_metric(metric),
            min if metric == LOWER_IS_BETTER else max,
            METRICS["accuracy"].format,
        )
        for metric in metrics
    ]


def stream_grid(
    heads: Sequence[HeadRuns], title: str = "", costs: Sequence[Column] = (), **more: Sequence[str]
) -> Grid:
    """The metrics of each head. The best are among the heads that learn task by task: joint heads keep all shots."""
    learns = [head.learns for head in heads]
    takes_part = [own == "task by task" for own in learns]
    columns = [*metric_columns(heads), *costs]
    names = [head.name for head in heads]
    return make_grid(title, names, columns, takes_part=takes_part, texts=[("learns", learns)], **more)  # type: ignore[arg-type]


def stream_text(streams: Mapping[str, Sequence[HeadRuns]]) -> str:
    """The tables of streams by their titles as plain text, with what the metrics mean below."""
    heads = [head for own in streams.values() for head in own]
    runs = [run for head in heads for run in head.runs]
    notes = [f"In %; {BEST}: {BEST_NOTE}", seeds_note(runs), *METRIC_DEFINITIONS, JOINT, *fidelity_notes(runs)]
    notes += [text for own in streams.values() for text in failure_messages({head.label: head.runs for head in own})]
    tables = [f"{title}\n{stream_grid(own).to_text()}" for title, own in streams.items()]
    return "\n\n".join([*tables, "\n".join(notes)])
