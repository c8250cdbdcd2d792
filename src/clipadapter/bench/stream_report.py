"""Tables of streams of tasks: their metrics by head for the terminal, and the sections of a report on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from clipadapter.bench import plots
from clipadapter.bench.document import Plot, Section
from clipadapter.bench.run import ContinualResult, Run
from clipadapter.bench.study import (
    Cell,
    Row,
    Setting,
    Spot,
    Study,
    Value,
    distinct_values,
    failure_messages,
    format_shots,
)
from clipadapter.bench.tables import (
    Column,
    capitalise,
    fidelity_notes,
    format_head,
    format_percent,
    format_points,
    make_grid,
    seeds_note,
    stream_notes,
)
from clipadapter.rendering.tables import BEST, Grid
from clipadapter.utils.formatting import shorten_name

CONTINUAL_METRICS = {
    "transfer": "Transfer: accuracy on a task before it was learned, averaged over all earlier steps.",
    "average": "Average: accuracy on a task over the whole stream, before and after it was learned.",
    "last": "Last: accuracy on a task after the last one was learned.",
    "forgetting": "forgetting: best accuracy on a task since it was learned, minus that at the end.",
    "forward_transfer": "forward transfer: accuracy on a task just before it was learned, minus zero-shot's.",
}
"""Metrics of a stream: title in tables, and definition; each is then averaged over the tasks that have it."""
LOWER_IS_BETTER = "forgetting"
METRIC_DEFINITIONS = [capitalise(text) for text in CONTINUAL_METRICS.values()]
BEST_NOTE = "best of the heads that learn task by task."
JOINT = (
    "Learns task by task: the head gets the shots of each task once. Joint: it is fitted again to the shots of all "
    "tasks so far, whose features must all be stored."
)


def continual_value(metric: str) -> Value:
    """The value of one of `CONTINUAL_METRICS`."""
    return lambda run: None if run.continual is None else run.continual.metrics.mean(metric)


def format_metric(metric: str) -> Callable[[float], str]:
    """How tables print a metric: in %, differences with their sign.

    >>> format_metric("last")(0.6), format_metric("forward_transfer")(0.012)
    ('60.0', '+1.2')
    """
    if metric == "forward_transfer":
        return format_points
    return lambda value: f"{round(100 * value, 1) + 0.0:.1f}"


def stream_columns(heads: Sequence[Spot], metrics: Sequence[str] = tuple(CONTINUAL_METRICS)) -> list[Column]:
    """A column for each metric."""
    return [
        Column(
            CONTINUAL_METRICS[metric].partition(":")[0],
            [head.cell(continual_value(metric)) for head in heads],
            format_metric(metric),
            min if metric == LOWER_IS_BETTER else max,
            format_percent,
        )
        for metric in metrics
    ]


def stream_grid(
    heads: Sequence[Spot], title: str = "", costs: Sequence[Column] = (), notes: Sequence[str] = ()
) -> Grid:
    """The metrics of each head. The best are among the heads that learn task by task: joint heads keep all shots."""
    learns = [head.learns for head in heads]
    takes_part = [own == "task by task" for own in learns]
    columns = [*stream_columns(heads), *costs]
    names = [format_head(Row(head.label), head.runs) for head in heads]
    return make_grid(title, names, columns, takes_part=takes_part, texts=[("learns", learns)], notes=notes)


def stream_text(streams: Mapping[str, Sequence[Spot]]) -> str:
    """The tables of streams by their titles as plain text, with what the metrics mean below."""
    runs = [run for own in streams.values() for head in own for run in head.runs]
    notes = [f"In %; {BEST}: {BEST_NOTE}", seeds_note(runs), *METRIC_DEFINITIONS, JOINT, *fidelity_notes(runs)]
    notes += [text for own in streams.values() for text in _failures(own)]
    tables = [f"{title}\n{stream_grid(own).to_text()}" for title, own in streams.items()]
    return "\n\n".join([*tables, "\n".join(notes)])


def _failures(heads: Sequence[Spot]) -> list[str]:
    return failure_messages((head.label, run) for head in heads for run in head.runs)


# ---- The report ----


BY_TASK: dict[str, Callable[[ContinualResult], Sequence[float | None]]] = {
    "By task, after the last one (Last)": lambda result: result.metrics.per_task["last"],
    "By task, just after it was learned": lambda result: [row[t] for t, row in enumerate(result.accuracy)],
    "By task, before it was learned (Transfer)": lambda result: result.metrics.per_task["transfer"],
    "By task, over the whole stream (Average)": lambda result: result.metrics.per_task["average"],
}
"""Tables of accuracies with a column for each task: title, and values of a result."""


def group_streams(study: Study) -> dict[Setting, list[Spot]]:
    """The heads of each stream: data sets, encoder, prompts, order of the tasks and shots."""
    groups: dict[Setting, list[Spot]] = {}
    for setting, spot in study.spots.items():
        groups.setdefault(setting._replace(label=""), []).append(spot)
    return groups


def stream_sections(study: Study, published: Callable[[str, int, Sequence[Spot]], Grid | str] | None) -> list[Section]:
    """A section for each stream; ``published`` gives a table of published results, or a sentence that there is none."""
    varying = [name for name in ("data", "encoder", "prompts") if len(distinct_values(study.spots, name)) > 1]
    sections = []
    for group, heads in group_streams(study).items():
        title = ", ".join([format_shots(group.shots), f"tasks {group.test}", *(getattr(group, k) for k in varying)])
        if any(head.results for head in heads):
            measured = [head for head in heads if head.results]
            sections.append(_section(title, heads, published and published(title, group.shots, measured)))
        elif any(head.runs for head in heads):
            sections.append(Section(title, (), tuple(_failures(heads))))
    return sections


def _section(title: str, heads: Sequence[Spot], published: Grid | str | None) -> Section:
    measured = [head for head in heads if head.results]
    runs = [run for head in heads for run in head.runs]
    tasks = _task_names(runs)
    matrices, name = f"Accuracy on each task after each: {title}", f"Tasks learned so far: {title}"
    blocks: list[Grid | Plot] = [_grid(heads, title, runs), *([published] if isinstance(published, Grid) else [])]
    blocks.append(Plot("matrix", matrices, plots.draw_task_matrices(measured, tasks, matrices)))
    if len(tasks) > 1:
        blocks.append(Plot("learned", name, plots.draw_learned_tasks(measured, name)))
    names = [shorten_name(head.label) for head in measured]
    for kind, values in BY_TASK.items():
        cells = zip(*(head.by_step(values) for head in measured), strict=True)
        columns = [Column(task, own, format_metric("last")) for task, own in zip(tasks, cells, strict=True)]
        minor = "(Last)" not in kind
        blocks.append(make_grid(f"{kind}: {title}", names, columns, notes=["Accuracy in %."], minor=minor))
    text = [_story(runs), *([published] if isinstance(published, str) else [])]
    return Section(title, tuple(blocks), tuple(text), stream_notes(runs))


def _task_names(runs: Sequence[Run]) -> list[str]:
    """Names of the tasks in order; numbers if the order depends on the seed."""
    orders = {tuple(task.name for task in run.stream.tasks) for run in runs if run.stream is not None}
    first = next(iter(orders))
    return list(first) if len(orders) == 1 else [f"task {t}" for t in range(1, len(first) + 1)]


def _story(runs: Sequence[Run]) -> str:
    """Sentences that describe the stream."""
    streams = [run.stream for run in runs if run.stream is not None]
    first, classes = streams[0], runs[0].n_classes
    n = len(first.tasks)
    titles = [f"{task.name} ({len(task.classes)} classes)" for task in first.tasks]
    is_fixed = len({tuple(task.name for task in stream.tasks) for stream in streams}) == 1
    order = ", then ".join(titles) if is_fixed else "their order depends on the seed"
    task_note = (
        "The task of each test picture is known: a head predicts among the classes of that task."
        if first.task_known
        else f"The task of a test picture is unknown: a head predicts among all {classes} classes."
    )
    return (
        f"{n} task{'s are learned one after the other' if n > 1 else ''}: {order}. After each task all are measured, "
        f"on {runs[0].n_test} test pictures in all. {task_note} Names of all classes are known from the start."
    )


def _grid(heads: Sequence[Spot], title: str, runs: Sequence[Run]) -> Grid:
    fits, stored = [], []
    for head in heads:
        seconds = head.by_step(lambda result: [step.seconds for step in result.steps])
        sizes = [cell.mean for cell in head.by_step(lambda result: [step.size for step in result.steps])]
        fits.append(Cell((sum(cell.mean for cell in seconds),) if seconds else ()))
        stored.append(Cell(remark=f"{sizes[0]:,.0f} → {sizes[-1]:,.0f}" if sizes else "-"))
    costs = [Column("all fits in s", fits, "{:.3g}".format), Column("stored numbers, first → last task", stored, str)]
    definitions = " ".join([f"In %. Bold: {BEST_NOTE}", *METRIC_DEFINITIONS])
    notes = [definitions, JOINT, *fidelity_notes(runs), *_failures(heads)]
    return stream_grid(heads, f"Transfer, Average, Last: {title}", costs, notes)
