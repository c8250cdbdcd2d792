"""Several labels a picture: probabilities and thresholds from the shots."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone

from clipadapter.errors import InputError
from clipadapter.heads import Head, TextFeatures, out_of_fold
from clipadapter.uncertainty import MultiLabel, learn_multilabel


def learn_rule(
    head: Head,
    X: ArrayLike,
    Y: ArrayLike,
    text: TextFeatures | None,
    *,
    folds: int = 4,
    seed: int = 0,
    precision: float | None = None,
) -> MultiLabel:
    """Probabilities and thresholds for a head, from shots that its clones did not see; the usual ones if none can be.

    Args:
        head: fitted or not; it is not changed.
        X: (n, d) or (n, v, d) raw features of the shots.
        Y: (n, c) zeros and ones; see `data.label_sets.label_matrix`.
        text: class text.
        folds: wished.
        seed: of the folds.
        precision: wished, or None for thresholds that make F1 largest.

    Raises:
        InputError: if the head takes no several labels, or shapes don't go together.
    """
    truth = np.asarray(Y)
    counts = truth.sum(axis=0)
    # A class with one shot keeps it in training: its held-out answers would all be of pictures without it.
    if not 2 * np.sum(counts > 1) >= np.sum(counts > 0) > 0:
        return MultiLabel.usual(truth.shape[1])
    found = out_of_fold(clone(head), X, truth, text, folds=folds, seed=seed)
    if found is None:
        raise InputError(f"{type(head).__name__} can't be judged on held-out shots")
    return learn_multilabel(found.logits, found.labels, precision=precision)
