"""Held-out shots: how heads choose a parameter without a validation set."""

from __future__ import annotations

import torch
from torch import Tensor


def held_out_folds(labels: Tensor, folds: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Stratified folds over the shots, in which every class always keeps a shot to train on.

    With equal shots every fold takes as many rows from each class, so that no class is rarer in training than in
    use: leaving out a row of some classes only would teach that these are rare, and count against the shots. So
    there are at most as many folds as the most frequent class has shots. A class with one shot is never held out.

    Args:
        labels: (n,) class positions.
        folds: number of folds wished, 2 or more.
        seed: of the random assignment.

    Returns:
        (training rows, held-out rows) of each fold, empty if every class has a single shot.

    >>> [(len(train), len(held)) for train, held in held_out_folds(torch.tensor([0, 0, 0, 0, 1, 1, 2]), 2)]
    [(4, 3), (4, 3)]
    """
    generator = torch.Generator().manual_seed(seed)
    fold = torch.full_like(labels, -1)
    counts = torch.bincount(labels)
    folds = min(folds, int(counts.max()))
    for label in labels.unique():
        rows = torch.nonzero(labels == label).flatten()
        if len(rows) > 1:
            order = rows[torch.randperm(len(rows), generator=generator)]
            # Classes with fewer shots than folds start anywhere, so that they don't all leave the first folds.
            start = int(torch.randint(folds, (1,), generator=generator)) if len(rows) < folds else 0
            fold[order] = (torch.arange(len(rows)) + start) % folds
    return [
        (torch.nonzero(fold != i).flatten(), torch.nonzero(fold == i).flatten())
        for i in range(folds)
        if (fold == i).any()
    ]


def most_can_be_held_out(labels: Tensor) -> bool:
    """Whether at least half of the classes that have shots have two.

    The few others say little of the rest: with a wrong label among single shots they may even be just the two classes
    that it concerns.

    >>> most_can_be_held_out(torch.tensor([0, 0, 1, 2])), most_can_be_held_out(torch.tensor([0, 0, 1]))
    (False, True)
    """
    counts = torch.bincount(labels)
    return bool(2 * (counts > 1).sum() >= (counts > 0).sum())
