"""Out-of-fold logits: logits of shots by fits that did not see them.

Choice of a head, calibration, thresholds and multi-label rules are learned from them. `out_of_fold` is the one function
that makes them, by the first of several strategies that applies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from clipadapter.errors import InputError
from clipadapter.heads.base import Head
from clipadapter.heads.estimator import clone
from clipadapter.heads.support import Array, SupportSet, as_labels, as_views, check_truth, is_multilabel
from clipadapter.heads.text import TextFeatures
from clipadapter.utils.blocks import Blocks, as_blocks
from clipadapter.utils.progress import BRIEF_SECONDS, progress_bar


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
    return _split_by_fold(fold, folds)


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
    return _split_by_fold(fold, folds)


def _split_by_fold(fold: Tensor, folds: int) -> list[tuple[Tensor, Tensor]]:
    """Training and held-out rows of each fold by the fold (n,) of each row, without folds that have none of either."""
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


Strategy = Literal["own", "folds", "views"]

FOLDS = 4  # default number of folds for an unfitted head
FOLDS_OF_FITTED = 5  # default number of folds for a fitted head
MAX_REPEATS = 3
SUFFICIENT_HELD_OUT_SHOTS = 200
"""The folds of a fitted head are drawn again, up to MAX_REPEATS times, until about this many shots were held out: with
few shots the result depends on how they fall. A head that was fitted by a warm start gets no more folds than hold them:
to fit all would take longer than its own fit did."""
MAX_LOGIT_SCALE_RATIO = 10.0
"""Bound of the ratio of logit scales of two fits; the logits of fits to nearly equal shots have no spread."""
MAX_MULTIPLICATIONS_OF_ALL_FOLDS = 1_000_000_000
"""Multiplications of one pass over the shots, above which only one fold is fitted: it holds out thousands of shots."""

MAX_HELD_OUT_LOGITS = 2**24
"""Out-of-fold logits that are made: 1,677 shots of 10,000 classes. Of more held-out shots a random part is predicted,
since all that is learned from them is a few numbers, and each copy in float64 takes 134 MB."""


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Logits of shots by fits that did not see them.

    Args:
        logits: (r, c), multiplied by ``logit_scale_ratio``.
        labels: (r,) class positions, or (r, c) zeros and ones in the dtype of the features if multi-label.
        rows: (r,) row numbers among the shots; a shot may occur more than once.
        strategy: "own", "folds" or "views" as for `out_of_fold`; "split" if the head itself did not see the shots.
        shots_per_class: mean number of shots per class that these fits saw, classes without a shot left out.
        logit_scale_ratio: how much larger the logits of the fit to all shots are: a probe on two shots per class is
            more confident than one on one shot. Estimated from the spread of the logits of each fit's own shots; 1 for
            an unfitted head.
        heads: the fitted heads in the order of their folds; empty if they were not stored.
        folds: (r,) the fold of each row; None if heads were not stored.
    """

    logits: Array
    labels: Array
    rows: Array
    strategy: str
    shots_per_class: float
    logit_scale_ratio: float = 1.0
    heads: tuple[Head, ...] = ()
    folds: Array | None = None

    @property
    def first_per_shot(self) -> OutOfFold:
        """Every shot once: the first time that it was held out."""
        first = np.sort(np.unique(self.rows, return_index=True)[1])
        folds = None if self.folds is None else self.folds[first]
        return replace(self, logits=self.logits[first], labels=self.labels[first], rows=self.rows[first], folds=folds)


