"""The mean of runs by head and number of shots, as a table in plain text or Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench.run import Run
from clipadapter.bench.statistics import difference_on_pictures
from clipadapter.errors import InputError
from clipadapter.formatting import shorten_name
from clipadapter.heads import fidelity_of
from clipadapter.metrics import METRICS, mean_sd, metrics_shown
from clipadapter.metrics.intervals import Z_95
from clipadapter.registry import unknown
from clipadapter.rendering.marks import BEST, NOT_AS_PUBLISHED, TRANSDUCTIVE

Metric = str
"""Name of a metric of records, as in `clipadapter.metrics.METRICS`."""


@dataclass(frozen=True)
class Cell:
    """One head with one number of shots.

    Args:
        values: the metric of each run that did not fail, by rising seed.
        failed: number of failed runs.
        missing: number of planned runs that do not exist yet.
    """

    values: tuple[float, ...]
    failed: int = 0
    missing: int = 0

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


@dataclass(frozen=True)
class Summary:
    """Records as a grid.

    Args:
        metric: name of the metric.
        heads: rows in the order of the records; a name includes what qualifies its metrics.
        shots: columns, rising.
        cells: by head and shots.
        seconds: mean seconds of a fit of each head with the most shots; None if it failed.
        methods: registered name of each head.
        labels: name of each head in a table, where a mark says that it is transductive.
    """

    metric: Metric
    heads: tuple[str, ...]
    shots: tuple[int, ...]
    cells: dict[tuple[str, int], Cell]
    seconds: dict[str, float | None]
    methods: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def best(self, shots: int) -> set[str]:
        """The heads whose printed mean is the best of a column."""
        cells = {head: self.cells[head, shots] for head in self.heads}
        printed = {head: format_metric(cell.mean, self.metric) for head, cell in cells.items() if cell.values}
        if not printed:
            return set()
        extreme = max if METRICS[self.metric].higher_is_better else min
        best_value = extreme(printed.values(), key=float)
        return {head for head, text in printed.items() if text == best_value}

    def to_dict(self) -> dict[str, Any]:
        """For JSON: one row per head and number of shots."""
        rows = [
            {
                "head": head,
                "shots": n,
                "mean": cell.mean if cell.values else None,
                "sd": cell.known_sd,
                "seeds": len(cell.values),
                "failed": cell.failed,
            }
            for (head, n), cell in self.cells.items()
        ]
        fidelity = {head: fidelity_of(method).kind for head, method in self.methods.items()}
        return {"metric": self.metric, "rows": rows, "fit_seconds": self.seconds, "fidelity": fidelity}


@dataclass(frozen=True)
class Reference:
    """What an answer without a model reaches, such as always the largest class: a row of a table, a level of a plot.

    Args:
        name: of the row.
        metrics: value by name of the metric.
    """

    name: str
    metrics: Mapping[Metric, float]


def summarise(runs: Sequence[Run], metric: Metric = "accuracy") -> Summary:
    """The grid of heads and shots.

    Raises:
        InputError: if there are no records.
        UnknownNameError: if records have no such metric.
    """
    if metric not in metrics_shown("record"):
        raise unknown("metric of records", metric, list(metrics_shown("record")))
    if not runs:
        raise InputError("there are no records to make a table of")
    heads = tuple(dict.fromkeys(_title(run) for run in runs))
    shots = tuple(sorted({run.shots for run in runs}))
    cells, seconds = {}, {}
    for head in heads:
        head_runs = sorted((run for run in runs if _title(run) == head), key=lambda run: run.seed)
        for n in shots:
            shot_runs = [run for run in head_runs if run.shots == n]
            values = tuple(
                run.metrics[metric] for run in shot_runs if run.metrics is not None and metric in run.metrics
            )
            cells[head, n] = Cell(values, sum(run.error is not None for run in shot_runs))
        times = [run.seconds.fit for run in head_runs if run.seconds is not None and run.shots == shots[-1]]
        seconds[head] = mean_sd(times)[0] if times else None
    methods = {_title(run): run.method for run in runs}
    return Summary(metric, heads, shots, cells, seconds, methods, {_title(run): _label(run) for run in runs})


def table(
    runs: Sequence[Run],
    metric: Metric = "accuracy",
    markdown: bool = False,
    reference: Reference | None = None,
    beside: Metric | None = None,
) -> str:
    """Mean ± sd (the mean alone for one seed) by head and shots, with the best of each column marked, and notes below.

    Args:
        runs: records of one comparison.
        metric: name of the metric.
        markdown: a Markdown table with the best in bold; else plain text with a dot before it.
        reference: a first row, which takes no part in the choice of the best.
        beside: metric of the last column, with the most shots; None: the last column is the time of a fit.

    Raises:
        InputError: if there are no records.
    """
    summary = summarise(runs, metric)
    best = {n: summary.best(n) for n in summary.shots}
    most = summary.shots[-1]
    last = f"fit at {most}" if beside is None else f"{METRICS[beside].title} at {most}"
    header = ["head", *(f"{n} shot{'s' if n > 1 else ''}" for n in summary.shots), last]
    rows = []
    if reference is not None:
        level = format_metric(reference.metrics[metric], metric)
        end = "-" if beside is None else format_metric(reference.metrics[beside], beside)
        rows.append([shorten_name(reference.name), *[level] * len(summary.shots), end])
    other = None if beside is None else summarise(runs, beside)
    for head in summary.heads:
        took = summary.seconds[head]
        time = "-" if took is None else f"{took:.2f} s"
        cells = [_cell(summary.cells[head, n], metric, head in best[n], markdown) for n in summary.shots]
        rows.append(
            [
                f"{shorten_name(summary.labels[head])} {fidelity_mark([summary.methods[head]])}".rstrip(),
                *cells,
                time if beside is None or other is None else _cell(other.cells[head, most], beside, False, markdown),
            ]
        )
    grid = markdown_table(header, rows) if markdown else _text(header, rows)
    return "\n".join([grid, "", *_notes(runs, summary, markdown)])


def _leads(runs: Sequence[Run], summary: Summary) -> list[str]:
    """How far the best head of each column is above the next, with the margin of error, as one note or none."""
    phrases = []
    for n in summary.shots if summary.metric == "accuracy" else ():
        correct: dict[str, dict[int, NDArray[np.bool_]]] = {}
        for run in runs:
            if run.shots == n and (pictures := run.correct_pictures) is not None:
                correct.setdefault(_title(run), {})[run.seed] = pictures
        ranked = sorted(correct, key=lambda head: -summary.cells[head, n].mean)[:2]  # noqa: B023
        difference = difference_on_pictures(correct[ranked[0]], correct[ranked[1]]) if len(ranked) > 1 else None
        if difference is not None:
            points, margin = 100 * difference[0], 100 * Z_95 * difference[1]
            phrases.append(f"{n} shot{'s' if n > 1 else ''}: {' - '.join(ranked)} {points:+.1f} ± {margin:.1f}")
    lead = "lead over the next head in points, with its 95 % margin of error on the same pictures and draws"
    return [f"{lead}: {'; '.join(phrases)}"] if phrases else []


def _title(run: Run) -> str:
    """A head's name with what qualifies its metrics."""
    return f"{run.head} (transductive)" if run.flags.transductive else run.head


