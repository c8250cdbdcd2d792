"""The plan of a suite: its records, before they are made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from clipadapter.bench.bundle import count_epochs
from clipadapter.bench.run import FrozenModel
from clipadapter.bench.suite import Suite, make_head
from clipadapter.bench.suite_files import missing_study, plan_file
from clipadapter.data import draw_shots
from clipadapter.errors import DataError
from clipadapter.features import PerEpochViews, ViewSpec
from clipadapter.utils.files import write_atomically

Rows = Mapping[tuple[int, int], Sequence[int]]
"""Rows of a data set by (shots, seed)."""


class Entry(FrozenModel):
    """One planned record of a suite."""

    key: str  # of the record
    label: str  # the suite's name for the head
    prompts: str = ""  # the suite's name for the prompts; empty if there is one kind
    data: str  # the data set that gives the shots, as the user named it
    encoder: str  # likewise
    test: str  # name of the test part; for a stream the order of its tasks
    shots: int
    seed: int
    value: float | str | None = None  # of the parameter that varies, if one does


class Plan(FrozenModel):
    """All planned records of a suite, as ``plans/SUITE.json``."""

    suite: Suite
    entries: list[Entry]

    def save(self, folder: Path) -> Path:
        """Write the plan to the folder of records."""
        return write_atomically(plan_file(folder, self.suite.name), self.model_dump_json(indent=1) + "\n")

    def with_earlier_entries(self, folder: Path) -> Plan:
        """The plan with the entries of earlier calls: other data, other encoders, other shots.

        Entries with other views of the pictures are left out: they belong to another study.
        """
        earlier = load_plan(folder, self.suite.name, missing_ok=True)
        known = {entry.key for entry in self.entries}
        if earlier is None or (earlier.suite.views, earlier.suite.crop) != (self.suite.views, self.suite.crop):
            return self
        return Plan(suite=self.suite, entries=[*self.entries, *(e for e in earlier.entries if e.key not in known)])


def load_plan(folder: Path, name: str, missing_ok: bool = False) -> Plan | None:
    """Read a plan; with ``missing_ok`` None if there is none."""
    path = plan_file(folder, name)
    try:
        return Plan.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        if missing_ok:
            return None
        raise missing_study(folder, name) from error
    except (OSError, ValidationError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}; delete it and run the suite again") from error


def draw_all_shots(suite: Suite, labels: Sequence[str]) -> dict[tuple[int, int], list[int]]:
    """Draw the rows of a suite, by (shots, seed), from the labels of all rows of the data set."""
    return {(n, seed): draw_shots(labels, n, seed) for n in suite.shots for seed in suite.seeds}


def plan_views(suite: Suite, draws: Iterable[Sequence[str]], text_shape: tuple[int, int] | None = None) -> ViewSpec:
    """The views of each picture for a suite; with "per-epoch" as many as the head with the most epochs needs.

    ``draws`` are the labels of the shots of each draw. Without the shape (c, d) of the class text there are as many
    views as a head needs at most.
    """
    if isinstance(suite.views, int):
        return ViewSpec.from_crop(suite.crop, count=suite.views)
    heads = [make_head(variant) for variant in suite.all_variants()]
    epochs = max(count_epochs(head, labels, text_shape) for labels in draws for head in heads)
    return PerEpochViews(ViewSpec.from_crop(suite.crop)).for_epochs(epochs)
