"""Tables of a study, a stream or a comparison as text: the numbers of `bench.study` with marks, and notes on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench.protocols import list_protocols, protocol_rules
from clipadapter.bench.run import Run
from clipadapter.bench.study import (
    ACCURACY,
    HARMONIC,
    Cell,
    Part,
    Pivot,
    Row,
    Spot,
    Value,
    combine_by_seed,
    failure_messages,
    fit_seconds,
    format_shots,
    metric_value,
    pivot_runs,
)
from clipadapter.errors import InputError
from clipadapter.heads import fidelity_of
from clipadapter.metrics import METRICS, metrics_shown
from clipadapter.metrics.intervals import Z_95, Difference, difference_on_pictures
from clipadapter.rendering.tables import BEST, NOT_AS_PUBLISHED, TRANSDUCTIVE, Grid
from clipadapter.utils.formatting import format_count, format_list, shorten_name
from clipadapter.utils.registry import unknown

Format = Callable[[float], str]
format_percent = METRICS["accuracy"].format

DEFAULTS = (
    "A head whose name says nothing else has the defaults of clipadapter, which may differ from the paper's: see "
    "`clipadapter heads NAME`."
)
INTERVAL = (
    "Difference of accuracy in points on the same draws, with the 95 % interval of a paired bootstrap over the draws. "
    "It covers the variance between draws only, and is too narrow with few draws: with three it contains the true mean "
    "in about 76 of 100 cases. With fewer than three draws for a number of shots or a data set there is none."
)


# ---- Cells ----


@dataclass(frozen=True)
class Column:
    """A column of cells."""

    header: str  # above it
    cells: Sequence[Cell]  # one for each row
    format: Format  # a number as text
    # `max` or `min` if the best number is marked; None for a column without
    best: Callable[[Iterable[float]], float] | None = None
    format_sd: Format | None = None  # a standard deviation as text, if it differs

    def texts(self) -> list[str]:
        """The cells as text."""
        return [format_cell(cell, self.format, self.format_sd) for cell in self.cells]

    def best_rows(self, takes_part: Sequence[bool]) -> set[int]:
        """Positions of the rows whose printed mean is the best, among those that take part in the choice."""
        if self.best is None:
            return set()
        printed = {
            i: float(self.format(cell.mean))
            for i, (cell, own) in enumerate(zip(self.cells, takes_part, strict=True))
            if own and cell.values and not cell.remark
        }
        best_value = self.best(printed.values()) if printed else None
        return {i for i, value in printed.items() if value == best_value}


def make_grid(
    title: str,
    names: Sequence[str],
    columns: Sequence[Column],
    *,
    takes_part: Sequence[bool] | None = None,
    texts: Sequence[tuple[str, Sequence[str]]] = (),
    notes: Iterable[str] = (),
    minor: bool = False,
) -> Grid:
    """A table of heads."""
    first, eligible = 1 + len(texts), takes_part or [True] * len(names)
    rows = zip(names, *(cells for _, cells in texts), *(column.texts() for column in columns), strict=True)
    return Grid(
        title,
        ("head", *(header for header, _ in texts), *(column.header for column in columns)),
        tuple(rows),
        frozenset((i, j) for j, column in enumerate(columns, first) for i in column.best_rows(eligible)),
        tuple(notes),
        minor,
        frozenset(range(first)),
    )


def format_cell(cell: Cell, format_value: Format, format_sd: Format | None = None) -> str:
    """Mean ± sd, and the number of runs if some are missing.

    >>> format_cell(Cell((0.5, 0.7)), format_percent), format_cell(Cell((0.5, 0.7), failed=1), format_percent)
    ('60.0 ± 14.1', '60.0 ± 14.1 (2 of 3)')
    >>> format_cell(Cell((0.5,)), format_percent), format_cell(Cell((), missing=3), format_percent)
    ('50.0', 'not run yet')
    """
    n_done = len(cell.values)
    if cell.remark or not n_done:
        return cell.remark or ("failed" if cell.failed else "not run yet" if cell.missing else "-")
    spread = "" if cell.known_sd is None else f" ± {(format_sd or format_value)(cell.known_sd)}"
    planned = n_done + cell.failed + cell.missing
    return format_value(cell.mean) + spread + (f" ({n_done} of {planned})" if planned > n_done else "")


def format_points(difference: float) -> str:
    """A difference of shares in points of a per cent, without a negative zero.

    >>> format_points(0.0123), format_points(-0.0001)
    ('+1.2', '+0.0')
    """
    return f"{round(100 * difference, 1) + 0.0:+.1f}"


def format_difference(difference: Difference | None) -> str:
    """A difference in points with its interval.

    >>> format_difference(Difference(0.012, (0.003, 0.021), 5))
    '+1.2 [+0.3, +2.1]'
    >>> format_difference(Difference(-0.012, None, 2)), format_difference(None)
    ('-1.2 (2 draws)', 'no common draw')
    """
    if difference is None:
        return "no common draw"
    if difference.interval is None:
        return f"{format_points(difference.mean)} ({format_count(difference.pairs, 'draw')})"
    low, high = map(format_points, difference.interval)
    return f"{format_points(difference.mean)} [{low}, {high}]"


# ---- Marks of heads ----


def transductive_mark(runs: Iterable[Run]) -> str:
    """The mark of a head that is transductive, else ""."""
    return TRANSDUCTIVE if any(run.flags.transductive for run in runs) else ""


def fidelity_notes(runs: Iterable[Run]) -> list[str]:
    """What the mark of a head that is not the published method means, for each such method."""
    stated = dict.fromkeys((run.method, fidelity_of(run.method, run.params)) for run in runs)
    return [f"{NOT_AS_PUBLISHED} {name}: {fidelity}" for name, fidelity in stated if not fidelity.is_as_published]


def format_head(row: Row, runs: Sequence[Run]) -> str:
    """A head's name with its prompts and marks."""
    name = f"{row.label} · {row.prompts}" if row.prompts else row.label
    marks = transductive_mark(runs) + (NOT_AS_PUBLISHED if fidelity_notes(runs) else "")
    return f"{shorten_name(name)} {marks}".rstrip()


