"""Cross-validation folds and splits of shots: how heads choose a hyperparameter without a validation set."""

from __future__ import annotations

import torch
from torch import Tensor

from clipadapter.errors import InputError
from clipadapter.heads.support import SupportSet


def stratified_folds(labels: Tensor, folds: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Stratified folds over labels (n,), in which every class keeps a shot: training and held-out rows of each.

    With equal shots per class every fold takes equally many rows of each class, so that no class is rarer in training
    than in use: to leave out a row of some classes only would teach that these are rare, and count against their held
    out shots. So there are at most as many folds as the most frequent class has shots. A class with one shot is never
    held out; there is no fold if every class has a single shot.
    """
    generator = torch.Generator().manual_seed(seed)
    fold = torch.full_like(labels, -1)  # -1: never held out
    counts = torch.bincount(labels)
    folds = min(folds, int(counts.max()))
    for label in labels.unique():
        rows = torch.nonzero(labels == label).flatten()
        if len(rows) > 1:
            order = rows[torch.randperm(len(rows), generator=generator)]
            # Classes with fewer shots than folds start at a random fold; else the first folds would hold out them all.
            start = int(torch.randint(folds, (1,), generator=generator)) if len(rows) < folds else 0
            fold[order] = (torch.arange(len(rows)) + start) % folds
    return [
        (torch.nonzero(fold != i).flatten(), torch.nonzero(fold == i).flatten())
        for i in range(folds)
        if (fold == i).any()
    ]


def iterative_stratification(targets: Tensor, folds: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Folds over multi-label targets (n, c), in which every class that has a shot always keeps one to train on.

    Classes are visited from the rarest to the most frequent, and each assigns its pictures to the folds that have the
    fewest of it (Sechidis et al., ECML 2011). If all pictures of a class are in one fold, one of them is never held
    out. There is no fold if nothing can be held out.
    """
    generator = torch.Generator().manual_seed(seed)
    has_class = targets.bool()
    n, counts = len(has_class), has_class.sum(dim=0)
    folds = min(folds, n)
    fold = torch.full((n,), -1)
    shuffled = torch.randperm(n, generator=generator)
    for k in [*counts.argsort().tolist(), -1]:  # last the pictures without a label
        of_class = has_class[:, k] if k >= 0 else torch.ones(n, dtype=torch.bool)
        for row in shuffled[(of_class & (fold < 0))[shuffled]].tolist():
            of_class_by_fold = torch.bincount(fold[of_class & (fold >= 0)], minlength=folds)
            rows_by_fold = torch.bincount(fold[fold >= 0], minlength=folds)
            # The fold with the fewest pictures of the class; among equal ones, that with the fewest pictures.
            fold[row] = int((of_class_by_fold * (n + 1) + rows_by_fold).argmin())
    for k in torch.nonzero(counts > 0).flatten().tolist():
        of_class = torch.nonzero(has_class[:, k]).flatten()
        if len(fold[of_class].unique()) == 1:
            fold[of_class[0]] = -1
    splits = [(torch.nonzero(fold != i).flatten(), torch.nonzero(fold == i).flatten()) for i in range(folds)]
    return [(train, held_out) for train, held_out in splits if len(held_out) and len(train)]


def make_folds(truth: Tensor, folds: int, seed: int = 0, repeats: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Folds over labels (n,) by `stratified_folds`, or over targets (n, c) by `iterative_stratification`.

    Each repeat divides all rows again, by the next seed.
    """
    if folds < 2:
        raise InputError(f"folds must be 2 or more, but is {folds}")
    divide = stratified_folds if truth.ndim == 1 else iterative_stratification
    return [split for i in range(repeats) for split in divide(truth, folds, seed + i)]


def hold_out_one_per_class(labels: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows to train on, and held-out rows: a random one of each class that has two or more."""
    generator = torch.Generator().manual_seed(seed)
    is_held_out = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        rows = torch.nonzero(labels == label).flatten()
        if len(rows) > 1:
            is_held_out[rows[torch.randint(len(rows), (1,), generator=generator)]] = True
    return torch.nonzero(~is_held_out).flatten(), torch.nonzero(is_held_out).flatten()


def hyperparameter_folds(
    shots: SupportSet, folds: int, seed: int, enough: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Folds to choose a hyperparameter on, single-label or multi-label; none if most classes have one shot.

    After ``enough`` held-out shots no further fold is returned; None for all folds.
    """
    splits = make_folds(shots.truth, folds, seed) if most_classes_repeat(shots.truth) else []
    if enough is None:
        return splits
    n_held_out = torch.tensor([len(held_out) for _, held_out in splits]).cumsum(0)
    # One more than the folds that hold out too few: the fold that reaches the number is needed too.
    return splits[: 1 + int((n_held_out < enough).sum())]


def some_rows(rows: Tensor, n: int, seed: int) -> Tensor:
    """At most n of the rows, drawn by seed and in their order.

    >>> some_rows(torch.arange(5), 9, seed=0), len(some_rows(torch.arange(5), 2, seed=0))
    (tensor([0, 1, 2, 3, 4]), 2)
    """
    if len(rows) <= n:
        return rows
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order[: max(1, n)].sort().values]


def most_classes_repeat(truth: Tensor) -> bool:
    """Whether at least half of the classes that have shots have two or more, by labels (n,) or targets (n, c).

    If not, the few classes that can be held out say little about the others: with a wrong label among single shots they
    may even be just the two classes that it concerns.

    >>> most_classes_repeat(torch.tensor([0, 0, 1, 2])), most_classes_repeat(torch.tensor([0, 0, 1]))
    (False, True)
    """
    counts = torch.bincount(truth) if truth.ndim == 1 else truth.sum(dim=0)
    return bool(2 * (counts > 1).sum() >= (counts > 0).sum()) and bool((counts > 0).any())
