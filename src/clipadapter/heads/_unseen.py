"""What a head says of its shots as if it had not seen them, the cheapest way: what calibration is learned from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import clone

from clipadapter.heads._base import Head
from clipadapter.heads._folds import held_out_folds
from clipadapter.heads._inputs import Array, as_labels, as_views, class_positions
from clipadapter.heads._text import ClassText

FOLDS = 5
REPEATS, ENOUGH = 3, 200
"""Shots are divided up to three times, as long as this many are not held out in all: much hangs on how few fall."""


@dataclass(frozen=True, eq=False)
class Unseen:
    """Logits of shots by fits of a head without them.

    Args:
        logits: (r, c).
        labels: (r,) class positions.
        rows: (r,) row numbers among the shots; a shot may be there more than once.
        shots: how many shots a class these fits saw on average, classes without a shot left out.
        how: "own" for the head's own folds, "leave-one-out", "folds" or "split".
        heads: those fits, in the order of their folds; empty if they were not kept.
        folds: (r,) the fold of each row; None if heads were not kept.
    """

    logits: Array
    labels: Array
    rows: Array
    shots: float
    how: str
    heads: tuple[Head, ...] = ()
    folds: Array | None = None

    @property
    def once(self) -> Unseen:
        """The first time that each shot was held out."""
        first = np.sort(np.unique(self.rows, return_index=True)[1])
        folds = None if self.folds is None else self.folds[first]
        return replace(self, logits=self.logits[first], labels=self.labels[first], rows=self.rows[first], folds=folds)


def held_out_shots(
    head: Head, X: ArrayLike, y: ArrayLike, text: ClassText | None = None, *, keep: bool = False, seed: int = 0
) -> Unseen | None:
    """Logits of shots by fits that did not see them.

    Taken are, in this order, what the head's own fit held out by the way, leave-one-out in closed form, and folds.

    Args:
        head: fitted to these shots.
        X: (n, d) or (n, v, d) raw features of the shots.
        y: (n,) labels.
        text: class text.
        keep: fit folds in any case, once, and keep their heads.
        seed: of the folds.

    Returns:
        None if nothing can be held out: one shot a class, or a transductive head.

    Raises:
        InputError: if the features are a test part.
    """
    views = as_views(X)
    labels = as_labels(y, len(views))
    positions = class_positions(labels, text)[1]
    if head.transductive or np.bincount(positions).max(initial=0) < 2:
        return None
    own = head.told()
    if own is not None and not keep:
        logits, rows, shots = own
        return Unseen(logits, positions[rows], rows, shots, "own")
    closed = None if keep else head.leave_one_out(views, labels, text)
    if closed is not None:
        counts = np.bincount(positions)
        rows = np.flatnonzero(counts[positions] > 1)
        shots = max(1.0, counts[counts > 0].mean() - 1 / (counts > 0).sum())
        return Unseen(closed[rows], positions[rows], rows, float(shots), "leave-one-out")
    return _folds(head, views, labels, positions, text, keep, seed)


def mean_shots(labels: ArrayLike) -> float:
    """Shots a class, classes without one left out.

    >>> mean_shots(["cat", "cat", "cat", "dog"])
    2.0
    """
    return float(np.unique(np.asarray(labels), return_counts=True)[1].mean())


def _folds(
    head: Head, views: Array, labels: Array, positions: Array, text: ClassText | None, keep: bool, seed: int
) -> Unseen:
    repeats = 1 if keep else max(1, min(REPEATS, ENOUGH // len(labels)))
    every = [held_out_folds(torch.from_numpy(positions), FOLDS, seed + i) for i in range(repeats)]
    splits = [(train.numpy(), held.numpy()) for one in every for train, held in one]
    heads: list[Head] = []
    logits: list[Array] = []
    for train, held in splits:
        fitted = clone(head).fit(views[train], labels[train], text=text)
        logits.append(fitted.logits(views[held, 0]))
        heads += [fitted] if keep else []
    rows = np.concatenate([held for _, held in splits])
    shots = float(np.mean([mean_shots(labels[train]) for train, _ in splits]))
    folds = np.repeat(np.arange(len(splits)), [len(held) for _, held in splits]) if keep else None
    return Unseen(np.concatenate(logits), positions[rows], rows, shots, "folds", tuple(heads), folds)
