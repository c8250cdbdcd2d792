"""Held-out shots: how heads choose a parameter without a validation set."""

from __future__ import annotations

import torch
from torch import Tensor


def held_out_folds(labels: Tensor, folds: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Stratified folds over the shots, in which every class always keeps a shot to train on.

    A class with one shot is never held out; a class with fewer shots than folds is held out in some of them.

    Args:
        labels: (n,) class positions.
        folds: number of folds wished, 2 or more; fewer come back if no class has so many shots.
        seed: of the random assignment.

    Returns:
        (training rows, held-out rows) of each fold, empty if every class has a single shot.

    >>> [(len(train), len(held)) for train, held in held_out_folds(torch.tensor([0, 0, 0, 0, 1, 1, 2]), 2)]
    [(4, 3), (4, 3)]
    """
    generator = torch.Generator().manual_seed(seed)
    fold = torch.full_like(labels, -1)
    for offset, label in enumerate(labels.unique()):
        rows = torch.nonzero(labels == label).flatten()
        if len(rows) > 1:
            order = rows[torch.randperm(len(rows), generator=generator)]
            # The offset spreads the classes' first rows over the folds, so that folds stay of one size.
            fold[order] = (torch.arange(len(rows)) + offset) % folds
    return [
        (torch.nonzero(fold != i).flatten(), torch.nonzero(fold == i).flatten())
        for i in range(folds)
        if (fold == i).any()
    ]