def head_names(table: Pivot) -> dict[Row, str]:
    """The names of the heads of a table, with their marks."""
    return {row: format_head(row, table.runs(row)) for row in table.rows}


def plain_name(table: Pivot, row: Row) -> str:
    """A head's name with what qualifies its metrics, in words."""
    return f"{row.label} (transductive)" if transductive_mark(table.runs(row)) else row.label


# ---- Tables of a study ----


def capitalise(text: str) -> str:
    """With a capital at the start."""
    return text[0].upper() + text[1:]


def _column_title(column: Part) -> str:
    return format_shots(column) if isinstance(column, int) else shorten_name(column)


def metric_columns(table: Pivot, metric: str) -> list[Column]:
    """The columns of a table for a metric."""
    value, info = metric_value(metric), METRICS[metric]
    best = max if info.higher_is_better else min
    return [
        Column(_column_title(part), [table.cell(row, part, value) for row in table.rows], info.format, best)
        for part in table.columns(metric)
    ]


def measured_grid(table: Pivot, metric: str = "accuracy") -> Grid:
    """A metric by head and column, with the best of each column marked."""
    names, info, columns = head_names(table), METRICS[metric], metric_columns(table, metric)
    better = "highest" if info.higher_is_better else "lowest"
    notes = [
        f"{capitalise(info.title_with_unit)}. Bold: the {better} of a column among the heads without {TRANSDUCTIVE}."
    ]
    if any("(" in cell or cell in ("failed", "not run yet") for column in columns for cell in column.texts()):
        notes.append("(2 of 3): two of three planned runs have results; the others failed or are not run yet.")
    return make_grid(
        f"{capitalise(info.title)}: {table.title}",
        list(names.values()),
        columns,
        takes_part=[not transductive_mark(table.runs(row)) for row in table.rows],
        notes=[*notes, *failure_messages((name, run) for row, name in names.items() for run in table.runs(row))],
        minor=metric != "accuracy",
    )


