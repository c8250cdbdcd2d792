"""Answers for shots by heads that did not see them: what choosing, calibration and thresholds are judged on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import clone

from clipadapter.errors import InputError
from clipadapter.heads.base import Head
from clipadapter.heads.folds import held_out_folds
from clipadapter.heads.multilabel import several_folds
from clipadapter.heads.support import Array, as_labels, as_targets, as_views, class_positions, has_several
from clipadapter.heads.text import TextFeatures


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Logits of shots by heads that did not see them.

    Args:
        logits: (r, c).
        labels: (r,) class positions, or (r, c) zeros and ones in the logits' dtype where pictures have several labels.
        rows: (r,) row numbers among the shots.
        how: "leave-one-out", "folds" or "views".
    """

    logits: Array
    labels: Array
    rows: Array
    how: str


def held_out(
    head: Head, X: ArrayLike, y: ArrayLike, text: TextFeatures | None = None, *, folds: int = 4, seed: int = 0
) -> HeldOut:
    """Logits of shots by clones of a head that were fitted without them.

    Args:
        head: unfitted.
        X: (n, d) or (n, v, d) raw features of the shots.
        y: (n,) labels, or (n, c) zeros and ones.
        text: class text.
        folds: wished; fewer if no class has so many shots.
        seed: of the folds.

    Raises:
        InputError: if the features are a test part, the head is transductive, or no shot can be held out.
    """
    if head.transductive:
        raise InputError(f"{type(head).__name__} is transductive: it can't be judged on held-out shots")
    views = as_views(X)
    if has_several(y):
        given = truth = as_targets(y, len(views), text)[1].astype(views.dtype)
        parts = several_folds(torch.from_numpy(truth), folds, seed)
    else:
        given = as_labels(y, len(views))
        truth = class_positions(given, text)[1]
        parts = held_out_folds(torch.from_numpy(truth), folds, seed)
    splits, how = [(train.numpy(), held.numpy()) for train, held in parts], "folds"
    if not splits:
        if views.shape[1] == 1:
            raise InputError(
                "with one shot a class and one view nothing can be held out: give two shots of some classes, or "
                "views=2 or more, or choose the head yourself ('auto' needs none)"
            )
        everything = np.arange(len(views))
        splits, how = [(everything, everything)], "views"
    logits = []
    for train, held in splits:
        if how == "views":
            answers = clone(head).fit(views[:, :-1], given, text=text).logits(views[:, -1])
        else:
            answers = clone(head).fit(views[train], given[train], text=text).logits(views[held, 0])
        logits.append(answers)
    rows = np.concatenate([held for _, held in splits])
    return HeldOut(np.concatenate(logits), truth[rows], rows, how)