def _label(run: Run) -> str:
    """The same with a mark in place of the word, for a table that explains the mark."""
    return f"{run.head} {TRANSDUCTIVE}" if run.flags.transductive else run.head


def fidelity_mark(methods: Iterable[str]) -> str:
    """The mark if one of some heads is not the published method, else "".

    Args:
        methods: registered names.

    >>> fidelity_mark(["auto"]), fidelity_mark(["tip-adapter"])
    ('‡', '')
    """
    return "" if all(fidelity_of(method).is_as_published for method in methods) else NOT_AS_PUBLISHED


def fidelity_notes(methods: Iterable[str]) -> list[str]:
    """What the mark means, for each head that has it.

    Args:
        methods: registered names; each has one note.

    >>> fidelity_notes(["prototype", "clap"])
    ['‡ prototype: Only in part as published. Class means are as published, ... is ours.']
    """
    stated = {method: fidelity_of(method) for method in methods}
    return [
        f"{NOT_AS_PUBLISHED} {name}: {fidelity}" for name, fidelity in stated.items() if not fidelity.is_as_published
    ]


def device_notes(runs: Iterable[Run]) -> list[str]:
    """Where heads computed, if not all on the CPU: records of several devices in one table are named as such."""
    counts = Counter(run.machine.device for run in runs)
    if len(counts) > 1:
        devices = "; ".join(f"{device} ({n} run{'s' * (n > 1)})" for device, n in sorted(counts.items()))
        return [
            f"Heads computed on several devices: {devices}. Metrics differ by rounding. Seconds are not comparable."
        ]
    return [f"Heads computed on {device}." for device in counts if device != "cpu"]


