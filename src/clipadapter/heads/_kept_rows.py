"""Which of the rows that a head keeps are meant by features that come again."""

from __future__ import annotations

import torch
from torch import Tensor

from clipadapter.errors import InputError

SAME = 2e-3
"""Distance between two features of one picture at unit length: what the rounding of backends leaves between them."""


def without(rows: Tensor, labels: Tensor, gone: Tensor, of: Tensor) -> Tensor:
    """Places (k,) of the rows that stay when some are taken out; of equal rows one goes for each that is named.

    Args:
        rows: (n, d) unit rows that are kept.
        labels: (n,) their classes.
        gone: (m, d) unit rows to take out.
        of: (m,) their classes.

    Raises:
        InputError: if one is not among those that are kept.

    >>> rows, labels = torch.eye(3), torch.tensor([0, 0, 1])
    >>> without(rows, labels, rows[1:2], labels[1:2])
    tensor([0, 2])
    """
    likeness = gone.to(rows.dtype) @ rows.T
    likeness[of[:, None] != labels] = -torch.inf
    found: list[int] = []
    for row, like in zip(gone, likeness, strict=True):
        like[found] = -torch.inf
        nearest = int(like.argmax())
        if like[nearest] == -torch.inf or (rows[nearest] - row).norm() > SAME:
            raise InputError(
                "a shot that is to be taken out was not learned as one of its class: give the features and the label "
                "that it was learned with"
            )
        found.append(nearest)
    stay = torch.ones(len(rows), dtype=torch.bool)
    stay[found] = False
    return torch.nonzero(stay).flatten()
