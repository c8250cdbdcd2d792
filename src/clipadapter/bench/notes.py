"""Marks of heads in tables, and sentences on how the metrics of a table were measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench.pivot import HARMONIC, Pivot, format_shots
from clipadapter.bench.protocols import create_protocol, list_protocols
from clipadapter.bench.run import Run
from clipadapter.bench.statistics import difference_on_pictures
from clipadapter.heads import Fidelity, fidelity_of
from clipadapter.metrics.intervals import Z_95
from clipadapter.rendering.marks import NOT_AS_PUBLISHED, TRANSDUCTIVE
from clipadapter.utils.formatting import format_count

DEFAULTS = (
    "A head whose name says nothing else has the defaults of clipadapter, which may differ from the paper's: see "
    "`clipadapter heads NAME`."
)


def transductive_mark(runs: Iterable[Run]) -> str:
    """The mark of a head that is transductive, else ""."""
    return TRANSDUCTIVE if any(run.flags.transductive for run in runs) else ""


def fidelity_mark(runs: Iterable[Run]) -> str:
    """The mark of a head that is not the published method, else ""."""
    return "" if all(_fidelity(run).is_as_published for run in runs) else NOT_AS_PUBLISHED


def fidelity_notes(runs: Iterable[Run]) -> list[str]:
    """What the mark means, for each method that has it."""
    stated = dict.fromkeys((run.method, _fidelity(run)) for run in runs)
    return [f"{NOT_AS_PUBLISHED} {name}: {fidelity}" for name, fidelity in stated if not fidelity.is_as_published]


def _fidelity(run: Run) -> Fidelity:
    return fidelity_of(run.method, run.params)


def device_notes(runs: Iterable[Run]) -> list[str]:
    """Where heads computed, if not all on the CPU: records of several devices in one table are named as such."""
    counts = Counter(run.machine.device for run in runs)
    if len(counts) > 1:
        devices = "; ".join(f"{device} ({format_count(n, 'run')})" for device, n in sorted(counts.items()))
        return [
            f"Heads computed on several devices: {devices}. Metrics differ by rounding. Seconds are not comparable."
        ]
    return [f"Heads computed on {device}." for device in counts if device != "cpu"]


def measurement_notes(table: Pivot) -> tuple[str, ...]:
    """Notes on how all metrics of a table were measured."""
    runs = table.runs()
    kinds = describe_test_kinds(run.data.protocol for run in runs)
    sizes = {str(part): _size(table.runs(part=part)) for part in table.parts}
    by_part = "; ".join(f"{part} {text}" for part, text in sizes.items() if text)
    size = by_part if table.axis == "test" and len(set(sizes.values())) > 1 else _size(runs)
    transductive = f"{TRANSDUCTIVE} transductive: the head uses the unlabelled test pictures."
    return (
        seeds_note(runs),
        f"Test pictures: {size}.",
        f"Protocol: {'; '.join(kinds)}.",
        encoder_note(runs),
        *device_notes(runs),
        f"Templates: {_templates(table)}.",
        transductive if transductive_mark(runs) else "No head is transductive.",
        DEFAULTS,
        *fidelity_notes(runs),
        f"Libraries: {format_versions(runs)}.",
    )


def column_notes(table: Pivot) -> tuple[str, ...]:
    """Notes on the columns that are computed from others."""
    if HARMONIC not in table.derived:
        return ()
    return (
        "Harmonic mean: of the means of base and of new classes over the data sets, as in the papers; it is computed "
        "seed by seed, then averaged.",
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
        seeds_note(runs),
        encoder_note(runs),
        *device_notes(runs),
        f"Templates: {_some([f'“{template}”' for template in templates], 3) or 'not known'}.",
        f"Libraries: {format_versions(runs)}.",
    )


def seeds_note(runs: Iterable[Run]) -> str:
    """What a mean and its deviation are over."""
    seeds = sorted({run.seed for run in runs})
    spread = f"over {len(seeds)} seeds ({_some(map(str, seeds), 10)})"
    return f"Mean ± sample standard deviation {spread}." if len(seeds) > 1 else f"One seed ({seeds[0]})."


def encoder_note(runs: Iterable[Run]) -> str:
    """The encoders and their fingerprints."""
    encoders = dict.fromkeys((run.encoder.name, run.encoder.fingerprint[:12]) for run in runs)
    names = "; ".join(f"{name} (fingerprint {fingerprint or 'unknown'})" for name, fingerprint in encoders)
    return f"Encoder: {names}. The fingerprint covers the weights, the tokenizer and the preprocessing."


def _size(runs: Sequence[Run]) -> str:
    if not runs:
        return ""
    return f"{number_range(run.n_test for run in runs)} of {number_range(run.n_classes for run in runs)} classes"


def number_range(numbers: Iterable[int]) -> str:
    """Such as "40" or "40 to 60"."""
    values = sorted(set(numbers))
    return f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _templates(table: Pivot) -> str:
    texts: dict[str, dict[str, None]] = {}
    for row in table.rows:
        for run in table.runs(row):
            text = _some([f"“{template}”" for template in run.templates], 2) or "not known"
            texts.setdefault(row.prompts, {})[text] = None
    return "; ".join((f"{prompts}: " if prompts else "") + " or ".join(own) for prompts, own in texts.items())


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
    counts = Counter((name, run.error) for name, runs in runs_by_head.items() for run in runs if run.error is not None)
    return [
        f"{name} failed{f' {n} times' if n > 1 else ''}: {error.rstrip('.')}." for (name, error), n in counts.items()
    ]


def lead_notes(table: Pivot) -> list[str]:
    """How far the best head of each column is above the next, with the margin of error, as one note or none."""
    phrases = []
    for n in table.parts:
        correct: dict[str, dict[int, NDArray[np.bool_]]] = {}
        for row in table.rows:
            for spot in table.spots[row, n]:
                pictures = {run.seed: run.correct_pictures for run in spot.runs}
                if known := {seed: own for seed, own in pictures.items() if own is not None}:
                    correct[row.label] = known
        means = {row.label: table.cell(row, n).mean for row in table.rows if row.label in correct}
        ranked = sorted(means, key=lambda label: -means[label])[:2]  # noqa: B023
        difference = difference_on_pictures(correct[ranked[0]], correct[ranked[1]]) if len(ranked) > 1 else None
        if difference is not None:
            points, margin = 100 * difference[0], 100 * Z_95 * difference[1]
            phrases.append(f"{format_shots(int(n))}: {' - '.join(ranked)} {points:+.1f} ± {margin:.1f}")
    lead = "lead over the next head in points, with its 95 % margin of error on the same pictures and draws"
    return [f"{lead}: {'; '.join(phrases)}"] if phrases else []
