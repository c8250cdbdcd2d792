"""The report of streams: tasks that come one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from clipadapter.bench.continual.summary import FIGURES, MEANINGS, HeadRuns, best_of, figure_text
from clipadapter.bench.report import plots
from clipadapter.bench.report.document import Grid, Picture, Section
from clipadapter.bench.report.published import NO_PUBLISHED_STREAM, beside
from clipadapter.bench.report.tables import shots_text
from clipadapter.bench.report.texts import failures, how_made
from clipadapter.bench.run import Run, Stream
from clipadapter.bench.study import Setting, Study, distinct
from clipadapter.bench.summary import Cell, fidelity_mark, fidelity_notes
from clipadapter.metrics import mean_sd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_TOLD = 15
"""More tasks than that are not listed."""
JOINT = (
    "Learns task by task: the head sees the shots of each task once, then goes on; the best of these is bold. Joint: "
    "it is fitted anew to the shots of all tasks so far, whose features must all be kept."
)


def stream_sections(study: Study, published: bool) -> list[Section]:
    """A section for each stream: data sets, encoder, prompts, order of the tasks and shots.

    Args:
        study: the records of a suite of protocol "stream".
        published: put published figures of the same stream below the measured ones.
    """
    groups: dict[Setting, list[Setting]] = {}
    for setting in study.settings:
        groups.setdefault(setting._replace(label=""), []).append(setting)
    sections = []
    for where, settings in groups.items():
        heads = [HeadRuns(setting.label, study.at(setting), study.missing_at.get(setting, 0)) for setting in settings]
        runs = [run for one in heads for run in one.runs]
        if any(one.results for one in heads):
            sections.append(_section(study, where, heads, runs, published))
        elif runs:
            sections.append(Section(_title(study, where), (), tuple(failures({o.label: o.runs for o in heads}))))
    return sections


def _title(study: Study, where: Setting) -> str:
    parts = [shots_text(where.shots), f"tasks {where.test}"]
    for name in ("data", "encoder", "prompts"):
        if len(distinct(study.settings, name)) > 1:
            parts.append(str(getattr(where, name)))
    return ", ".join(parts)


def _section(study: Study, where: Setting, heads: Sequence[HeadRuns], runs: Sequence[Run], published: bool) -> Section:
    title, told = _title(study, where), [one for one in heads if one.results]
    tasks = _task_names(runs)
    known = how_made(runs)
    blocks: list[Grid | Picture] = [_grid(heads, title, known)]
    same = beside(title, where.shots, told) if published else None
    blocks += [] if same is None else [same]
    blocks.append(Picture("matrix", f"Accuracy on each task after each: {title}", _matrices(told, tasks, title)))
    if len(tasks) > 1:
        name = f"Tasks learned so far: {title}"
        blocks.append(Picture("learned", name, plots.so_far(told, name)))
    blocks += [
        _by_task(told, tasks, f"{name}: {title}", figure, known[:1], minor)
        for figure, name, minor in (
            ("last", "By task, after the last one (Last)", False),
            ("learned", "By task, just after it was learned", True),
            ("transfer", "By task, before it was learned (Transfer)", True),
            ("average", "By task, over the whole stream (Average)", True),
        )
    ]
    blocks += [
        _after_each(
            told, tasks, f"Numbers kept after each task: {title}", "size", lambda value: f"{value:,.0f}", known[:1]
        ),
        _after_each(
            told, tasks, f"Seconds to learn each task: {title}", "seconds", lambda value: f"{value:.3g}", known[:1]
        ),
    ]
    return Section(
        title, tuple(blocks), (*_story(runs), *([NO_PUBLISHED_STREAM] if published and same is None else []))
    )


def _matrices(heads: Sequence[HeadRuns], tasks: Sequence[str], title: str) -> Figure:
    return plots.matrices(heads, tasks, f"Accuracy on each task after each: {title}")


def _task_names(runs: Sequence[Run]) -> list[str]:
    """Names of the tasks in order; numbers where they come in another order with another seed."""
    orders = {tuple(task.name for task in run.stream.tasks) for run in runs if run.stream is not None}
    first = next(iter(orders))
    return list(first) if len(orders) == 1 else [f"task {t}" for t in range(1, len(first) + 1)]


def _story(runs: Sequence[Run]) -> tuple[str, ...]:
    """What happens in the stream, in sentences."""
    streams: list[Stream] = [run.stream for run in runs if run.stream is not None]
    first, classes = streams[0], runs[0].n_classes
    n = len(first.tasks)
    named = [f"{task.name} ({len(task.classes)} classes)" for task in first.tasks]
    if len({tuple(task.name for task in one.tasks) for one in streams}) > 1:
        order = "their order hangs on the seed"
    else:
        order = ", then ".join(named) if n <= MOST_TOLD else f"first {named[0]}, at last {named[-1]}"
        if len({tuple(name for task in one.tasks for name in task.classes) for one in streams}) > 1:
            order += "; which classes come when hangs on the seed"
    asked = (
        "It is said of each test picture which task it belongs to: a head chooses among the classes of that task."
        if first.task_known
        else f"Nobody says which task a test picture belongs to: a head chooses among all {classes} classes."
    )
    return (
        f"{n} task{'s come one after the other' if n > 1 else ''}: {order}. After each of them every task is measured, "
        f"on {runs[0].n_test} test pictures in all. {asked} Names of all classes are known from the start.",
    )


def _grid(heads: Sequence[HeadRuns], title: str, known: tuple[str, ...]) -> Grid:
    best = {(i, j) for j, figure in enumerate(FIGURES, 2) for i in best_of(heads, figure)}
    rows = []
    for one in heads:
        cells = [figure_text(one.cell(figure), figure) for figure in FIGURES]
        sizes, seconds = one.after_each("size"), one.after_each("seconds")
        kept = f"{sizes[0].mean:,.0f} → {sizes[-1].mean:,.0f}" if sizes else "-"
        name = f"{one.label} {fidelity_mark({run.method for run in one.runs})}".rstrip()
        rows.append((name, one.learns, *cells, f"{sum(c.mean for c in seconds):.3g}" if seconds else "-", kept))
    header = ("head", "learns", *FIGURES.values(), "all fits in s", "numbers kept, first → last task")
    faithful = fidelity_notes(run.method for one in heads for run in one.runs)
    notes = ("In %. " + " ".join(MEANINGS), JOINT, *faithful, *failures({one.label: one.runs for one in heads}))
    return Grid(
        f"Transfer, Average, Last: {title}", header, tuple(rows), frozenset(best), notes, known, words=frozenset({0, 1})
    )


def _by_task(
    heads: Sequence[HeadRuns], tasks: Sequence[str], title: str, figure: str, known: tuple[str, ...], minor: bool
) -> Grid:
    rows = tuple((one.label, *(figure_text(cell, figure) for cell in one.by_task(figure))) for one in heads)
    return Grid(title, ("head", *tasks), rows, notes=("Accuracy in %.",), common=known, minor=minor)


def _after_each(
    heads: Sequence[HeadRuns],
    tasks: Sequence[str],
    title: str,
    field: str,
    text: Callable[[float], str],
    known: tuple[str, ...],
) -> Grid:
    rows = tuple((one.label, one.learns, *(text(_mean(cell)) for cell in one.after_each(field))) for one in heads)
    note = (
        "Numbers that must be kept to answer and to learn the next task; for joint fits the features of all shots so "
        "far are among them."
        if field == "size"
        else "Of the head alone: features were made before."
    )
    return Grid(
        title, ("head", "learns", *tasks), rows, notes=(note,), common=known, minor=True, words=frozenset({0, 1})
    )


def _mean(cell: Cell) -> float:
    return mean_sd(cell.values)[0]