def difference_grid(table: Pivot, reference: Row) -> Grid:
    """Differences of each head to the reference, by column, and over all shots together."""
    names = head_names(table)
    columns: list[tuple[str, list[Part]]] = [(_column_title(column), [column]) for column in table.columns()]
    if table.axis == "shots" and len(table.parts) > 1:
        columns.append(("all shots", list(table.parts)))

    def text(row: Row, parts: Sequence[Part]) -> str:
        if not all(table.cell(one, part).values for one in (row, reference) for part in parts):
            return "-"
        return format_difference(table.difference(row, reference, parts))

    return Grid(
        f"Difference to {names[reference]}: {table.title}",
        ("head", *(title for title, _ in columns)),
        tuple((names[row], *(text(row, parts) for _, parts in columns)) for row in table.rows if row != reference),
        notes=(INTERVAL,),
    )


def cost_grid(table: Pivot, minor: bool = True) -> Grid:
    """The cost of each head with the most shots; over several test parts or data sets a mean, seed by seed."""
    of_heads = [[run for part in _costed_parts(table) for run in table.runs(row, part)] for row in table.rows]
    costed = [run for own in of_heads for run in own]
    machines = dict.fromkeys(f"{run.machine.cpus} CPUs, {run.machine.platform}" for run in costed)

    def milliseconds(run: Run) -> float | None:
        return None if run.seconds is None else 1000 * run.seconds.predict / run.n_test

    def column(header: str, value: Value, format_value: Format, format_sd: Format | None = None) -> Column:
        return Column(header, [cost_cell(table, row, value) for row in table.rows], format_value, format_sd=format_sd)

    columns = [
        column("accuracy in %", ACCURACY, format_percent),
        column("fit in s", fit_seconds, "{:.3g}".format, "{:.2g}".format),
        column("predict in ms a picture", milliseconds, "{:.3g}".format, "{:.2g}".format),
        Column("stored numbers", [_mean_size(own) for own in of_heads], "{:,.0f}".format),
        Column("peak memory in MB", [_peak_memory(own) for own in of_heads], "{:,.0f}".format),
    ]
    return make_grid(
        f"Cost at {format_shots(costed[0].shots)}: {table.title}",
        list(head_names(table).values()),
        columns,
        notes=(
            "Seconds are of the head alone: features were computed before. Peak memory is that of the worker process "
            "so far, so it includes heads that ran earlier in it. Stored numbers: the state of a fitted head, the "
            "largest of the draws. Over several test parts or data sets, all but the memory are means.",
            f"Machine: {'; '.join(machines)}.",
        ),
        minor=minor,
    )


def _costed_parts(table: Pivot) -> Sequence[Part]:
    """The column with the most shots that has a run, or all test parts or encoders."""
    return [part for part in table.parts if table.runs(part=part)][-1:] if table.axis == "shots" else table.parts


def cost_cell(table: Pivot, row: Row, value: Value = ACCURACY) -> Cell:
    """The mean of a value over the costed parts that a head was measured on, by seed."""
    measured = [own for part in _costed_parts(table) if (own := table.by_seed(row, part, value))]
    return Cell(tuple(combine_by_seed(measured).values()))


def _mean_size(runs: Sequence[Run]) -> Cell:
    """The largest number of stored numbers of the draws; over data sets their mean."""
    largest: dict[str, int] = {}
    for run in runs:
        if run.size is not None:
            largest[run.data.support] = max(run.size, largest.get(run.data.support, 0))
    return Cell((sum(largest.values()) / len(largest),) if largest else ())


def _peak_memory(runs: Sequence[Run]) -> Cell:
    peaks = [run.machine.peak_memory_mb for run in runs if run.machine.peak_memory_mb is not None]
    return Cell((max(peaks),) if peaks else ())


# ---- Notes: how the numbers of a table were measured ----


def measurement_notes(table: Pivot) -> tuple[str, ...]:
    """Notes on how all metrics of a table were measured."""
    runs = table.runs()
    kinds = {kind: text for name in list_protocols() for kind, text in protocol_rules(name).test_kinds.items()}
    sizes = {str(part): _size(table.runs(part=part)) for part in table.parts}
    by_part = "; ".join(f"{part} {text}" for part, text in sizes.items() if text)
    size = by_part if table.axis == "test" and len(set(sizes.values())) > 1 else _size(runs)
    transductive = f"{TRANSDUCTIVE} transductive: the head uses the unlabelled test pictures."
    return (
        seeds_note(runs),
        f"Test pictures: {size}.",
        f"Protocol: {'; '.join(text for kind, text in kinds.items() if kind in {run.data.protocol for run in runs})}.",
        encoder_note(runs),
        *device_notes(runs),
        f"Templates: {_templates(table)}.",
        transductive if transductive_mark(runs) else "No head is transductive.",
        DEFAULTS,
        *fidelity_notes(runs),
        f"Libraries: {format_versions(runs)}.",
    )


