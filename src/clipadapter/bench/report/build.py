"""Builds the report of a study, which is then written in several formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from clipadapter.bench.report import plots
from clipadapter.bench.report.document import Document, Grid, Plot, Section
from clipadapter.bench.report.grids import cost_grid, difference_grid, measured_grid
from clipadapter.bench.report.plots import draw_efficiency
from clipadapter.bench.report.published import make_published_section
from clipadapter.bench.report.streams import stream_sections
from clipadapter.bench.report.tables import HARMONIC, Table, format_shots, make_mean_tables, make_tables, reference_row
from clipadapter.bench.report.texts import format_head
from clipadapter.bench.study import Study
from clipadapter.errors import InputError
from clipadapter.metrics import metrics_shown

MAX_DOT_COLUMNS = 7
"""The colours of more columns can't be distinguished."""


def build_report(study: Study, published: bool = False) -> Document:
    """The report of a study.

    Args:
        study: the records.
        published: whether a section compares published results with the measured ones.

    Raises:
        InputError: if there is no record yet.
    """
    suite = study.suite
    if not study.records:
        raise InputError(f"suite '{suite.name}' has none of its {len(study.entries)} records yet: run it first")
    if suite.is_stream:
        sections = stream_sections(study, published)
        return Document(suite.name, suite.title, suite.question, suite.source, _summary(study), sections)
    # Records of earlier versions lack newer metrics.
    recorded = [
        name
        for name in metrics_shown("record", "single-label")
        if name == "accuracy" or any(run.metrics is not None and name in run.metrics for run in study.runs)
    ]
    tables_by_metric = {name: make_tables(study, name) for name in recorded}
    sections = []
    means = [make_mean_tables(tables) for tables in tables_by_metric.values()]
    if means[0]:
        sections.append(_heat_section(study, tables_by_metric["accuracy"]))
        sections += [_section(study, list(group)) for group in zip(*means, strict=True)]
    sections += [_section(study, list(group)) for group in zip(*tables_by_metric.values(), strict=True)]
    if published:
        sections.append(make_published_section(study))
    return Document(suite.name, suite.title, suite.question, suite.source, _summary(study), sections)


def _section(study: Study, metrics: Sequence[Table]) -> Section:
    accuracy = metrics[0]
    blocks: list[Grid | Plot] = [*_pictures(study, accuracy)]
    costs_first = study.suite.figure == "efficiency"
    cost = cost_grid(accuracy, minor=not costs_first)
    blocks += [cost] if costs_first else []
    blocks.append(measured_grid(accuracy))
    if len(accuracy.rows) > 1:
        blocks.append(difference_grid(accuracy, reference_row(study, accuracy)))
    blocks += [measured_grid(table) for table in metrics[1:]]
    blocks += [] if costs_first else [cost]
    return Section(accuracy.title, tuple(blocks), _column_texts(accuracy))


def _column_texts(table: Table) -> tuple[str, ...]:
    if HARMONIC in table.columns:
        return (
            "Harmonic mean: of the means of base and of new classes over the data sets, as in the papers; it is computed "
            "seed by seed, then averaged.",
        )
    return ()


def _pictures(study: Study, table: Table) -> list[Plot]:
    names = {row: format_head(row, table.runs[row]) for row in table.rows}
    figure = study.suite.figure
    if figure == "efficiency":
        return [Plot("efficiency", f"Accuracy over seconds to fit: {table.title}", draw_efficiency(table, names))]
    if figure == "axis" and study.varied_values and table.axis == "shots":
        return [
            Plot("axis", f"Accuracy over {parameter}: {table.title}", drawing)
            for parameter, drawing in plots.draw_parameter_axes(table, names, study.varied_values)
        ]
    if figure == "curves" and table.axis == "shots" and len(table.columns) > 1:
        front = reference_row(study, table)
        return [Plot("curves", f"Accuracy by shots: {table.title}", plots.draw_learning_curves(table, names, front))]
    figures = []
    if len(table.columns) <= MAX_DOT_COLUMNS:
        figures.append(Plot("bars", f"Accuracy by head: {table.title}", plots.draw_dots(table, names)))
    if table.axis == "test" and len(table.columns) > 3:
        figures.append(
            _heat_map(study, [(_part_name(table, c), table, c) for c in table.columns], f"by test part: {table.title}")
        )
    return figures


def _part_name(table: Table, column: str | int) -> str:
    """The name of a test part; with its data set if the name alone does not say which."""
    return f"{column} ({table.fixed['data']})" if column == "test" and "data" in table.fixed else str(column)


def _heat_section(study: Study, tables: Sequence[Table]) -> Section:
    spots = [(table.title, table, table.columns[-1]) for table in tables]
    table, column = tables[0], tables[0].columns[-1]
    what = format_shots(column) if isinstance(column, int) else f"{format_shots(int(table.fixed['shots']))}, {column}"
    return Section("All data sets", (_heat_map(study, spots, f"by data set, at {what}"),))


def _heat_map(study: Study, spots: Sequence[tuple[str, Table, str | int]], what: str) -> Plot:
    rows = list(dict.fromkeys(row for _, table, _ in spots for row in table.rows))
    names = {row: format_head(row, [run for _, table, _ in spots for run in table.runs.get(row, ())]) for row in rows}
    reference = reference_row(study, spots[0][1])
    title = f"Accuracy in % {what}"
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
