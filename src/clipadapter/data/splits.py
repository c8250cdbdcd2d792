"""The draw of the shots: row numbers by seed, the same for every head.

The draw is that of Dassl's `generate_fewshot_dataset`, which CoOp and its successors use: the same list and seed give
the shots of those papers. Classes are drawn in the order in which they first appear in the list. A class with fewer
pictures than shots gives all of them in list order, without a draw.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

from clipadapter.errors import DataError, InputError
from clipadapter.utils.formatting import format_list


def draw_shots(labels: Sequence[Hashable], shots: int, seed: int = 0, allow_fewer: bool = True) -> list[int]:
    """Draw the row numbers of the shots: by class in order of first appearance, within a class in order of the draw.

    Args:
        labels: class of each row.
        shots: number of rows per class.
        seed: of the random generator. The global random state is neither read nor changed.
        allow_fewer: whether a class with fewer rows gives all its rows; False: that is an error.

    Raises:
        InputError: if `shots` is below one or there are no labels.
        DataError: if classes are too small and `allow_fewer` is False.

    >>> draw_shots(["cat", "cat", "dog", "dog", "dog"], shots=1, seed=1)
    [0, 4]
    """
    return _draw(labels, shots, random.Random(seed), allow_fewer)


def draw_splits(
    train: Sequence[Hashable],
    val: Sequence[Hashable],
    shots: int,
    seed: int = 0,
    val_shots: int | None = None,
) -> tuple[list[int], list[int]]:
    """Draw the shots, then the validation shots, from one random generator, as CoOp does.

    Args:
        train: class of each training row.
        val: class of each validation row.
        shots: number of training rows per class.
        seed: of the random generator.
        val_shots: number of validation rows per class; None: the smaller of `shots` and 4.

    Raises:
        InputError: if a count is below one or there are no labels.
    """
    rng = random.Random(seed)
    rows = _draw(train, shots, rng, allow_fewer=True)
    return rows, _draw(val, min(shots, 4) if val_shots is None else val_shots, rng, allow_fewer=True)


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
    rows: dict[Hashable, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    test: set[int] = set()
    for group in rows.values():
        test.update(rng.sample(group, min(max(1, round(fraction * len(group))), len(group) - 1)))
    return [row for row in range(len(labels)) if row not in test], sorted(test)


def _draw(labels: Sequence[Hashable], shots: int, rng: random.Random, allow_fewer: bool) -> list[int]:
    if shots < 1:
        raise InputError(f"shots must be at least 1, got {shots}")
    if not len(labels):
        raise InputError("there are no labels to draw shots from")
    rows: dict[Hashable, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    small_classes = [f"'{label}' ({len(group)})" for label, group in rows.items() if len(group) < shots]
    if small_classes and not allow_fewer:
        n_small, names = len(small_classes), format_list(small_classes)
        raise DataError(f"{n_small} of {len(rows)} classes have fewer than {shots} pictures: {names}")
    groups = rows.values()
    return [row for group in groups for row in (rng.sample(group, shots) if len(group) >= shots else group)]
