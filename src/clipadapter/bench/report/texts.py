"""Texts of reports: cells, marks of heads, and notes on how metrics were measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from clipadapter.bench.protocols import create_protocol, list_protocols
from clipadapter.bench.report.tables import Row, Table
from clipadapter.bench.run import Run
from clipadapter.bench.statistics import Difference
from clipadapter.bench.summary import Cell, Metric, device_notes, fidelity_mark, fidelity_notes, format_metric
from clipadapter.formatting import shorten_name
from clipadapter.rendering.marks import TRANSDUCTIVE

DEFAULTS = (
    "A head whose name says nothing else has the defaults of clipadapter, which may differ from the paper's: see "
    "`clipadapter heads NAME`."
)


def format_cell(cell: Cell, metric: Metric) -> str:
    """Mean ± sd, and the number of runs if some are missing.

    >>> format_cell(Cell((0.5, 0.7)), "accuracy"), format_cell(Cell((0.5, 0.7), failed=1), "accuracy")
    ('60.0 ± 14.1', '60.0 ± 14.1 (2 of 3)')
    >>> format_cell(Cell((0.5,)), "accuracy"), format_cell(Cell((), missing=3), "accuracy")
    ('50.0', 'not run yet')
    """
    n_done = len(cell.values)
    if not n_done:
        return "failed" if cell.failed else "not run yet" if cell.missing else "-"
    spread = f" ± {format_metric(cell.sd, metric)}" if n_done > 1 else ""
    planned = n_done + cell.failed + cell.missing
    return format_metric(cell.mean, metric) + spread + (f" ({n_done} of {planned})" if planned > n_done else "")


def format_difference(difference: Difference | None) -> str:
    """A difference in points with its interval.

    >>> format_difference(Difference(0.012, (0.003, 0.021), 0.99, 5, 1, 0))
    '+1.2 [+0.3, +2.1]'
    >>> format_difference(Difference(-0.012, None, None, 2, 1, 0)), format_difference(None)
    ('-1.2 (2 draws)', 'no common draw')
    """
    if difference is None:
        return "no common draw"
    if difference.interval is None:
        return f"{format_points(difference.mean)} ({difference.pairs} draw{'s' if difference.pairs > 1 else ''})"
    low, high = map(format_points, difference.interval)
    return f"{format_points(difference.mean)} [{low}, {high}]"


def format_points(difference: float) -> str:
    """A difference of shares in points of a per cent, without a negative zero.

    >>> format_points(0.0123), format_points(-0.0001)
    ('+1.2', '+0.0')
    """
    return f"{round(100 * difference, 1) + 0.0:+.1f}"


def format_head(row: Row, runs: Sequence[Run]) -> str:
    """A head's name with its prompts and marks."""
    name = f"{row.label} · {row.prompts}" if row.prompts else row.label
    return f"{shorten_name(name)} {transductive_mark(runs)}{fidelity_mark({run.method for run in runs})}".rstrip()


def transductive_mark(runs: Iterable[Run]) -> str:
    """The mark of a head that is transductive, else ""."""
    return TRANSDUCTIVE if any(run.flags.transductive for run in runs) else ""


def measurement_notes(table: Table) -> tuple[str, ...]:
    """Notes on how all metrics of a table were measured."""
    runs = table.all_runs
    kinds = describe_test_kinds(run.data.protocol for run in runs)
    return (
        _seeds_text(runs),
        f"Test pictures: {_sizes(table)}.",
        f"Protocol: {'; '.join(kinds)}.",
        _encoder_text(runs),
        *device_notes(runs),
        f"Templates: {_templates(table)}.",
        _transductive_note(table),
        DEFAULTS,
        *fidelity_notes(run.method for run in runs),
        f"Libraries: {format_versions(runs)}.",
    )


