"""The report on streams of tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clipadapter.bench.continual.summary import (
    BEST_NOTE,
    JOINT,
    METRIC_DEFINITIONS,
    HeadRuns,
    by_task,
    format_metric,
    stream_grid,
)
from clipadapter.bench.grids import Column, make_grid
from clipadapter.bench.notes import failure_messages, fidelity_notes, stream_notes
from clipadapter.bench.pivot import format_shots
from clipadapter.bench.report import plots
from clipadapter.bench.report.document import Plot, Section
from clipadapter.bench.report.published import NO_PUBLISHED_STREAM, make_published_grid
from clipadapter.bench.run import ContinualResult, Run, TaskStream
from clipadapter.bench.study import Cell, Setting, Study, distinct_values
from clipadapter.metrics import METRICS
from clipadapter.rendering.tables import Grid
from clipadapter.utils.formatting import shorten_name

MAX_LISTED_TASKS = 15
"""More tasks are not listed."""
SIZE_NOTE = (
    "Numbers that must be stored to predict and to learn the next task; for joint fits they include the features of "
    "all shots so far."
)
SECONDS_NOTE = "Of the head alone: features were computed before."


def group_streams(study: Study) -> dict[Setting, list[HeadRuns]]:
    """The heads of each stream: data sets, encoder, prompts, order of the tasks and shots."""
    groups: dict[Setting, list[HeadRuns]] = {}
    for setting, spot in study.spots.items():
        group = groups.setdefault(setting._replace(label=""), [])
        group.append(HeadRuns(setting.label, spot))
    return groups


def stream_sections(study: Study, published: bool) -> list[Section]:
    """A section for each stream."""
    sections = []
    for group, heads in group_streams(study).items():
        if any(head.results for head in heads):
            sections.append(_section(study, group, heads, published))
        elif any(head.runs for head in heads):
            failures = failure_messages({head.label: head.runs for head in heads})
            sections.append(Section(_title(study, group), (), tuple(failures)))
    return sections


def _title(study: Study, group: Setting) -> str:
    varying = [name for name in ("data", "encoder", "prompts") if len(distinct_values(study.spots, name)) > 1]
    return ", ".join([format_shots(group.shots), f"tasks {group.test}", *(getattr(group, name) for name in varying)])


def _section(study: Study, where: Setting, heads: Sequence[HeadRuns], published: bool) -> Section:
    title, measured = _title(study, where), [head for head in heads if head.results]
    runs = [run for head in heads for run in head.runs]
    tasks = _task_names(runs)
    published_grid = make_published_grid(title, where.shots, measured) if published else None
    matrices = f"Accuracy on each task after each: {title}"
    blocks: list[Grid | Plot] = [_grid(heads, title, runs), *([published_grid] if published_grid else [])]
    blocks.append(Plot("matrix", matrices, plots.draw_task_matrices(measured, tasks, matrices)))
    if len(tasks) > 1:
        name = f"Tasks learned so far: {title}"
        blocks.append(Plot("learned", name, plots.draw_learned_tasks(measured, name)))

    names, learns = [shorten_name(head.label) for head in measured], [head.learns for head in measured]
    for name, values, form, note in BY_TASK:
        cells = list(zip(*(head.by_step(values) for head in measured), strict=True))
        is_cost = note != ACCURACY_NOTE
        if is_cost:  # means without a deviation
            cells = [tuple(Cell((cell.mean,)) for cell in column) for column in cells]
        columns = [
            Column(task, own, form, format_sd=METRICS["accuracy"].format)
            for task, own in zip(tasks, cells, strict=True)
        ]
        grid = make_grid(
            f"{name}: {title}",
            names,
            columns,
            texts=[("learns", learns)] if is_cost else (),
            notes=[note],
            minor="(Last)" not in name,
        )
        blocks.append(grid)
    text = [_story(runs), *([NO_PUBLISHED_STREAM] if published and published_grid is None else [])]
    return Section(title, tuple(blocks), tuple(text), stream_notes(runs))


def _sizes(result: ContinualResult) -> list[float]:
    return [step.size for step in result.steps]


def _seconds(result: ContinualResult) -> list[float]:
    return [step.seconds for step in result.steps]


ACCURACY_NOTE = "Accuracy in %."
BY_TASK: tuple[tuple[str, Callable[[ContinualResult], Sequence[float | None]], Callable[[float], str], str], ...] = (
    ("By task, after the last one (Last)", by_task("last"), format_metric("last"), ACCURACY_NOTE),
    ("By task, just after it was learned", by_task("learned"), format_metric("learned"), ACCURACY_NOTE),
    ("By task, before it was learned (Transfer)", by_task("transfer"), format_metric("transfer"), ACCURACY_NOTE),
    ("By task, over the whole stream (Average)", by_task("average"), format_metric("average"), ACCURACY_NOTE),
    ("Numbers kept after each task", _sizes, "{:,.0f}".format, SIZE_NOTE),
    ("Seconds to learn each task", _seconds, "{:.3g}".format, SECONDS_NOTE),
)
"""Tables with a column for each task: title, values of a result, format of a value, and note."""


def _task_names(runs: Sequence[Run]) -> list[str]:
    """Names of the tasks in order; numbers if the order depends on the seed."""
    orders = {tuple(task.name for task in run.stream.tasks) for run in runs if run.stream is not None}
    first = next(iter(orders))
    return list(first) if len(orders) == 1 else [f"task {t}" for t in range(1, len(first) + 1)]


def _story(runs: Sequence[Run]) -> str:
    """Sentences that describe the stream."""
    streams: list[TaskStream] = [run.stream for run in runs if run.stream is not None]
    first, classes = streams[0], runs[0].n_classes
    n = len(first.tasks)
    titles = [f"{task.name} ({len(task.classes)} classes)" for task in first.tasks]
    if len({tuple(task.name for task in stream.tasks) for stream in streams}) > 1:
        order = "their order depends on the seed"
    else:
        order = ", then ".join(titles) if n <= MAX_LISTED_TASKS else f"first {titles[0]}, at last {titles[-1]}"
        if len({tuple(name for task in stream.tasks for name in task.classes) for stream in streams}) > 1:
            order += "; the order of classes depends on the seed"
    task_note = (
        "The task of each test picture is known: a head predicts among the classes of that task."
        if first.task_known
        else f"The task of a test picture is unknown: a head predicts among all {classes} classes."
    )
    return (
        f"{n} task{'s are learned one after the other' if n > 1 else ''}: {order}. After each task all are measured, "
        f"on {runs[0].n_test} test pictures in all. {task_note} Names of all classes are known from the start."
    )


def _grid(heads: Sequence[HeadRuns], title: str, runs: Sequence[Run]) -> Grid:
    sizes, seconds = ([head.by_step(values) for head in heads] for values in (_sizes, _seconds))
    fits = [Cell((sum(cell.mean for cell in own),) if own else ()) for own in seconds]
    stored = [Cell(remark=f"{own[0].mean:,.0f} → {own[-1].mean:,.0f}" if own else "-") for own in sizes]
    failures = failure_messages({head.label: head.runs for head in heads})
    return stream_grid(
        heads,
        f"Transfer, Average, Last: {title}",
        [
            Column("all fits in s", fits, "{:.3g}".format),
            Column("stored numbers, first → last task", stored, "{:,.0f}".format),
        ],
        notes=[" ".join([f"In %. Bold: {BEST_NOTE}", *METRIC_DEFINITIONS]), JOINT, *fidelity_notes(runs), *failures],
    )
