"""The report on streams of tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from clipadapter.bench.continual.summary import (
    CONTINUAL_METRICS,
    METRIC_DEFINITIONS,
    HeadRuns,
    best_heads,
    format_continual_metric,
)
from clipadapter.bench.report import plots
from clipadapter.bench.report.document import Grid, Plot, Section
from clipadapter.bench.report.published import NO_PUBLISHED_STREAM, make_published_grid
from clipadapter.bench.report.tables import format_shots
from clipadapter.bench.report.texts import failure_messages, stream_notes
from clipadapter.bench.run import Run, TaskStream
from clipadapter.bench.study import Setting, Study, distinct_values
from clipadapter.bench.summary import Cell, fidelity_mark, fidelity_notes
from clipadapter.formatting import shorten_name
from clipadapter.metrics import mean_sd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_LISTED_TASKS = 15
"""More tasks are not listed."""
JOINT = (
    "Learns task by task: the head gets the shots of each task once; the best of these heads is bold. Joint: it is "
    "fitted again to the shots of all tasks so far, whose features must all be stored."
)


def stream_sections(study: Study, published: bool) -> list[Section]:
    """A section for each stream: data sets, encoder, prompts, order of the tasks and shots.

    Args:
        study: the records of a suite of protocol "stream".
        published: whether published results of the same stream are below the measured ones.
    """
    groups: dict[Setting, list[Setting]] = {}
    for setting in study.settings:
        groups.setdefault(setting._replace(label=""), []).append(setting)
    sections = []
    for group, settings in groups.items():
        heads = [
            HeadRuns(setting.label, study.runs_at(setting), study.missing_by_setting.get(setting, 0))
            for setting in settings
        ]
        runs = [run for head in heads for run in head.runs]
        if any(head.results for head in heads):
            sections.append(_section(study, group, heads, runs, published))
        elif runs:
            sections.append(
                Section(_title(study, group), (), tuple(failure_messages({head.label: head.runs for head in heads})))
            )
    return sections


def _title(study: Study, group: Setting) -> str:
    parts = [format_shots(group.shots), f"tasks {group.test}"]
    for name in ("data", "encoder", "prompts"):
        if len(distinct_values(study.settings, name)) > 1:
            parts.append(str(getattr(group, name)))
    return ", ".join(parts)


def _section(study: Study, where: Setting, heads: Sequence[HeadRuns], runs: Sequence[Run], published: bool) -> Section:
    title, measured = _title(study, where), [one for one in heads if one.results]
    tasks = _task_names(runs)
    common_notes = stream_notes(runs)
    blocks: list[Grid | Plot] = [_grid(heads, title, common_notes)]
    published_grid = make_published_grid(title, where.shots, measured) if published else None
    blocks += [] if published_grid is None else [published_grid]
    blocks.append(Plot("matrix", f"Accuracy on each task after each: {title}", _matrices(measured, tasks, title)))
    if len(tasks) > 1:
        name = f"Tasks learned so far: {title}"
        blocks.append(Plot("learned", name, plots.draw_learned_tasks(measured, name)))
    blocks += [
        _by_task(measured, tasks, f"{name}: {title}", metric, common_notes[:1], minor)
        for metric, name, minor in (
            ("last", "By task, after the last one (Last)", False),
            ("learned", "By task, just after it was learned", True),
            ("transfer", "By task, before it was learned (Transfer)", True),
            ("average", "By task, over the whole stream (Average)", True),
        )
    ]
    blocks += [
        _after_each(
            measured,
            tasks,
            f"Numbers kept after each task: {title}",
            "size",
            lambda value: f"{value:,.0f}",
            common_notes[:1],
        ),
        _after_each(
            measured,
            tasks,
            f"Seconds to learn each task: {title}",
            "seconds",
            lambda value: f"{value:.3g}",
            common_notes[:1],
        ),
    ]
    return Section(
        title, tuple(blocks), (*_story(runs), *([NO_PUBLISHED_STREAM] if published and published_grid is None else []))
    )


def _matrices(heads: Sequence[HeadRuns], tasks: Sequence[str], title: str) -> Figure:
    return plots.draw_task_matrices(heads, tasks, f"Accuracy on each task after each: {title}")


def _task_names(runs: Sequence[Run]) -> list[str]:
    """Names of the tasks in order; numbers if the order depends on the seed."""
    orders = {tuple(task.name for task in run.stream.tasks) for run in runs if run.stream is not None}
    first = next(iter(orders))
    return list(first) if len(orders) == 1 else [f"task {t}" for t in range(1, len(first) + 1)]


def _story(runs: Sequence[Run]) -> tuple[str, ...]:
    """Sentences that describe the stream."""
    streams: list[TaskStream] = [run.stream for run in runs if run.stream is not None]
    first, classes = streams[0], runs[0].n_classes
    n = len(first.tasks)
    task_titles = [f"{task.name} ({len(task.classes)} classes)" for task in first.tasks]
    if len({tuple(task.name for task in stream.tasks) for stream in streams}) > 1:
        order = "their order depends on the seed"
    else:
        order = (
            ", then ".join(task_titles)
            if n <= MAX_LISTED_TASKS
            else f"first {task_titles[0]}, at last {task_titles[-1]}"
        )
        if len({tuple(name for task in stream.tasks for name in task.classes) for stream in streams}) > 1:
            order += "; the order of classes depends on the seed"
    task_note = (
        "The task of each test picture is known: a head predicts among the classes of that task."
        if first.task_known
        else f"The task of a test picture is unknown: a head predicts among all {classes} classes."
    )
    return (
        f"{n} task{'s are learned one after the other' if n > 1 else ''}: {order}. After each task all are measured, "
        f"on {runs[0].n_test} test pictures in all. {task_note} Names of all classes are known from the start.",
    )


def _grid(heads: Sequence[HeadRuns], title: str, common_notes: tuple[str, ...]) -> Grid:
    best = {(i, j) for j, metric in enumerate(CONTINUAL_METRICS, 2) for i in best_heads(heads, metric)}
    rows = []
    for head in heads:
        cells = [format_continual_metric(head.cell(metric), metric) for metric in CONTINUAL_METRICS]
        sizes, seconds = head.after_each("size"), head.after_each("seconds")
        sizes_text = f"{sizes[0].mean:,.0f} → {sizes[-1].mean:,.0f}" if sizes else "-"
        name = f"{shorten_name(head.label)} {fidelity_mark({run.method for run in head.runs})}".rstrip()
        rows.append((name, head.learns, *cells, f"{sum(c.mean for c in seconds):.3g}" if seconds else "-", sizes_text))
    header = ("head", "learns", *CONTINUAL_METRICS.values(), "all fits in s", "stored numbers, first → last task")
    faithful = fidelity_notes(run.method for head in heads for run in head.runs)
    notes = (
        "In %. " + " ".join(METRIC_DEFINITIONS),
        JOINT,
        *faithful,
        *failure_messages({head.label: head.runs for head in heads}),
    )
    return Grid(
        f"Transfer, Average, Last: {title}",
        header,
        tuple(rows),
        frozenset(best),
        notes,
        common_notes,
        text_columns=frozenset({0, 1}),
    )


def _by_task(
    heads: Sequence[HeadRuns], tasks: Sequence[str], title: str, metric: str, common_notes: tuple[str, ...], minor: bool
) -> Grid:
    rows = tuple(
        (shorten_name(head.label), *(format_continual_metric(cell, metric) for cell in head.by_task(metric)))
        for head in heads
    )
    return Grid(title, ("head", *tasks), rows, notes=("Accuracy in %.",), common=common_notes, minor=minor)


def _after_each(
    heads: Sequence[HeadRuns],
    tasks: Sequence[str],
    title: str,
    field: str,
    format_value: Callable[[float], str],
    common_notes: tuple[str, ...],
) -> Grid:
    rows = tuple(
        (shorten_name(head.label), head.learns, *(format_value(_mean(cell)) for cell in head.after_each(field)))
        for head in heads
    )
    note = (
        "Numbers that must be stored to predict and to learn the next task; for joint fits they include the features "
        "of all shots so far."
        if field == "size"
        else "Of the head alone: features were computed before."
    )
    return Grid(
        title,
        ("head", "learns", *tasks),
        rows,
        notes=(note,),
        common=common_notes,
        minor=True,
        text_columns=frozenset({0, 1}),
    )


def _mean(cell: Cell) -> float:
    return mean_sd(cell.values)[0]