def column_notes(table: Pivot) -> tuple[str, ...]:
    """Notes on the columns that are computed from others."""
    if HARMONIC not in table.derived:
        return ()
    return (
        "Harmonic mean: of the means of base and of new classes over the data sets, as in the papers; it is computed "
        "seed by seed, then averaged.",
    )


def stream_notes(runs: Sequence[Run]) -> tuple[str, ...]:
    """Notes on how the metrics of streams were measured."""
    quoted = [f"“{template}”" for template in dict.fromkeys(template for run in runs for template in run.templates)]
    templates, libraries = format_list(quoted, 3) or "not known", format_versions(runs)
    notes = (f"Templates: {templates}.", f"Libraries: {libraries}.")
    return (seeds_note(runs), encoder_note(runs), *device_notes(runs), *notes)


def device_notes(runs: Iterable[Run]) -> list[str]:
    """Where heads computed, if not all on the CPU, as those that train through a text tower may."""
    counts = Counter(run.machine.device for run in runs)
    if set(counts) <= {"cpu"}:
        return []
    devices = "; ".join(f"{device} ({format_count(n, 'run')})" for device, n in sorted(counts.items()))
    return [f"Heads computed on {devices}. Metrics of several devices differ by rounding."]


def seeds_note(runs: Iterable[Run]) -> str:
    """What a mean and its deviation are over."""
    seeds = sorted({run.seed for run in runs})
    spread = f"over {len(seeds)} seeds ({format_list(map(str, seeds), 10)})"
    return f"Mean ± sample standard deviation {spread}." if len(seeds) > 1 else f"One seed ({seeds[0]})."


def encoder_note(runs: Iterable[Run]) -> str:
    """The encoders and their fingerprints."""
    encoders = dict.fromkeys((run.encoder.name, run.encoder.fingerprint[:12]) for run in runs)
    names = "; ".join(f"{name} (fingerprint {fingerprint or 'unknown'})" for name, fingerprint in encoders)
    return f"Encoder: {names}. The fingerprint covers the weights, the tokenizer and the preprocessing."


def _size(runs: Sequence[Run]) -> str:
    n_test, n_classes = (number_range(getattr(run, name) for run in runs) for name in ("n_test", "n_classes"))
    return f"{n_test} of {n_classes} classes" if runs else ""


def number_range(numbers: Iterable[int]) -> str:
    """Such as "40" or "40 to 60"."""
    values = sorted(set(numbers))
    return " to ".join(map(str, dict.fromkeys([*values[:1], *values[-1:]])))


def _templates(table: Pivot) -> str:
    texts: dict[str, dict[str, None]] = {}
    for row in table.rows:
        for run in table.runs(row):
            text = format_list([f"“{template}”" for template in run.templates], 2) or "not known"
            texts.setdefault(row.prompts, {})[text] = None
    return "; ".join((f"{prompts}: " if prompts else "") + " or ".join(own) for prompts, own in texts.items())


def format_versions(runs: Iterable[Run]) -> str:
    """Versions of the libraries and hashes of the code; the most frequent ones first."""
    counts = Counter((tuple(run.versions.items()), run.code[:12]) for run in runs)
    return "; or ".join(
        ", ".join([*(f"{name} {version}" for name, version in versions), f"code {code}"])
        for (versions, code), _ in counts.most_common()
    )


# ---- Streams of tasks ----

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