def out_of_fold(
    head: Head,
    X: ArrayLike,
    y: ArrayLike,
    text: TextFeatures | None = None,
    *,
    strategies: Sequence[Strategy] = ("folds", "views"),
    folds: int | None = None,
    seed: int = 0,
    keep_heads: bool = False,
    blocks: Sequence[tuple[str, int]] | None = None,
) -> OutOfFold | None:
    """Logits of shots by fits that did not see them, by the first strategy that applies.

    - "own": what the last `fit` of the head held out itself, such as the stacking of `auto`. No fit is needed.
    - "folds": stratified folds, iterative stratification if multi-label.
    - "views": a fit to all views but the last predicts the last one.

    An unfitted head is an estimator under test: each fit chooses its hyperparameters again. A fitted head is to be
    calibrated: the fits reuse the hyperparameters that it chose on all shots, unless the heads of the folds are stored;
    the logits are scaled to those of the head; and few shots are divided into folds several times.

    Args:
        head: fitted to these shots, or unfitted; it does not change.
        X: (n, d) or (n, v, d) raw features of the shots.
        y: (n,) labels, or (n, c) multi-label targets.
        text: text features.
        strategies: in order of preference.
        folds: number of folds, fewer if no class has so many shots; by default 4 for an unfitted head, 5 for a
            fitted one.
        seed: of the folds.
        keep_heads: keep the heads of the folds, each shot in one fold only. Coverage guarantees of CV+ hold for fits
            that do not depend on the held-out shots in any way, so that these heads choose their hyperparameters again.
        blocks: as for `Head.fit`, of an unfitted head; a fitted one knows them.

    Returns:
        None if no strategy applies, or if the head is transductive.

    Raises:
        InputError: if the features are marked for evaluation, or X, y and text do not match.
    """
    views = as_views(X)
    y = y if is_multilabel(y) else as_labels(y, len(views))
    truth = check_truth(y, len(views), text)[1]
    truth = truth if truth.ndim == 1 else truth.astype(views.dtype)
    if head.transductive:
        return None
    checked_blocks: Blocks | None = getattr(head, "blocks_", None) or (None if blocks is None else as_blocks(blocks))
    for strategy in strategies:
        if strategy == "own":
            result = None if keep_heads else head._own_out_of_fold
        elif strategy == "folds":
            result = _from_folds(head, views, y, truth, text, folds, seed, keep_heads, checked_blocks)
        elif views.shape[1] > 1:
            logits = clone(head).fit(views[:, :-1], y, text=text, blocks=checked_blocks).logits(views[:, -1])
            result = OutOfFold(logits, truth, np.arange(len(views)), "views", mean_shots_per_class(truth))
        else:
            result = None
        if result is not None:
            return result
    return None


def join_folds(
    shots: SupportSet, folds: Sequence[tuple[Tensor, Tensor]], logits: Callable[[int, Tensor], Tensor]
) -> OutOfFold | None:
    """The out-of-fold logits, with the strategy "own", of a head that trains on folds itself; None without folds.

    The folds are training rows and held-out rows. ``logits`` (r, c) are of rows (r,) of the shots by a fit: number 0 to
    all shots, 1 without the first fold and so on.
    """
    if not folds:
        return None
    n = MAX_HELD_OUT_LOGITS // (shots.n_classes * len(folds))
    every = [torch.arange(len(shots.views)), *(train for train, _ in folds)]
    spreads = [float(logits(i, some_rows(rows, n, 0)).std(dim=1).mean()) for i, rows in enumerate(every)]
    ratio = _logit_scale_ratio(spreads[0], spreads[1:])
    rows = [some_rows(held_out, n, 0) for _, held_out in folds]
    joined = ratio * torch.cat([logits(i, part) for i, part in enumerate(rows, 1)])
    truth = shots.truth.numpy()
    seen = float(np.mean([mean_shots_per_class(truth[train.numpy()]) for train, _ in folds]))
    held_out = torch.cat(rows).numpy()
    return OutOfFold(joined.numpy(), truth[held_out], held_out, "own", seen, ratio)