def describe_test_kinds(kinds: Iterable[str]) -> list[str]:
    """A text on each kind of test part that records name in `RunData.protocol`."""
    texts: dict[str, str] = {}
    # Few-shot first, so that a separate test part is explained before others.
    for name in sorted(list_protocols(), key=lambda name: (name != "few-shot", name)):
        texts = {**texts, **create_protocol(name).test_kinds}
    known_kinds = set(kinds)
    return [text for kind, text in texts.items() if kind in known_kinds]


def stream_notes(runs: Sequence[Run]) -> tuple[str, ...]:
    """Notes on how the metrics of streams were measured."""
    templates = dict.fromkeys(template for run in runs for template in run.templates)
    return (
        _seeds_text(runs),
        _encoder_text(runs),
        *device_notes(runs),
        f"Templates: {_some([f'“{template}”' for template in templates], 3) or 'not known'}.",
        f"Libraries: {format_versions(runs)}.",
    )


def _seeds_text(runs: Sequence[Run]) -> str:
    seeds = sorted({run.seed for run in runs})
    spread = f"over {len(seeds)} seeds ({_some(map(str, seeds), 10)})"
    return f"Mean ± sample standard deviation {spread}." if len(seeds) > 1 else f"One seed ({seeds[0]})."


def _encoder_text(runs: Sequence[Run]) -> str:
    return f"Encoder: {_encoders(runs)}. The fingerprint covers the weights, the tokenizer and the preprocessing."


def _sizes(table: Table) -> str:
    counts = {}
    for column in table.columns:
        counts[str(column)] = _size(table.runs_by_column[column])
    if len(set(counts.values())) == 1 or table.axis != "test":
        return _size(table.all_runs)
    return "; ".join(f"{column} {text}" for column, text in counts.items() if text and _is_part(table, column))


def _is_part(table: Table, column: str) -> bool:
    return not column.startswith(("harmonic mean", "mean of the "))


def _size(runs: Sequence[Run]) -> str:
    if not runs:
        return ""
    return f"{_range(run.n_test for run in runs)} of {_range(run.n_classes for run in runs)} classes"


def _range(numbers: Iterable[int]) -> str:
    values = sorted(set(numbers))
    return f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _encoders(runs: Sequence[Run]) -> str:
    encoders = dict.fromkeys((run.encoder.name, run.encoder.fingerprint[:12]) for run in runs)
    return "; ".join(f"{name} (fingerprint {fingerprint or 'unknown'})" for name, fingerprint in encoders)


def _templates(table: Table) -> str:
    texts_by_prompts: dict[str, dict[str, None]] = {}
    for row, runs in table.runs.items():
        for run in runs:
            texts_by_prompts.setdefault(row.prompts, {})[_some([f"“{t}”" for t in run.templates], 2) or "not known"] = (
                None
            )
    return "; ".join(
        (f"{prompts}: " if prompts else "") + " or ".join(texts) for prompts, texts in texts_by_prompts.items()
    )


def _transductive_note(table: Table) -> str:
    if transductive_mark(table.all_runs):
        return f"{TRANSDUCTIVE} transductive: the head uses the unlabelled test pictures."
    return "No head is transductive."


def format_versions(runs: Iterable[Run]) -> str:
    """Versions of the libraries and hashes of the code; the most frequent ones first."""
    counts = Counter((tuple(run.versions.items()), run.code[:12]) for run in runs)
    return "; or ".join(
        ", ".join([*(f"{name} {version}" for name, version in versions), f"code {code}"])
        for (versions, code), _ in counts.most_common()
    )


def _some(texts: Iterable[str], limit: int) -> str:
    items = list(texts)
    suffix = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + suffix


def failure_messages(runs_by_head: Mapping[str, Sequence[Run]]) -> list[str]:
    """Why heads failed, one sentence per head and reason."""
    counts: Counter[tuple[str, str]] = Counter()
    for name, runs in runs_by_head.items():
        counts.update((name, run.error) for run in runs if run.error is not None)
    return [
        f"{name} failed{f' {n} times' if n > 1 else ''}: {error.rstrip('.')}." for (name, error), n in counts.items()
    ]