def format_metric(value: float, metric: Metric) -> str:
    """A metric as in tables: log-loss in nats, the others in %.

    >>> format_metric(0.5, "accuracy"), format_metric(0.5, "log_loss")
    ('50.0', '0.500')
    """
    return METRICS[metric].format(value)


def _cell(cell: Cell, metric: Metric, best: bool, markdown: bool) -> str:
    if not cell.values:
        return "failed" if cell.failed else "-"
    mean, seeds = format_metric(cell.mean, metric), len(cell.values)
    mark = ("**" if markdown else BEST) if best else ""
    number = f"{mark}{mean}{mark}" if markdown else f"{mark}{mean}"
    count = f" ({seeds} of {seeds + cell.failed})" if cell.failed else ""
    spread = "" if cell.known_sd is None else f" ± {format_metric(cell.known_sd, metric)}"
    return f"{number}{spread}{count}"


def _text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (header, *rows)
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Collection[int] = (0,)) -> str:
    r"""A Markdown table. Columns of text are aligned left, columns of numbers right.

    >>> print(markdown_table(["head", "1 shot"], [["a|b", "50.0"]]))
    | head | 1 shot |
    | --- | ---: |
    | a\|b | 50.0 |
    """
    rule = ["---" if i in text_columns else "---:" for i in range(len(header))]
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (header, rule, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _notes(runs: Sequence[Run], summary: Summary, markdown: bool) -> list[str]:
    seeds = sorted({run.seed for run in runs})
    spread = f"mean ± sd over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    pictures = sorted({run.n_test for run in runs})
    counts = f"{pictures[0]}" if len(pictures) == 1 else f"{pictures[0]} to {pictures[-1]}"
    mark = "bold" if markdown else BEST
    classes = ", ".join(str(n) for n in sorted({run.n_classes for run in runs}))
    notes = [
        f"{METRICS[summary.metric].title_with_unit}, {spread}, {counts} test pictures of {classes} classes; {mark}: "
        "best at these shots"
    ]
    notes += _leads(runs, summary)
    if any(run.flags.transductive for run in runs):
        escaped = f"\\{TRANSDUCTIVE}" if markdown else TRANSDUCTIVE  # at the start of a line it makes a list
        notes.append(
            f"{escaped} transductive: fitted to the test pictures too, without their labels; heads without "
            f"{escaped} did not see them"
        )
    notes += device_notes(runs)
    notes += fidelity_notes(summary.methods.values())
    errors = dict.fromkeys(f"{_title(run)} failed: {run.error}" for run in runs if run.error is not None)
    # Markdown joins consecutive lines.
    return [line for note in (*notes, *errors) for line in ((note, "") if markdown else (note,))]
