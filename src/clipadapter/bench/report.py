"""Reports of a study as Markdown, CSV, LaTeX and HTML; tables of it, of one comparison, and of two folders compared.

A number of a report: `study` says which runs it is made of, `tables` how it is written, and the protocol of the suite
what was drawn and measured.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter import __version__
from clipadapter.bench import plots, tables
from clipadapter.bench.published import compare_with_published, find_published_grid
from clipadapter.bench.run import ContinualResult, Run, digest
from clipadapter.bench.study import (
    Part,
    Pivot,
    Setting,
    Spot,
    Study,
    distinct_values,
    format_shots,
    make_mean_tables,
    make_tables,
)
from clipadapter.errors import InputError
from clipadapter.metrics import metrics_shown
from clipadapter.metrics.intervals import paired_difference
from clipadapter.rendering.html import create_environment
from clipadapter.rendering.plots import PLOT_FORMATS, render_plot, save_plots, set_title
from clipadapter.rendering.tables import (
    BEST,
    TRANSDUCTIVE,
    WIDE_CELL_CHARACTERS,
    Grid,
    escape_markdown,
    latex_comment,
    markdown_table,
)
from clipadapter.utils.files import csv_text, folder_without_links, mark, write_atomically
from clipadapter.utils.formatting import shorten_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_DOT_COLUMNS = 7  # the colours of more columns can't be distinguished
RECORDED = tuple(metrics_shown("record", "single-label"))


# ---- The form of a report ----


@dataclass(frozen=True)
class Plot:
    """A plot: a part of its file name, what it shows, and matplotlib's figure."""

    kind: str
    title: str
    figure: Figure

    @property
    def address(self) -> str:
        """A data URL. As an image, its ids can't clash with those of another plot."""
        return f"data:image/svg+xml;base64,{base64.b64encode(render_plot(self.figure, 'svg')).decode()}"


@dataclass(frozen=True)
class Section:
    """A heading with tables and plots below it."""

    title: str
    blocks: tuple[Grid | Plot, ...]
    text: tuple[str, ...] = ()
    common: tuple[str, ...] = ()  # sentences on how all tables were measured


@dataclass(frozen=True)
class Document:
    """A report."""

    name: str  # of the suite and of the files
    title: str  # of the suite
    question: str  # the question that the suite answers
    source: str  # the paper's table or figure
    summary: tuple[str, ...]  # sentences on what was run
    sections: Sequence[Section]  # the rest

    @property
    def plots(self) -> dict[str, Plot]:
        """All plots by the names of their files without suffix; they are numbered."""
        plots = [block for section in self.sections for block in section.blocks if isinstance(block, Plot)]
        return {f"{self.name}-{i}-{plot.kind}": plot for i, plot in enumerate(plots, 1)}

    def to_latex(self) -> str:
        """The tables, with short captions. How those of a section were measured is a comment above them."""
        parts = ["% needs \\usepackage[T1]{fontenc} and \\usepackage{booktabs}", f"% {' '.join(self.title.split())}"]
        for section in self.sections:
            parts.append("\n".join(latex_comment(section.common)))
            parts += [block.to_latex() for block in section.blocks if isinstance(block, Grid)]
        return "\n\n".join(filter(None, parts)) + "\n"

    def to_markdown(self, plot_format: str = "png") -> str:
        """The page; its pictures are files of this format."""
        escape, names = escape_markdown, {id(plot): f"{name}.{plot_format}" for name, plot in self.plots.items()}
        parts = [f"# {escape(self.title)}", *([escape(self.question)] if self.question else [])]
        parts += [f"After: {escape(self.source)}."] if self.source else []
        parts.append(escape(" ".join(self.summary)))
        for section in self.sections:
            parts += [f"## {escape(section.title)}", *map(escape, section.text)]
            for block in section.blocks:
                if isinstance(block, Plot):
                    parts.append(f"![{escape(block.title)}]({names[id(block)]})")
                else:
                    parts += [f"### {escape(block.title)}", block.to_markdown(), *map(escape, block.notes)]
            if section.common:
                parts += ["### How it was measured", escape(" ".join(section.common))]
        return "\n\n".join(parts) + "\n"

    def to_html(self) -> str:
        """One page without other files: plots are embedded as SVG, and all text is escaped."""
        environment = create_environment("clipadapter.bench")
        environment.tests["plot"] = lambda block: isinstance(block, Plot)
        template = environment.get_template("report.html")
        return template.render(document=self, version=__version__, wide=WIDE_CELL_CHARACTERS)


