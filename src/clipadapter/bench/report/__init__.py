"""Reports of a study: one set of tables and plots, as Markdown, CSV, LaTeX and one HTML page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clipadapter.bench.report.comparison import compare_studies
from clipadapter.bench.study import Study
from clipadapter.utils.files import folder_without_links, write_atomically

__all__ = ["compare_studies", "write_report"]


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
    from clipadapter.bench.report.build import build_report
    from clipadapter.bench.report.record_csv import format_csv
    from clipadapter.rendering.plots import PLOT_FORMATS, save_plots, set_title

    document = build_report(study, published)
    if title:
        document = replace(document, title=title)
        drawn = [plot.figure for section in document.sections for plot in section.plots]
        for figure in drawn:
            set_title(figure, title if len(drawn) == 1 else f"{title}: {figure.get_suptitle()}")
    reports, name = folder_without_links(folder, "reports"), study.suite.name
    names = document.plot_names()
    shown = next((kind for kind in ("png", "svg") if kind in plot_formats), plot_formats[0])
    texts = {
        "md": document.to_markdown({plot: f"{stem}.{shown}" for plot, stem in names.items()}),
        "csv": format_csv(study),
        "tex": document.to_latex(),
        "html": document.to_html(),
    }
    written = [write_atomically(reports / f"{name}.{ending}", text) for ending, text in texts.items()]
    for section in document.sections:
        for plot in section.plots:
            written += save_plots(plot.figure, reports / names[id(plot)], plot_formats)
    for old in reports.iterdir():
        if re.fullmatch(rf"{re.escape(name)}-\d+-[a-z]+\.({'|'.join(PLOT_FORMATS)})", old.name) and old not in written:
            old.unlink()
    return written
