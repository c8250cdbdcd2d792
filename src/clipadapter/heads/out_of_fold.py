"""What a head says of its shots as if it had not seen them, the cheapest way: what calibration is learned from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike

from clipadapter.heads.base import Head
from clipadapter.heads.folds import held_out_folds
from clipadapter.heads.support import Array, as_labels, as_views, class_positions
from clipadapter.heads.text import TextFeatures

FOLDS = 5
REPEATS, ENOUGH = 3, 200
"""Shots are divided up to three times, as long as this many are not held out in all: much hangs on how few fall.
A head that went on from an earlier one is judged by as many, in as few folds as hold them: to fit all of them would
take longer than its own fit did."""
MOST = 10.0
"""Largest factor between logits of fits that is believed; fits to shots that are alike have no spread."""
MUCH = 1_000_000_000
"""Multiplications of one pass over the shots, above which one fold is enough: thousands of shots are in it."""


@dataclass(frozen=True, eq=False)
class Unseen:
    """Logits of shots by fits of a head without them.

    Args:
        logits: (r, c), times ``louder``: as large as those of the fit to all shots.
        labels: (r,) class positions.
        rows: (r,) row numbers among the shots; a shot may be there more than once.
        shots: how many shots a class these fits saw on average, classes without a shot left out.
        how: "own" for the head's own folds, "folds", or "split" if the fit that answers did not see the shots either.
        louder: how much larger the logits of the fit to all shots are: a probe on two shots is surer than one on one.
            For folds it is seen from the spread of logits of the fits' own shots.
        heads: those fits, in the order of their folds; empty if they were not kept.
        folds: (r,) the fold of each row; None if heads were not kept.
    """

    logits: Array
    labels: Array
    rows: Array
    shots: float
    how: str
    louder: float = 1.0
    heads: tuple[Head, ...] = ()
    folds: Array | None = None

    @property
    def once(self) -> Unseen:
        """The first time that each shot was held out."""
        first = np.sort(np.unique(self.rows, return_index=True)[1])
        folds = None if self.folds is None else self.folds[first]
        return replace(self, logits=self.logits[first], labels=self.labels[first], rows=self.rows[first], folds=folds)


def held_out_shots(
    head: Head, X: ArrayLike, y: ArrayLike, text: TextFeatures | None = None, *, keep: bool = False, seed: int = 0
) -> Unseen | None:
    """Logits of shots by fits that did not see them.

    Taken is what the head's own fit held out by the way, if it did; else shots are held out in folds, as many of every
    class. Leave-one-out would be cheaper for some heads, but makes one class rarer than all others: at two shots a
    class discriminant analysis is then right for 45 % of the shots, and for 78 % of new pictures. In the folds a ratio
    or penalty holds that the head chose among all shots, unless their heads are kept.

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
        logits, rows, shots, louder = own
        return Unseen(logits * louder, positions[rows], rows, shots, "own", louder)
    return _folds(head, views, labels, positions, text, keep, seed)


def mean_shots(labels: ArrayLike) -> float:
    """Shots a class, classes without one left out.

    >>> mean_shots(["cat", "cat", "cat", "dog"])
    2.0
    """
    return float(np.unique(np.asarray(labels), return_counts=True)[1].mean())


def _folds(
    head: Head, views: Array, labels: Array, positions: Array, text: TextFeatures | None, keep: bool, seed: int
) -> Unseen:
    repeats = 1 if keep else max(1, min(REPEATS, ENOUGH // len(labels)))
    every = [held_out_folds(torch.from_numpy(positions), FOLDS, seed + i) for i in range(repeats)]
    splits = [(train.numpy(), held.numpy()) for one in every for train, held in one]
    if not keep and len(labels) * len(np.unique(labels)) * views.shape[2] > MUCH:
        splits = splits[:1]
    elif not keep and head.went_on:
        splits = splits[: int(np.searchsorted(np.cumsum([len(held) for _, held in splits]), ENOUGH)) + 1]
    heads: list[Head] = []
    logits: list[Array] = []
    spread: list[float] = []
    for train, held in splits:
        # What is promised of sets by CV+ holds for fits that hang on the held-out shots in no way.
        fitted = head.without(views, labels, held, text, chosen=not keep)
        logits.append(fitted.logits(views[held, 0]))
        spread.append(_spread(fitted, views[train, 0]))
        heads += [fitted] if keep else []
    rows = np.concatenate([held for _, held in splits])
    shots = float(np.mean([mean_shots(labels[train]) for train, _ in splits]))
    folds = np.repeat(np.arange(len(splits)), [len(held) for _, held in splits]) if keep else None
    louder = float(np.clip(_spread(head, views[:, 0]) / max(float(np.mean(spread)), 1e-12), 1 / MOST, MOST))
    everything = np.concatenate(logits) * louder
    return Unseen(everything, positions[rows], rows, shots, "folds", louder, tuple(heads), folds)


def _spread(head: Head, X: Array) -> float:
    """Typical standard deviation over the classes of the logits of a fit's own shots."""
    return float(head.logits(X).std(axis=1).mean())