# ---- The report of a study ----


def write_report(
    study: Study, folder: str | Path, published: bool = False, plot_formats: Sequence[str] = ("png",), title: str = ""
) -> list[Path]:
    """Write ``reports/SUITE.md``, ``.csv``, ``.tex``, ``.html`` and the plots, in place of older ones.

    Args:
        study: the records.
        folder: the folder of records; reports are written to ``reports/`` in it.
        published: whether a section compares published results with the measured ones.
        plot_formats: of the files of plots: "png", "pdf", "svg". The Markdown file shows the first that a browser can.
        title: of the report and its plots; by default what they show.

    Returns:
        The four files, then the plots.

    Raises:
        InputError: if there is no record yet, or the folder can't be written.
    """
    document = build_report(study, published)
    if title:
        document = replace(document, title=title)
        drawn = [plot.figure for plot in document.plots.values()]
        for figure in drawn:
            set_title(figure, title if len(drawn) == 1 else f"{title}: {figure.get_suptitle()}")
    reports, name = folder_without_links(folder, "reports"), study.suite.name
    shown = next((kind for kind in ("png", "svg") if kind in plot_formats), plot_formats[0])
    texts = {
        "md": f"<!-- {mark('bench')} -->\n\n{document.to_markdown(shown)}",
        "csv": format_csv(study),
        "tex": f"% {mark('bench')}\n{document.to_latex()}",
        "html": document.to_html(),
    }
    written = [write_atomically(reports / f"{name}.{ending}", text) for ending, text in texts.items()]
    for stem, plot in document.plots.items():
        written += save_plots(plot.figure, reports / stem, "bench", plot_formats)
    for old in reports.iterdir():
        if re.fullmatch(rf"{re.escape(name)}-\d+-[a-z]+\.({'|'.join(PLOT_FORMATS)})", old.name) and old not in written:
            old.unlink()
    return written


def build_report(study: Study, published: bool = False) -> Document:
    """The report of a study; raises InputError if it has no record yet."""
    suite = study.suite
    if not study.runs:
        raise InputError(f"suite '{suite.name}' has none of its {len(study.entries)} records yet: run it first")
    if suite.is_stream:
        sections = stream_sections(study, published)
    else:
        pivots = make_tables(study)
        means = make_mean_tables(pivots)
        sections = [_heat_section(study, pivots)] if means else []
        sections += [_section(study, table) for table in (*means, *pivots)]
        if published:
            title, theirs = "Measured and published", compare_with_published(study)
            sections.append(Section(title, (theirs,)) if isinstance(theirs, Grid) else Section(title, (), (theirs,)))
    return Document(suite.name, suite.title, suite.question, suite.source, _summary(study), sections)


def _section(study: Study, table: Pivot) -> Section:
    costs_first = study.suite.figure == "efficiency"
    cost = tables.cost_grid(table, minor=not costs_first)
    blocks: list[Grid | Plot] = [*_plots(study, table), *([cost] if costs_first else []), tables.measured_grid(table)]
    if len(table.rows) > 1:
        blocks.append(tables.difference_grid(table, table.reference_row(study.reference)))
    # Records of earlier versions lack newer metrics.
    present = {name for run in study.runs if run.metrics is not None for name in run.metrics.root}
    blocks += [tables.measured_grid(table, metric) for metric in RECORDED if metric in present - {"accuracy"}]
    blocks += [] if costs_first else [cost]
    return Section(table.title, tuple(blocks), tables.column_notes(table), tables.measurement_notes(table))


def _plots(study: Study, table: Pivot) -> list[Plot]:
    figure, columns = study.suite.figure, table.columns()
    if figure == "efficiency":
        return [Plot("efficiency", f"Accuracy over seconds to fit: {table.title}", plots.draw_efficiency(table))]
    if figure == "axis" and study.varied_values and table.axis == "shots":
        return [
            Plot("axis", f"Accuracy over {parameter}: {table.title}", drawing)
            for parameter, drawing in plots.draw_parameter_axes(table, study.varied_values).items()
        ]
    if figure == "curves" and table.axis == "shots" and len(table.parts) > 1:
        curve = plots.draw_learning_curve(
            table, table.title, size=(9.0, 5.2), front=table.reference_row(study.reference)
        )
        return [Plot("curves", f"Accuracy by shots: {table.title}", curve)]
    figures = []
    if len(columns) <= MAX_DOT_COLUMNS:
        figures.append(Plot("bars", f"Accuracy by head: {table.title}", plots.draw_dots(table)))
    if table.axis == "test" and len(columns) > 3:
        own = f"test ({table.fixed['data']})" if "data" in table.fixed else "test"
        spots = [(own if column == "test" else str(column), table, column) for column in columns]
        figures.append(_heat_map(study, spots, f"by test part: {table.title}"))
    return figures


