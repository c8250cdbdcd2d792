"""Builds the report of a study, which is then written in several formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from clipadapter.bench.grids import cost_grid, difference_grid, format_head, head_names, measured_grid
from clipadapter.bench.notes import column_notes, measurement_notes
from clipadapter.bench.pivot import Part, Pivot, format_shots, make_mean_tables, make_tables
from clipadapter.bench.plots import pivot_curve
from clipadapter.bench.report import plots
from clipadapter.bench.report.document import Document, Plot, Section
from clipadapter.bench.report.published import make_published_section
from clipadapter.bench.report.streams import stream_sections
from clipadapter.bench.study import Study
from clipadapter.errors import InputError
from clipadapter.metrics import metrics_shown
from clipadapter.rendering.tables import Grid

MAX_DOT_COLUMNS = 7
"""The colours of more columns can't be distinguished."""


def build_report(study: Study, published: bool = False) -> Document:
    """The report of a study; raises InputError if it has no record yet."""
    suite = study.suite
    if not study.records:
        raise InputError(f"suite '{suite.name}' has none of its {len(study.entries)} records yet: run it first")
    if suite.is_stream:
        sections = stream_sections(study, published)
        return Document(suite.name, suite.title, suite.question, suite.source, _summary(study), sections)
    # Records of earlier versions lack newer metrics.
    metrics = [
        name
        for name in metrics_shown("record", "single-label")
        if name == "accuracy" or any(run.metrics is not None and name in run.metrics for run in study.runs)
    ]
    tables = make_tables(study)
    means = make_mean_tables(tables)
    sections = [_heat_section(study, tables)] if means else []
    sections += [_section(study, table, metrics) for table in (*means, *tables)]
    if published:
        sections.append(make_published_section(study))
    return Document(suite.name, suite.title, suite.question, suite.source, _summary(study), sections)


def _section(study: Study, table: Pivot, metrics: Sequence[str]) -> Section:
    costs_first = study.suite.figure == "efficiency"
    cost = cost_grid(table, minor=not costs_first)
    blocks: list[Grid | Plot] = [*_pictures(study, table), *([cost] if costs_first else []), measured_grid(table)]
    if len(table.rows) > 1:
        blocks.append(difference_grid(table, table.reference_row(study.reference)))
    blocks += [measured_grid(table, metric) for metric in metrics[1:]]
    blocks += [] if costs_first else [cost]
    return Section(table.title, tuple(blocks), column_notes(table), measurement_notes(table))


def _pictures(study: Study, table: Pivot) -> list[Plot]:
    names, figure = head_names(table), study.suite.figure
    if figure == "efficiency":
        return [Plot("efficiency", f"Accuracy over seconds to fit: {table.title}", plots.draw_efficiency(table, names))]
    if figure == "axis" and study.varied_values and table.axis == "shots":
        return [
            Plot("axis", f"Accuracy over {parameter}: {table.title}", drawing)
            for parameter, drawing in plots.draw_parameter_axes(table, names, study.varied_values)
        ]
    if figure == "curves" and table.axis == "shots" and len(table.parts) > 1:
        curve = pivot_curve(table, names, table.title, front=table.reference_row(study.reference))
        return [Plot("curves", f"Accuracy by shots: {table.title}", curve)]
    figures, columns = [], table.columns()
    if len(columns) <= MAX_DOT_COLUMNS:
        figures.append(Plot("bars", f"Accuracy by head: {table.title}", plots.draw_dots(table, names)))
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
    rows = list(dict.fromkeys(row for _, table, _ in spots for row in table.rows))
    names = {row: format_head(row, [run for _, table, _ in spots for run in table.runs(row)]) for row in rows}
    reference, title = spots[0][1].reference_row(study.reference), f"Accuracy in % {what}"
    return Plot("heat", title, plots.draw_heat_map(spots, rows, names, reference, title))


def _summary(study: Study) -> tuple[str, ...]:
    """Sentences on how many planned records exist, and which are missing."""
    planned, missing, failed = len(study.entries), study.missing, study.failed
    texts = [f"{planned - len(missing)} of {planned} planned records exist."]
    if missing:
        missing_counts = Counter(f"{entry.label}, {entry.data}, {entry.encoder}" for entry in missing)
        listed = "; ".join(f"{name}: {n}" for name, n in missing_counts.most_common(10))
        others = f"; and {len(missing_counts) - 10} more heads" if len(missing_counts) > 10 else ""
        texts.append(f"{len(missing)} are not run yet ({listed}{others}).")
    if failed:
        texts.append(f"{len(failed)} failed; the reasons are below the tables of accuracy.")
    if study.superseded:
        texts.append(
            f"{study.superseded} earlier records of the same head, draw and test part are left out: settings or code "
            "have changed since."
        )
    return tuple(texts)
