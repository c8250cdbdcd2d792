"""Compares two folders of records cell by cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from clipadapter.bench.grids import INTERVAL, format_cell, format_difference
from clipadapter.bench.run import Run
from clipadapter.bench.statistics import paired_difference
from clipadapter.bench.study import Setting, Study
from clipadapter.metrics import METRICS
from clipadapter.rendering.tables import markdown_table
from clipadapter.utils.formatting import shorten_name

HEADER = ("head", "data", "encoder", "test", "shots")
PAIRING_NOTE = "Two runs are compared if they were fitted to the same rows."


def compare_studies(a: Study, b: Study) -> str:
    """Compare two folders of records, as a Markdown text.

    For each head, data set, encoder, test part and number of shots of both there is the accuracy of both, and the
    difference ``b - a`` on the same draws. The settings that differ are below the table.

    Args:
        a: the first folder, such as before a change.
        b: the second folder.
    """
    names = [f"'{study.suite.name}'" for study in (a, b)]
    title = f"# Suite {names[0]}, first and second folder"
    if names[0] != names[1]:
        title = f"# Suite {names[0]} (first) and suite {names[1]} (second)"
    first, second = ({setting for setting, spot in study.spots.items() if spot.runs} for study in (a, b))
    shared = [setting for setting in a.spots if setting in first & second]
    only = [len(first - second), len(second - first)]
    if not shared:
        return (
            f"{title}\n\nNo head on the same data, encoder, test part and shots is in both: the first has {only[0]} "
            f"such cells, the second {only[1]}.\n"
        )
    rows = [_row(setting, a, b) for setting in shared]
    header = (*HEADER, "first", "second", "second - first")
    parts = [title, markdown_table(header, rows, range(4)), f"Accuracy in %. {PAIRING_NOTE} {INTERVAL}", _counts(only)]
    return "\n\n".join([part for part in parts if part] + _settings(a, b, shared)) + "\n"


def _row(setting: Setting, first: Study, second: Study) -> list[str]:
    a, b = (
        {
            (run.seed, tuple(run.rows)): run.metrics.accuracy
            for run in study.spots[setting].runs
            if run.metrics is not None
        }
        for study in (first, second)
    )
    difference = paired_difference(b, a) if a.keys() & b.keys() else None
    name = f"{setting.label} · {setting.prompts}" if setting.prompts else setting.label
    return [
        shorten_name(name),
        shorten_name(setting.data),
        shorten_name(setting.encoder),
        setting.test,
        str(setting.shots),
        *(format_cell(study.spots[setting].cell(), METRICS["accuracy"].format) for study in (first, second)),
        format_difference(difference),
    ]


def _counts(only: Sequence[int]) -> str:
    sentences = [
        f"{n} cells are in the {name} folder only" for n, name in zip(only, ("first", "second"), strict=True) if n
    ]
    return f"{' and '.join(sentences)}." if sentences else ""


def _settings(a: Study, b: Study, shared: Sequence[Setting]) -> list[str]:
    """The settings that differ in the shared cells; each change once, with the number of its pairs of runs."""
    changes: Counter[str] = Counter()
    pairs = 0
    for setting in shared:
        runs_of_b = {run.seed: run for run in b.spots[setting].runs}
        for run in a.spots[setting].runs:
            if run.seed in runs_of_b:
                pairs += 1
                changes.update(_changes(setting.label, run, runs_of_b[run.seed]))
    if not changes:
        return ["All settings are the same: encoder, code, versions, templates, class text, data, parameters."]
    lines = "\n".join(
        f"- {change}" + ("" if n == pairs else f" ({n} of {pairs} runs)") for change, n in changes.items()
    )
    return ["Settings that differ, first to second:", lines]


def _changes(label: str, a: Run, b: Run) -> Iterator[str]:
    before, after = _facts(label, a), _facts(label, b)
    for name in dict.fromkeys([*before, *after]):
        if before.get(name, "none") != after.get(name, "none"):
            yield f"{name}: {before.get(name, 'none')} to {after.get(name, 'none')}"
    if a.text != b.text:
        yield "class text: other embeddings"
    if a.data.digest != b.data.digest:
        yield "data: other features or labels"
    if a.rows != b.rows:
        yield "rows: other shots were drawn"


def _facts(label: str, run: Run) -> dict[str, str]:
    return {
        "encoder": run.encoder.name,
        "encoder fingerprint": run.encoder.fingerprint[:12],
        "code": run.code[:12],
        "templates": _quoted(run),
        "platform": run.machine.platform,
        "device of the head": run.machine.device,
        **{f"version of {name}": number for name, number in sorted(run.versions.items())},
        **{f"{name} of {label}": str(value) for name, value in sorted(run.params.items())},
    }


def _quoted(run: Run) -> str:
    return ", ".join(f"“{template}”" for template in run.templates[:2]) + (" ..." if len(run.templates) > 2 else "")