def _heat_section(study: Study, pivots: Sequence[Pivot]) -> Section:
    spots = [(table.title, table, table.columns()[-1]) for table in pivots]
    table, column = pivots[0], pivots[0].columns()[-1]
    what = format_shots(column) if isinstance(column, int) else f"{format_shots(int(table.fixed['shots']))}, {column}"
    return Section("All data sets", (_heat_map(study, spots, f"by data set, at {what}"),))


def _heat_map(study: Study, spots: Sequence[tuple[str, Pivot, Part]], what: str) -> Plot:
    title = f"Accuracy in % {what}"
    return Plot("heat", title, plots.draw_heat_map(spots, study.reference, title))


def _summary(study: Study) -> tuple[str, ...]:
    """Sentences on how many planned records exist, and which are missing."""
    planned, missing = len(study.entries), study.missing
    texts = [f"{planned - len(missing)} of {planned} planned records exist."]
    if missing:
        missing_counts = Counter(f"{entry.label}, {entry.data}, {entry.encoder}" for entry in missing)
        listed = "; ".join(f"{name}: {n}" for name, n in missing_counts.most_common(10))
        others = f"; and {len(missing_counts) - 10} more heads" if len(missing_counts) > 10 else ""
        texts.append(f"{len(missing)} are not run yet ({listed}{others}).")
    if failed := sum(spot.failed for spot in study.spots.values()):
        texts.append(f"{failed} failed; the reasons are below the tables of accuracy.")
    if study.superseded:
        texts.append(
            f"{study.superseded} earlier records of the same head, draw and test part are left out: settings or code "
            "have changed since."
        )
    return tuple(texts)


# ---- Streams of tasks ----

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


def stream_sections(study: Study, published: bool) -> list[Section]:
    """A section for each stream that has runs; ``published`` as for `write_report`."""
    varying = [name for name in ("data", "encoder", "prompts") if len(distinct_values(study.spots, name)) > 1]
    sections = []
    for group, heads in group_streams(study).items():
        title = ", ".join([format_shots(group.shots), f"tasks {group.test}", *(getattr(group, k) for k in varying)])
        if measured := [head for head in heads if head.results]:
            section = _stream_section(title, heads, measured)
            theirs = find_published_grid(title, group.shots, measured) if published else ""
            if isinstance(theirs, Grid):
                section = replace(section, blocks=(section.blocks[0], theirs, *section.blocks[1:]))
            elif theirs:
                section = replace(section, text=(*section.text, theirs))
            sections.append(section)
        elif any(head.runs for head in heads):
            sections.append(Section(title, (), tuple(tables.stream_failures(heads))))
    return sections


def _stream_section(title: str, heads: Sequence[Spot], measured: Sequence[Spot]) -> Section:
    runs = [run for head in heads for run in head.runs]
    streams = [run.stream for run in runs if run.stream is not None]
    orders = {tuple(task.name for task in stream.tasks) for stream in streams}
    n = len(streams[0].tasks)
    # The order may depend on the seed.
    tasks = list(*orders) if len(orders) == 1 else [f"task {t}" for t in range(1, n + 1)]
    matrices, name = f"Accuracy on each task after each: {title}", f"Tasks learned so far: {title}"
    blocks: list[Grid | Plot] = [tables.stream_grid(heads, title, with_costs=True)]
    blocks.append(Plot("matrix", matrices, plots.draw_task_matrices(measured, tasks, matrices)))
    if n > 1:
        blocks.append(Plot("learned", name, plots.draw_learned_tasks(measured, name)))
    names = [shorten_name(head.label) for head in measured]
    for kind, values in BY_TASK.items():
        cells = zip(*(head.by_step(values) for head in measured), strict=True)
        columns = [tables.Column(*pair, tables.format_metric("last")) for pair in zip(tasks, cells, strict=True)]
        minor = "(Last)" not in kind
        blocks.append(tables.make_grid(f"{kind}: {title}", names, columns, notes=["Accuracy in %."], minor=minor))
    titles = [f"{task.name} ({len(task.classes)} classes)" for task in streams[0].tasks]
    order = ", then ".join(titles) if len(orders) == 1 else "their order depends on the seed"
    among = (
        "The task of each test picture is known: a head predicts among the classes of that task."
        if streams[0].task_known
        else f"The task of a test picture is unknown: a head predicts among all {runs[0].n_classes} classes."
    )
    story = (
        f"{n} task{'s are learned one after the other' if n > 1 else ''}: {order}. After each task all are measured, "
        f"on {runs[0].n_test} test pictures in all. {among} Names of all classes are known from the start."
    )
    return Section(title, tuple(blocks), (story,), tables.stream_notes(runs))