def stream_grid(heads: Sequence[Spot], title: str, with_costs: bool) -> Grid:
    """The metrics of each head. The best are among the heads that learn task by task: joint heads keep all shots."""
    fits, stored = [], []
    for head in heads:
        seconds = head.by_step(lambda result: [step.seconds for step in result.steps])
        sizes = [cell.mean for cell in head.by_step(lambda result: [step.size for step in result.steps])]
        fits.append(Cell((sum(cell.mean for cell in seconds),) if seconds else ()))
        stored.append(Cell(remark=f"{sizes[0]:,.0f} → {sizes[-1]:,.0f}" if sizes else "-"))
    costs = [Column("all fits in s", fits, "{:.3g}".format), Column("stored numbers, first → last task", stored, str)]
    learns, names = [head.learns for head in heads], [format_head(Row(head.label), head.runs) for head in heads]
    definitions = " ".join([f"In %. Bold: {BEST_NOTE}", *METRIC_DEFINITIONS])
    return make_grid(
        f"Transfer, Average, Last: {title}",
        names,
        [*stream_columns(heads), *(costs if with_costs else ())],
        takes_part=[own == "task by task" for own in learns],
        texts=[("learns", learns)],
        notes=[
            definitions,
            JOINT,
            *fidelity_notes(run for head in heads for run in head.runs),
            *stream_failures(heads),
        ],
    )


def stream_text(streams: Mapping[str, Sequence[Spot]]) -> str:
    """The tables of streams by their titles as plain text, with what the metrics mean below."""
    runs = [run for own in streams.values() for head in own for run in head.runs]
    notes = [f"In %; {BEST}: {BEST_NOTE}", seeds_note(runs), *METRIC_DEFINITIONS, JOINT, *fidelity_notes(runs)]
    notes += [text for own in streams.values() for text in stream_failures(own)]
    tables = [f"{title}\n{stream_grid(own, title, with_costs=False).to_text()}" for title, own in streams.items()]
    return "\n\n".join([*tables, "\n".join(notes)])


def stream_failures(heads: Sequence[Spot]) -> list[str]:
    """Why runs of streams failed."""
    return failure_messages((head.label, run) for head in heads for run in head.runs)


# ---- The runs of one comparison, such as of `compare` ----


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
    table, rows, seconds, fidelity = pivot_runs(runs), [], {}, {}
    for row in table.rows:
        name = plain_name(table, row)
        for n in table.parts:
            cell = table.cell(row, n, metric_value(metric))
            mean = cell.mean if cell.values else None
            counts = {"seeds": len(cell.values), "failed": cell.failed}
            rows.append({"head": name, "shots": n, "mean": mean, "sd": cell.known_sd, **counts})
        cell, first = table.cell(row, table.parts[-1], fit_seconds), table.runs(row)[0]
        stated = fidelity_of(first.method, first.params)
        seconds[name] = cell.mean if cell.values else None
        fidelity[name] = f"{stated.kind}, own recipe" if stated.own_recipe else stated.kind
    return {"metric": metric, "rows": rows, "fit_seconds": seconds, "fidelity": fidelity}


def table(
    runs: Sequence[Run], metric: str = "accuracy", markdown: bool = False, reference: Reference | None = None
) -> str:
    """Mean ± sd (the mean alone for one seed) by head and shots, with the best of each column marked, and notes below.

    Of runs of a stream, its metrics as plain text, whatever the metric.

    Args:
        runs: records of one comparison.
        metric: name of the metric.
        markdown: a Markdown table with the best in bold; else plain text with a dot before it.
        reference: a first row, which takes no part in the choice of the best.

    Raises:
        InputError: if there are no records.
    """
    check_runs(runs, metric)
    pivot = pivot_runs(runs)
    if runs[0].stream is not None:
        return stream_text({format_shots(int(n)): [pivot.spots[row, n][0] for row in pivot.rows] for n in pivot.parts})
    most, columns, notes = pivot.parts[-1], metric_columns(pivot, metric), _comparison_notes(pivot, metric, markdown)
    seconds = [pivot.cell(row, most, fit_seconds) for row in pivot.rows]
    means = [Cell(cell.values and (cell.mean,)) for cell in seconds]  # without a deviation
    columns.append(Column(f"fit at {most}", means, "{:.2f} s".format))
    notes.insert(1, f"fit at {most}: seconds of one fit of the head alone; features were computed before")
    names = list(head_names(pivot).values())
    takes_part = [not transductive_mark(pivot.runs(row)) for row in pivot.rows]
    if reference is not None:
        names, takes_part = [shorten_name(reference.name), *names], [False, *takes_part]
        levels = [*[Cell((reference.metrics[metric],))] * len(pivot.parts), Cell()]
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
    failures = failure_messages((plain_name(pivot, row), run) for row in pivot.rows for run in pivot.runs(row))
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
