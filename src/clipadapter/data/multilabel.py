"""Pictures with several labels: as zeros and ones, and which of them are the shots."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from clipadapter.data.dataset import format_list
from clipadapter.errors import DataError, InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def label_matrix(label_sets: Sequence[Collection[str]], class_names: Sequence[str]) -> NDArray[np.int8]:
    """Zeros and ones (n, c): which classes each picture has.

    Raises:
        DataError: if a label is no class, or a picture's labels are one text instead of several names.

    >>> label_matrix([("cat", "dog"), ()], ["cat", "dog"])
    array([[1, 1],
           [0, 0]], dtype=int8)
    """
    import numpy as np

    position = {name: k for k, name in enumerate(class_names)}
    found = np.zeros((len(label_sets), len(class_names)), dtype=np.int8)
    for i, names in enumerate(label_sets):
        if isinstance(names, str):
            raise DataError(f"the labels of picture {i} are the text {names!r}: give several names, such as ['cat']")
        unknown = [name for name in names if name not in position]
        if unknown:
            raise DataError(
                f"picture {i} has labels that are no class: {format_list(unknown)}; known: {format_list(class_names)}"
            )
        found[i, [position[name] for name in names]] = 1
    return found


def draw_multilabel_shots(label_sets: Sequence[Collection[str]], shots: int, seed: int = 0) -> list[int]:
    """Row numbers of pictures such that every class has as many shots, or all it has; common classes may get more.

    Classes are gone through from the rarest on, and each draws what those before it have not brought along. Of pictures
    without any label as many come besides as are their share of all: what no class is, is to be seen too.

    Args:
        label_sets: class names of each row.
        shots: how many rows of each class.
        seed: of a stream of its own; global random state is neither read nor changed.

    Raises:
        InputError: if `shots` is below one, or no row has a label.

    >>> draw_multilabel_shots([("cat", "dog"), ("dog",), ("dog",), ("cat",)], shots=1, seed=1)
    [0]
    """
    if shots < 1:
        raise InputError(f"shots must be at least 1, got {shots}")
    rows: dict[str, list[int]] = {}
    for row, names in enumerate(label_sets):
        for name in dict.fromkeys(names):
            rows.setdefault(name, []).append(row)
    if not rows:
        raise InputError("no picture has a label to draw shots of")
    stream, taken = random.Random(seed), dict[int, None]()
    for name in sorted(rows, key=lambda name: (len(rows[name]), name)):
        missing = shots - sum(row in taken for row in rows[name])
        rest = [row for row in rows[name] if row not in taken]
        if missing > 0:
            taken.update(dict.fromkeys(stream.sample(rest, min(missing, len(rest)))))
    empty = [row for row, names in enumerate(label_sets) if not names]
    labelled = len(label_sets) - len(empty)
    return sorted([*taken, *stream.sample(empty, round(len(taken) * len(empty) / labelled))])
