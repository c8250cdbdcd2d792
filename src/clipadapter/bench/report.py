"""Reports of a study as Markdown, CSV, LaTeX and HTML; tables of it, of one comparison, and of two folders compared.

A number of a report: `study` says which runs it is made of, `tables` how it is written, and the protocol of the suite
what was drawn and measured.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench import plots
from clipadapter.bench.document import Document, Plot, Section
from clipadapter.bench.published import find_published_grid, make_published_section
from clipadapter.bench.run import Run, digest
from clipadapter.bench.statistics import difference_on_pictures, paired_difference
from clipadapter.bench.stream_report import (
    CONTINUAL_METRICS,
    continual_value,
    group_streams,
    stream_sections,
    stream_text,
)
from clipadapter.bench.study import (
    Cell,
    Part,
    Pivot,
    Setting,
    Spot,
    Study,
    failure_messages,
    fit_seconds,
    format_shots,
    make_mean_tables,
    make_tables,
    metric_value,
    pivot_runs,
)
from clipadapter.bench.tables import (
    INTERVAL,
    Column,
    Reference,
    check_runs,
    column_notes,
    cost_grid,
    device_notes,
    difference_grid,
    fidelity_notes,
    format_cell,
    format_difference,
    format_percent,
    head_names,
    make_grid,
    measured_grid,
    measurement_notes,
    metric_columns,
    number_range,
    plain_name,
    run_fidelity,
    seeds_note,
    transductive_mark,
)
from clipadapter.errors import InputError
from clipadapter.metrics import METRICS, metrics_shown
from clipadapter.metrics.intervals import Z_95
from clipadapter.rendering.plots import PLOT_FORMATS, save_plots, set_title
from clipadapter.rendering.tables import BEST, TRANSDUCTIVE, Grid, markdown_table
from clipadapter.utils.files import csv_text, folder_without_links, write_atomically
from clipadapter.utils.formatting import shorten_name

MAX_DOT_COLUMNS = 7  # the colours of more columns can't be distinguished
RECORDED = tuple(metrics_shown("record", "single-label"))


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
        "md": document.to_markdown(shown),
        "csv": format_csv(study),
        "tex": document.to_latex(),
        "html": document.to_html(),
    }
    written = [write_atomically(reports / f"{name}.{ending}", text) for ending, text in texts.items()]
    for stem, plot in document.plots.items():
        written += save_plots(plot.figure, reports / stem, plot_formats)
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
        sections = stream_sections(study, find_published_grid if published else None)
    else:
        tables = make_tables(study)
        means = make_mean_tables(tables)
        sections = [_heat_section(study, tables)] if means else []
        sections += [_section(study, table) for table in (*means, *tables)]
        sections += [make_published_section(study)] if published else []
    return Document(suite.name, suite.title, suite.question, suite.source, _summary(study), sections)


def _section(study: Study, table: Pivot) -> Section:
    costs_first = study.suite.figure == "efficiency"
    cost = cost_grid(table, minor=not costs_first)
    blocks: list[Grid | Plot] = [*_plots(study, table), *([cost] if costs_first else []), measured_grid(table)]
    if len(table.rows) > 1:
        blocks.append(difference_grid(table, table.reference_row(study.reference)))
    # Records of earlier versions lack newer metrics.
    present = {name for run in study.runs if run.metrics is not None for name in run.metrics.root}
    blocks += [measured_grid(table, metric) for metric in RECORDED if metric in present - {"accuracy"}]
    blocks += [] if costs_first else [cost]
    return Section(table.title, tuple(blocks), column_notes(table), measurement_notes(table))


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
        curve = plots.draw_learning_curve(table, table.title, front=table.reference_row(study.reference))
        return [Plot("curves", f"Accuracy by shots: {table.title}", curve)]
    figures = []
    if len(columns) <= MAX_DOT_COLUMNS:
        figures.append(Plot("bars", f"Accuracy by head: {table.title}", plots.draw_dots(table)))
    if table.axis == "test" and len(columns) > 3:
        own = f"test ({table.fixed['data']})" if "data" in table.fixed else "test"
        spots = [(own if column == "test" else str(column), table, column) for column in columns]
        figures.append(_heat_map(study, spots, f"by test part: {table.title}"))
    return figures


def _heat_section(study: Study, tables: Sequence[Pivot]) -> Section:
    spots = [(table.title, table, table.columns()[-1]) for table in tables]
    table, column = tables[0], tables[0].columns()[-1]
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
        return stream_text(
            {f"{own.data}, {format_shots(own.shots)}, tasks {own.test}": heads for own, heads in streams}
        )
    runs, tables = study.runs, make_tables(study)
    parts = [f"{grid.title}\n{grid.to_text()}" for grid in map(measured_grid, (*make_mean_tables(tables), *tables))]
    marked = f", of the heads without {TRANSDUCTIVE}, which use the unlabelled test pictures"
    notes = [
        f"Accuracy in %; {BEST}: best of a column{marked if transductive_mark(runs) else ''}.",
        seeds_note(runs),
        *dict.fromkeys(note for table in tables for note in column_notes(table)),
        *study.failures(),
        *fidelity_notes(runs),
    ]
    return "\n\n".join([*parts, "\n".join(notes)])


def study_data(study: Study) -> dict[str, Any]:
    """For JSON: a row for each setting; of streams their metrics, of other protocols the accuracy."""
    rows: list[dict[str, Any]] = []
    if study.suite.is_stream:
        for setting, heads in group_streams(study).items():
            for head in heads:
                facts = {"data": setting.data, "order": setting.test, "shots": setting.shots, "head": head.label}
                cells = {name: head.cell(continual_value(name)) for name in CONTINUAL_METRICS}
                means = {name: cell.mean if cell.values else None for name, cell in cells.items()}
                rows.append({**facts, "learns": head.learns, **means})
        return {"streams": rows}
    for setting, spot in study.spots.items():
        cell = spot.cell()
        accuracy = {"accuracy": cell.mean if cell.values else None, "sd": cell.known_sd}
        rows.append({**setting._asdict(), **accuracy, "seeds": len(cell.values), "failed": cell.failed})
    return {"rows": rows}


# ---- The runs of one comparison, such as of `compare` ----


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
    note = f"Accuracy in %. Two runs are compared if they were fitted to the same rows. {INTERVAL}"
    only_in = " and ".join(f"{n} cells are in the {name} folder only" for name, n in only.items() if n)
    parts = [title, table, note, *([f"{only_in}."] if only_in else []), *_changed_settings(a, b, shared)]
    return "\n\n".join(parts) + "\n"


def _compared_row(setting: Setting, first: Study, second: Study) -> list[str]:
    spots = [study.spots[setting] for study in (first, second)]
    a, b = (
        {(run.seed, tuple(run.rows)): run.metrics.accuracy for run in spot.runs if run.metrics is not None}
        for spot in spots
    )
    difference = paired_difference(b, a) if a.keys() & b.keys() else None
    name = f"{setting.label} · {setting.prompts}" if setting.prompts else setting.label
    names = map(shorten_name, (name, setting.data, setting.encoder))
    cells = [format_cell(spot.cell(), format_percent) for spot in spots]
    return [*names, setting.test, str(setting.shots), *cells, format_difference(difference)]


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
