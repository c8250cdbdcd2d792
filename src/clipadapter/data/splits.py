"""Which pictures are the shots: row numbers by seed, the same for every head.

The draw is that of Dassl's `generate_fewshot_dataset`, which CoOp and its successors use, so that the same
list and seed give the shots of those papers. Classes are visited in the order in which they first appear in
the list; a class with fewer pictures than shots is taken whole, in list order, without drawing.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

from clipadapter.data.dataset import format_list
from clipadapter.errors import DataError, InputError


def draw_shots(labels: Sequence[Hashable], shots: int, seed: int = 0, allow_fewer: bool = True) -> list[int]:
    """Row numbers of the shots, class after class in order of first appearance, in each in order of drawing.

    Args:
        labels: class of each row.
        shots: how many rows a class.
        seed: of a stream of its own; global random state is neither read nor changed.
        allow_fewer: a class with fewer rows gives all it has; if False that is an error.

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
    """Rows of the shots and of the validation shots, drawn one after the other from one stream, as CoOp does.

    Args:
        train: class of each training row.
        val: class of each validation row.
        shots: how many training rows a class.
        seed: of the stream.
        val_shots: how many validation rows a class, by default the smaller of `shots` and 4.

    Raises:
        InputError: if a count is below one or there are no labels.
    """
    stream = random.Random(seed)
    rows = _draw(train, shots, stream, allow_fewer=True)
    return rows, _draw(val, min(shots, 4) if val_shots is None else val_shots, stream, allow_fewer=True)


def _draw(labels: Sequence[Hashable], shots: int, stream: random.Random, allow_fewer: bool) -> list[int]:
    if shots < 1:
        raise InputError(f"shots must be at least 1, got {shots}")
    if not len(labels):
        raise InputError("there are no labels to draw shots from")
    rows: dict[Hashable, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    small = [f"'{label}' ({len(group)})" for label, group in rows.items() if len(group) < shots]
    if small and not allow_fewer:
        raise DataError(f"{len(small)} of {len(rows)} classes have fewer than {shots} pictures: {format_list(small)}")
    return [row for group in rows.values() for row in (stream.sample(group, shots) if len(group) >= shots else group)]
