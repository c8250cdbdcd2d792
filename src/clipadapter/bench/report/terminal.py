"""The tables with which ``bench run`` ends, as text and as JSON."""

from __future__ import annotations

from typing import Any

from clipadapter.bench.continual.summary import CONTINUAL_METRICS, METRIC_DEFINITIONS, stream_grid
from clipadapter.bench.grids import measured_grid
from clipadapter.bench.notes import column_notes, failure_messages, fidelity_notes, seeds_note, transductive_mark
from clipadapter.bench.pivot import format_shots, make_mean_tables, make_spot, make_tables
from clipadapter.bench.report.streams import JOINT, group_streams
from clipadapter.bench.study import Study
from clipadapter.rendering.marks import BEST, TRANSDUCTIVE


def study_text(study: Study) -> str:
    """The accuracy of each head, or the metrics of each stream, with what the marks mean below."""
    runs, parts, notes = study.runs, [], []
    if study.suite.is_stream:
        for setting, heads in group_streams(study).items():
            title = f"{setting.data}, {format_shots(setting.shots)}, tasks {setting.test}"
            parts.append(f"{title}\n{stream_grid(heads).to_text()}")
            notes += failure_messages({head.label: head.runs for head in heads})
        notes = [f"In %; {BEST}: best.", *METRIC_DEFINITIONS, JOINT.replace(" is bold", f" has {BEST}"), *notes]
    else:
        tables = make_tables(study)
        for table in (*make_mean_tables(tables), *tables):
            grid = measured_grid(table)
            parts.append(f"{grid.title}\n{grid.to_text()}")
        best = f"Accuracy in %; {BEST}: best of a column"
        marked = f", of the heads without {TRANSDUCTIVE}, which use the unlabelled test pictures"
        notes = [best + (marked if transductive_mark(runs) else "") + "."]
        notes += [*dict.fromkeys(note for table in tables for note in column_notes(table)), *study.failures()]
    return "\n\n".join([*parts, "\n".join([notes[0], seeds_note(runs), *notes[1:], *fidelity_notes(runs)])])


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
    cells = {setting: make_spot(study, setting).cell() for setting in study.settings}
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
