"""The tables with which ``bench run`` ends, as text and as JSON."""

from __future__ import annotations

from typing import Any

from clipadapter.bench.continual.summary import CONTINUAL_METRICS, stream_text
from clipadapter.bench.grids import measured_grid
from clipadapter.bench.notes import column_notes, fidelity_notes, seeds_note, transductive_mark
from clipadapter.bench.pivot import format_shots, make_mean_tables, make_tables
from clipadapter.bench.report.streams import group_streams
from clipadapter.bench.study import Study
from clipadapter.rendering.marks import BEST, TRANSDUCTIVE


def study_text(study: Study) -> str:
    """The accuracy of each head, or the metrics of each stream, with what the marks mean below."""
    if study.suite.is_stream:
        return stream_text(
            {
                f"{setting.data}, {format_shots(setting.shots)}, tasks {setting.test}": heads
                for setting, heads in group_streams(study).items()
            }
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
    if study.suite.is_stream:
        streams = [
            {
                **{"data": setting.data, "order": setting.test, "shots": setting.shots, "head": head.label},
                "learns": head.learns,
                **{name: cell.mean if (cell := head.cell(name)).values else None for name in CONTINUAL_METRICS},
            }
            for setting, heads in group_streams(study).items()
            for head in heads
        ]
        return {"streams": streams}
    cells = {setting: spot.cell() for setting, spot in study.spots.items()}
    rows = [
        {
            **setting._asdict(),
            "accuracy": cell.mean if cell.values else None,
            "sd": cell.known_sd,
            "seeds": len(cell.values),
            "failed": cell.failed,
        }
        for setting, cell in cells.items()
    ]
    return {"rows": rows}