# ---- CSV ----

CSV_HEADER = (
    *("label", "data", "encoder", "prompts", "test", "shots", "seed", *RECORDED, "fit_seconds", "predict_seconds"),
    *("size", "transductive", "device", "error", "key"),
)
STREAM_CSV_HEADER = (
    *("label", "learns", "data", "encoder", "prompts", "order", "shots", "seed", "after", "after_task", "task"),
    *("task_name", "learned", *RECORDED, "zero_shot", "fit_seconds", "size", "device", "error", "key"),
)


def format_csv(study: Study) -> str:
    """One line per record in the order of the plan; of a stream one line for each task after each task, from 1."""
    header = STREAM_CSV_HEADER if study.suite.is_stream else CSV_HEADER
    runs = [(setting, run) for setting, spot in study.spots.items() for run in spot.runs]
    lines = [line for setting, run in runs for line in _csv_lines(setting, run)]
    return csv_text([header, *([line.get(name, "") for name in header] for line in lines)])


def _csv_lines(setting: Setting, run: Run) -> Iterator[dict[str, Any]]:
    facts = {**setting._asdict(), "seed": run.seed, "device": run.machine.device, "key": run.key}
    facts["error"] = " ".join((run.error or "").split())
    if run.stream is None:
        seconds = {"fit_seconds": run.seconds.fit, "predict_seconds": run.seconds.predict} if run.seconds else {}
        size = {} if run.size is None else {"size": run.size}
        recorded = run.metrics.root if run.metrics else {}
        yield {**facts, **recorded, **seconds, **size, "transductive": run.flags.transductive}
        return
    facts |= {"order": setting.test, "learns": Spot([run]).learns}
    if run.continual is None:
        yield facts
        return
    names, zero_shot = [task.name for task in run.stream.tasks], run.continual.zero_shot
    for t, step in enumerate(run.continual.steps, 1):
        after = {"after": t, "after_task": names[t - 1], "fit_seconds": step.seconds, "size": step.size}
        for i, metrics in enumerate(step.metrics, 1):
            task = {"task": i, "task_name": names[i - 1], "learned": i <= t, **metrics.root}
            yield {**facts, **after, **task, "zero_shot": zero_shot[i - 1] if zero_shot else ""}


# ---- The terminal, with which ``bench run`` ends ----


def study_text(study: Study) -> str:
    """The accuracy of each head, or the metrics of each stream, with what the marks mean below."""
    if study.suite.is_stream:
        streams = group_streams(study).items()
        return tables.stream_text(
            {f"{own.data}, {format_shots(own.shots)}, tasks {own.test}": heads for own, heads in streams}
        )
    runs, pivots = study.runs, make_tables(study)
    grids = map(tables.measured_grid, (*make_mean_tables(pivots), *pivots))
    parts = [f"{grid.title}\n{grid.to_text()}" for grid in grids]
    marked = f", of the heads without {TRANSDUCTIVE}, which use the unlabelled test pictures"
    notes = [
        f"Accuracy in %; {BEST}: best of a column{marked if tables.transductive_mark(runs) else ''}.",
        tables.seeds_note(runs),
        *dict.fromkeys(note for table in pivots for note in tables.column_notes(table)),
        *study.failures(),
        *tables.fidelity_notes(runs),
    ]
    return "\n\n".join([*parts, "\n".join(notes)])


