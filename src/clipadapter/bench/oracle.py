"""What choosing on the test part would have given: the sin of many papers, done openly and marked in every table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clipadapter.bench.plan import Entry
from clipadapter.bench.run import Run
from clipadapter.bench.suite import Suite


def oracle_runs(suite: Suite, entries: Sequence[Entry], runs: Mapping[str, Run]) -> list[tuple[Entry, Run]]:
    """For each parameter that a suite varies, and each draw, the run of the value that was best on the test part.

    Args:
        suite: the study.
        entries: what it asked for.
        runs: records by key; what is missing or failed is left out.

    Returns:
        Copies of these records, with ``flags.oracle`` and a label that says so, and their entries.
    """
    names = {one.head: one.parameter for one in suite.vary}
    groups: dict[tuple[object, ...], list[tuple[Entry, Run]]] = {}
    for entry in entries:
        run = runs.get(entry.key)
        if entry.value is None or run is None or run.metrics is None:
            continue
        place = (entry.data, entry.encoder, entry.prompts, entry.test, run.method, run.shots, run.seed)
        groups.setdefault(place, []).append((entry, run))
    found = []
    for group in groups.values():
        entry, run = max(group, key=lambda pair: pair[1].metrics.accuracy if pair[1].metrics else 0.0)
        label = f"{names[run.method]} chosen on the test part"
        flags = run.flags.model_copy(update={"oracle": True})
        copy = run.model_copy(update={"head": label, "flags": flags})
        found.append((entry.model_copy(update={"key": copy.key, "label": label, "value": None}), copy))
    return found