def mean_shots_per_class(y: ArrayLike) -> float:
    """Mean number of shots of the classes that have one, from labels (n,) or multi-label targets (n, c).

    >>> mean_shots_per_class(["cat", "cat", "cat", "dog"])
    2.0
    """
    labels = np.asarray(y)
    counts = np.unique(labels, return_counts=True)[1] if labels.ndim == 1 else labels.sum(axis=0)
    return float(counts[counts > 0].mean()) if counts.any() else 0.0


def _from_folds(
    head: Head,
    views: Array,
    y: ArrayLike,
    truth: Array,
    text: TextFeatures | None,
    folds: int | None,
    seed: int,
    keep_heads: bool,
    blocks: Blocks | None,
) -> OutOfFold | None:
    is_fitted = hasattr(head, "classes_")
    is_calibrated = is_fitted and not keep_heads
    # Enough shots are held out of a head to be calibrated; of another one, each shot once.
    repeats = max(1, min(MAX_REPEATS, SUFFICIENT_HELD_OUT_SHOTS // len(truth))) if is_calibrated else 1
    parts = make_folds(torch.from_numpy(truth), folds or (FOLDS_OF_FITTED if is_fitted else FOLDS), seed, repeats)
    splits = [(train.numpy(), held_out.numpy()) for train, held_out in parts]
    if not splits:
        return None
    if is_calibrated:
        n_classes = len(np.unique(truth)) if truth.ndim == 1 else truth.shape[1]
        if len(truth) * n_classes * views.shape[2] > MAX_MULTIPLICATIONS_OF_ALL_FOLDS:
            splits = splits[:1]
        elif head.is_warm_start:
            n_held_out = np.cumsum([len(held_out) for _, held_out in splits])
            splits = splits[: int(np.searchsorted(n_held_out, SUFFICIENT_HELD_OUT_SHOTS)) + 1]
    heads: list[Head] = []
    predicted: list[Array] = []
    logits: list[Array] = []
    scales: list[float] = []
    shown = bool(head.get_params(deep=False).get("progress", False))
    for train, held_out in progress_bar(splits, desc="held-out shots", shown=shown, leave=False, delay=BRIEF_SECONDS):
        fold_head = head.refit_without(views, y, held_out, text, reuse_chosen=is_calibrated, blocks=blocks)
        n = MAX_HELD_OUT_LOGITS // (len(fold_head.classes_) * len(splits))
        predicted.append(some_rows(torch.from_numpy(held_out), n, seed).numpy())
        logits.append(fold_head.logits(views[predicted[-1], 0]))
        if is_fitted:
            scales.append(_logit_scale(fold_head, views[train, 0]))
        if keep_heads:
            fold_head.kept_pictures_ = None  # it is not fitted again: only the head of all shots needs them
            heads.append(fold_head)
    ratio = _logit_scale_ratio(_logit_scale(head, views[:, 0]), scales) if is_fitted else 1.0
    rows, joined = np.concatenate(predicted), np.concatenate(logits)
    fold_of_row = np.repeat(np.arange(len(splits)), [len(each) for each in predicted]) if keep_heads else None
    seen = float(np.mean([mean_shots_per_class(truth[train]) for train, _ in splits]))
    joined = joined * ratio if is_fitted else joined
    return OutOfFold(joined, truth[rows], rows, "folds", seen, ratio, tuple(heads), fold_of_row)


def _logit_scale_ratio(of_all: float, of_folds: Sequence[float]) -> float:
    """How much larger the logits of the fit to all shots are than those of the folds, from the spreads of both."""
    ratio = of_all / max(float(np.mean(of_folds)), 1e-12)
    return float(np.clip(ratio, 1 / MAX_LOGIT_SCALE_RATIO, MAX_LOGIT_SCALE_RATIO))


def _logit_scale(head: Head, X: Array) -> float:
    """Mean standard deviation over the classes of the logits of a fit's own shots, or of some of them."""
    X = X[some_rows(torch.arange(len(X)), MAX_HELD_OUT_LOGITS // len(head.classes_), 0).numpy()]
    return float(head.logits(X).std(axis=1).mean())
