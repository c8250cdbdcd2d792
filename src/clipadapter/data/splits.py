"""The draw of the shots: row numbers by seed, the same for every head.

The draw is that of Dassl's `generate_fewshot_dataset`, which CoOp and its successors use: the same list and seed give
the shots of those papers. Classes are drawn in the order in which they first appear in the list. A class with fewer
pictures than shots gives all of them in list order, without a draw.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

from clipadapter.errors import InputError


def draw_shots(labels: Sequence[Hashable], shots: int, seed: int = 0) -> list[int]:
    """Draw the row numbers of the shots: by class in order of first appearance, within a class in order of the draw.

    Args:
        labels: class of each row.
        shots: number of rows per class.
        seed: of the random generator. The global random state is neither read nor changed.

    Raises:
        InputError: if `shots` is below one or there are no labels.

    >>> draw_shots(["cat", "cat", "dog", "dog", "dog"], shots=1, seed=1)
    [0, 4]
    """
    if shots < 1:
        raise InputError(f"shots must be at least 1, got {shots}")
    if not len(labels):
        raise InputError("there are no labels to draw shots from")
    rng = random.Random(seed)
    groups = _rows_by_label(labels).values()
    return [row for group in groups for row in (rng.sample(group, shots) if len(group) >= shots else group)]


def hold_back(labels: Sequence[Hashable], fraction: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Divide rows into those to learn from and test rows: of each class this share, at least one if it has two rows.

    Args:
        labels: class of each row.
        fraction: share of the test rows, between 0 and 1.
        seed: of the random generator.

    Returns:
        Rows to learn from, of which each class has one or more, and test rows; both in ascending order.

    >>> hold_back(["cat", "cat", "cat", "dog", "dog", "cow"], 0.3)
    ([0, 2, 3, 5], [1, 4])
    """
    rng = random.Random(seed)
    test: set[int] = set()
    for group in _rows_by_label(labels).values():
        test.update(rng.sample(group, min(max(1, round(fraction * len(group))), len(group) - 1)))
    return [row for row in range(len(labels)) if row not in test], sorted(test)


def _rows_by_label(labels: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    rows: dict[Hashable, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    return rows
