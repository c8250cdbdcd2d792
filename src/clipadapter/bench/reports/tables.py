"""Figures by head and column, with what is needed to compare heads pair by pair. No text is made here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from clipadapter.bench.report import Cell, Metric
from clipadapter.bench.run import Run
from clipadapter.bench.statistics import Difference, paired_difference
from clipadapter.bench.study import Draw, Study
from clipadapter.bench.suite import ALL

Axis = Literal["shots", "test", "encoder"]
HARMONIC = "harmonic mean"


class Row(NamedTuple):
    """A head, with the text it was given if the suite has several."""

    label: str
    prompts: str


@dataclass(frozen=True)
class Figure:
    """One head in one column.

    Args:
        by_seed: the figure by seed.
        draws: accuracy by draw.
        failed: how many runs failed.
        missing: how many are not run yet.
        remark: what stands there in place of a figure.
    """

    by_seed: Mapping[int, float] = field(default_factory=dict)
    draws: Mapping[Draw, float] = field(default_factory=dict)
    failed: int = 0
    missing: int = 0
    remark: str = ""

    @property
    def cell(self) -> Cell:
        """The figure over the seeds."""
        return Cell(tuple(self.by_seed[seed] for seed in sorted(self.by_seed)), self.failed, self.missing)


@dataclass(frozen=True, eq=False)
class Table:
    """Heads by columns.

    Args:
        title: what it is about.
        fixed: what all its runs share: data set and others of the coordinates.
        axis: what the columns are.
        rows: heads.
        columns: shots, test parts or encoders.
        figures: by row and column.
        runs: the records, by row.
        metric: which figure.
        columns_run: the records, by column.
    """

    title: str
    fixed: Mapping[str, str | int]
    axis: Axis
    rows: tuple[Row, ...]
    columns: tuple[str | int, ...]
    figures: Mapping[tuple[Row, str | int], Figure]
    runs: Mapping[Row, Sequence[Run]]
    columns_run: Mapping[str | int, Sequence[Run]]
    metric: Metric = "accuracy"

    @property
    def all_runs(self) -> list[Run]:
        """The records, failed ones too."""
        return [run for runs in self.runs.values() for run in runs]

    def cell(self, row: Row, column: str | int) -> Cell:
        """The figure of a head in a column."""
        return self.figures[row, column].cell


def shots_text(n: int) -> str:
    """Such as "1 shot".

    >>> shots_text(1), shots_text(16)
    ('1 shot', '16 shots')
    """
    if n == ALL:
        return "all pictures"
    return f"{n} shot{'s' if n > 1 else ''}"


def reference_row(study: Study, table: Table) -> Row:
    """The head that the others of a table are compared with."""
    return next((row for row in table.rows if row.label == study.reference), table.rows[0])


def difference(table: Table, row: Row, reference: Row, columns: Sequence[str | int]) -> Difference | None:
    """How far a head is above the reference on the draws of some columns; None if they share none.

    Draws are resampled within a data set, an encoder, a test part and a number of shots.
    """
    ours = {draw: value for column in columns for draw, value in table.figures[row, column].draws.items()}
    theirs = {draw: value for column in columns for draw, value in table.figures[reference, column].draws.items()}
    if not ours.keys() & theirs.keys():
        return None
    return paired_difference(ours, theirs, group=lambda draw: draw[:4])
