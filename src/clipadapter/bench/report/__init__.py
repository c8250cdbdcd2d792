"""Reports of a study: one set of tables and plots, as Markdown, CSV, LaTeX and one HTML page."""

from __future__ import annotations

import re
from pathlib import Path

from clipadapter.bench.report.comparison import compare_heads, compare_studies
from clipadapter.bench.study import Study
from clipadapter.files import write_atomically

__all__ = ["compare_heads", "compare_studies", "write_report"]


def write_report(study: Study, folder: str | Path, published: bool = False) -> list[Path]:
    """Write ``reports/SUITE.md``, ``.csv``, ``.tex``, ``.html`` and the plots as PNG files, in place of older ones.

    Args:
        study: the records.
        folder: the folder of records; reports go to ``reports/`` in it.
        published: put published figures beside the measured ones, in a section of their own.

    Returns:
        What was written: the four, then the plots.

    Raises:
        InputError: if no record is there yet, or the folder can't be written.
    """
    from clipadapter.bench.plots import _save
    from clipadapter.bench.report.build import build
    from clipadapter.bench.report.html import html
    from clipadapter.bench.report.latex import latex
    from clipadapter.bench.report.markdown import markdown
    from clipadapter.bench.report.record_csv import stream_csv, table_csv

    document = build(study, published)
    place, name = Path(folder) / "reports", study.suite.name
    names = document.picture_names()
    texts = {
        "md": markdown(document, names),
        "csv": stream_csv(study) if study.suite.is_stream else table_csv(study),
        "tex": latex(document),
        "html": html(document),
    }
    written = [write_atomically(place / f"{name}.{ending}", text) for ending, text in texts.items()]
    for section in document.sections:
        written += [_save(picture.drawing, place / f"{names[id(picture)]}.png") for picture in section.pictures]
    for old in place.iterdir():
        if re.fullmatch(rf"{re.escape(name)}-\d+-[a-z]+\.png", old.name) and old not in written:
            old.unlink()
    return written