def study_data(study: Study) -> dict[str, Any]:
    """For JSON: a row for each setting; of streams their metrics, of other protocols the accuracy."""
    rows: list[dict[str, Any]] = []
    if study.suite.is_stream:
        for setting, heads in group_streams(study).items():
            for head in heads:
                facts = {"data": setting.data, "order": setting.test, "shots": setting.shots, "head": head.label}
                cells = {name: head.cell(tables.continual_value(name)) for name in tables.CONTINUAL_METRICS}
                means = {name: cell.mean if cell.values else None for name, cell in cells.items()}
                rows.append({**facts, "learns": head.learns, **means})
        return {"streams": rows}
    for setting, spot in study.spots.items():
        cell = spot.cell()
        accuracy = {"accuracy": cell.mean if cell.values else None, "sd": cell.known_sd}
        rows.append({**setting._asdict(), **accuracy, "seeds": len(cell.values), "failed": cell.failed})
    return {"rows": rows}


# ---- Two folders ----


def compare_studies(a: Study, b: Study) -> str:
    """Compare two folders of records, as a Markdown text.

    For each head, data set, encoder, test part and number of shots of both there is the accuracy of both, and the
    difference ``b - a`` on the same draws. The settings that differ are below the table.

    Args:
        a: the first folder, such as before a change.
        b: the second folder.
    """
    title = f"# Suite '{a.suite.name}', first and second folder"
    first, second = ({setting for setting, spot in study.spots.items() if spot.runs} for study in (a, b))
    shared = [setting for setting in a.spots if setting in first & second]
    only = {"first": len(first - second), "second": len(second - first)}
    if not shared:
        return (
            f"{title}\n\nNo head on the same data, encoder, test part and shots is in both: the first has "
            f"{only['first']} such cells, the second {only['second']}.\n"
        )
    header = ("head", "data", "encoder", "test", "shots", "first", "second", "second - first")
    table = markdown_table(header, [_compared_row(setting, a, b) for setting in shared], range(4))
    note = f"Accuracy in %. Two runs are compared if they were fitted to the same rows. {tables.INTERVAL}"
    only_in = " and ".join(f"{n} cells are in the {name} folder only" for name, n in only.items() if n)
    parts = [title, table, note, *([f"{only_in}."] if only_in else []), *_changed_settings(a, b, shared)]
    return "\n\n".join(parts) + "\n"


def _compared_row(setting: Setting, first: Study, second: Study) -> list[str]:
    spots = [study.spots[setting] for study in (first, second)]
    a, b = (
        {(run.seed, tuple(run.rows)): run.metrics.accuracy for run in spot.runs if run.metrics is not None}
        for spot in spots
    )
    name = f"{setting.label} · {setting.prompts}" if setting.prompts else setting.label
    names = map(shorten_name, (name, setting.data, setting.encoder))
    cells = [tables.format_cell(spot.cell(), tables.format_percent) for spot in spots]
    return [*names, setting.test, str(setting.shots), *cells, tables.format_difference(paired_difference(b, a))]


def _changed_settings(a: Study, b: Study, shared: Sequence[Setting]) -> list[str]:
    """The settings that differ in the shared cells; each change once, with the number of its pairs of runs."""
    changes, n_pairs = Counter[str](), 0
    for setting in shared:
        second = {run.seed: run for run in b.spots[setting].runs}
        for run in (run for run in a.spots[setting].runs if run.seed in second):
            before, after = _facts(setting.label, run), _facts(setting.label, second[run.seed])
            values = {name: (before.get(name, "none"), after.get(name, "none")) for name in {**before, **after}}
            changes.update(f"{name}: {old} to {new}" for name, (old, new) in values.items() if old != new)
            n_pairs += 1
    if not changes:
        return ["All settings are the same: encoder, code, versions, templates, class text, data, parameters."]
    counted = [f"- {change}" + ("" if n == n_pairs else f" ({n} of {n_pairs} runs)") for change, n in changes.items()]
    return ["Settings that differ, first to second:", "\n".join(counted)]


def _facts(label: str, run: Run) -> dict[str, str]:
    quoted = ", ".join(f"“{template}”" for template in run.templates[:2])
    return {
        "encoder": run.encoder.name,
        "encoder fingerprint": run.encoder.fingerprint[:12],
        "code": run.code[:12],
        "templates": quoted + (" ..." if len(run.templates) > 2 else ""),
        "platform": run.machine.platform,
        "device of the head": run.machine.device,
        "class text": run.text[:12],
        "data": run.data.digest[:12],
        "drawn shots": digest([str(row) for row in run.rows])[:12],
        **{f"version of {name}": number for name, number in sorted(run.versions.items())},
        **{f"{name} of {label}": str(value) for name, value in sorted(run.params.items())},
    }
