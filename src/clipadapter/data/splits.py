"""The draw of the shots: row numbers by seed, the same for every head; and the targets of multi-label data.

The draw is that of Dassl's `generate_fewshot_dataset`, which CoOp and its successors use: the same list and seed give
the shots of those papers. Classes are drawn in the order in which they first appear in the list. A class with fewer
pictures than shots gives all of them in list order, without a draw.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from clipadapter.errors import DataError, InputError, brief
from clipadapter.utils.formatting import format_list

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


LabelT = TypeVar("LabelT", bound=Hashable)


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
    groups = _rows_by_label([label] for label in labels).values()
    return [row for group in groups for row in (rng.sample(group, shots) if len(group) >= shots else group)]


def hold_back(labels: Sequence[Hashable], fraction: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Divide rows into those to learn from and test rows, of each class this share, at least one if it has two rows.

    >>> hold_back(["cat", "cat", "cat", "dog", "dog", "cow"], 0.3)
    ([0, 2, 3, 5], [1, 4])
    """
    rng = random.Random(seed)
    test: set[int] = set()
    for group in _rows_by_label([label] for label in labels).values():
        test.update(rng.sample(group, min(max(1, round(fraction * len(group))), len(group) - 1)))
    return [row for row in range(len(labels)) if row not in test], sorted(test)


def label_matrix(label_sets: Sequence[Collection[str]], class_names: Sequence[str]) -> NDArray[np.int8]:
    """Make the target matrix (n, c) of zeros and ones: which classes each picture has.

    Raises:
        DataError: if a label is not a class, or a picture's labels are one string instead of a list of names.

    >>> label_matrix([("cat", "dog"), ()], ["cat", "dog"])
    array([[1, 1],
           [0, 0]], dtype=int8)
    """
    import numpy as np

    position = {name: k for k, name in enumerate(class_names)}
    matrix = np.zeros((len(label_sets), len(class_names)), dtype=np.int8)
    for i, names in enumerate(label_sets):
        if isinstance(names, str):
            raise DataError(f"the labels of picture {i} are the string {brief(names)}: give a list, such as ['cat']")
        if unknown := [name for name in names if name not in position]:
            raise DataError(
                f"picture {i} has labels that are no classes: {format_list(unknown)}; known: {format_list(class_names)}"
            )
        matrix[i, [position[name] for name in names]] = 1
    return matrix


def draw_multilabel_shots(label_sets: Sequence[Collection[str]], shots: int, seed: int = 0) -> list[int]:
    """Draw row numbers such that every class has at least ``shots`` pictures, or all that it has.

    Classes are drawn in ascending order of frequency, and each draws only the shots that it still lacks. Pictures
    without a label are drawn in addition, in proportion to their share of all pictures, as examples of none of the
    classes.

    Args:
        label_sets: class names of each row.
        shots: number of rows per class.
        seed: of the random generator. The global random state is neither read nor changed.

    Raises:
        InputError: if `shots` is below one, or no row has a label.

    >>> draw_multilabel_shots([("cat", "dog"), ("dog",), ("dog",), ("cat",)], shots=1, seed=1)
    [0]
    """
    if shots < 1:
        raise InputError(f"shots must be at least 1, got {shots}")
    rows = _rows_by_label(map(dict.fromkeys, label_sets))
    if not rows:
        raise InputError("no picture has a label, so no shots can be drawn")
    rng, drawn = random.Random(seed), dict[int, None]()
    for name in sorted(rows, key=lambda name: (len(rows[name]), name)):
        missing = shots - sum(row in drawn for row in rows[name])
        candidates = [row for row in rows[name] if row not in drawn]
        if missing > 0:
            drawn.update(dict.fromkeys(rng.sample(candidates, min(missing, len(candidates)))))
    empty = [row for row, names in enumerate(label_sets) if not names]
    labelled = len(label_sets) - len(empty)
    return sorted([*drawn, *rng.sample(empty, round(len(drawn) * len(empty) / labelled))])


def _rows_by_label(label_sets: Iterable[Iterable[LabelT]]) -> dict[LabelT, list[int]]:
    rows: dict[LabelT, list[int]] = {}
    for row, labels in enumerate(label_sets):
        for label in labels:
            rows.setdefault(label, []).append(row)
    return rows
