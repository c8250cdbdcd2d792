"""What other pictures and the class text predict for each picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipadapter.doctor.duplicates import Neighbours
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, TextFeatures, create_head, out_of_fold
from clipadapter.uncertainty import learn_calibrator

FOLDS = 8
"""Folds of the held-out predictions: each head is fitted to seven eighths of the pictures."""
VOTING_NEIGHBOURS = 5
"""Nearest pictures whose labels are counted."""
ABSENT_LOGIT = -1e9
"""Logit of a class that the head does not have."""


@dataclass(frozen=True, eq=False)
class LabelEvidence:
    """Three predictions for n pictures and c classes, in the order of the class names."""

    labels: NDArray[np.int64]  # (n,) class positions by the labels
    # (n, c) probabilities by a head that was fitted without the picture; NaN if its class has no other
    held_out: NDArray[np.float64]
    votes: NDArray[np.int64]  # (n, c) how many of the nearest pictures have each label
    zero_shot: NDArray[np.float64] | None  # (n, c) probabilities by class text; None if the encoder has no text tower
    names: tuple[str, ...]  # of the classes

    @property
    def is_held_out(self) -> NDArray[np.bool_]:
        """(n,) whether there is a held-out prediction."""
        return ~np.isnan(self.held_out[:, 0])


def collect_label_evidence(
    features: FeatureSet, text: TextFeatures | None, neighbours: Neighbours, seed: int = 0
) -> LabelEvidence:
    """Predict each picture by a held-out head, by its neighbours and by class text.

    The head is GDA. It has a closed form, and on held-out shots it is as good as heads that take ten times as long. The
    pictures of all splits together are its shots. Nothing that is fitted here is used elsewhere.
    """
    names = features.class_names
    text = None if text is None else text.with_order("given")
    position = {name: i for i, name in enumerate(names)}
    labels = np.array([position[label] for label in features.y], np.int64)
    n, c = len(labels), len(names)
    held_out = np.full((n, c), np.nan)
    if len(labels) and np.bincount(labels).max() > 1 and len(set(features.y)) > 1:
        folds = out_of_fold(create_head("gda"), features.final, features.y, text, folds=FOLDS, seed=seed)
        assert folds is not None  # a class has two shots
        # Without class text a head has the classes of its shots only, sorted.
        columns = np.arange(c) if text is not None else np.array([position[name] for name in sorted(set(features.y))])
        logits = np.full((len(folds.logits), c), ABSENT_LOGIT)
        logits[:, columns] = folds.logits
        held_out[folds.rows] = 0
        held_out[np.ix_(folds.rows, columns)] = calibrate(logits, columns[folds.labels])[:, columns]
    votes = np.zeros((n, c), np.int64)
    for voters in neighbours.index[:, :VOTING_NEIGHBOURS].T:
        votes[np.arange(n), labels[voters]] += 1
    return LabelEvidence(labels, held_out, votes, _predict_zero_shot(features, text, labels), names)


def _predict_zero_shot(
    features: FeatureSet, text: TextFeatures | None, labels: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    if text is None:
        return None
    head: Head = create_head("zero-shot").fit(features.final, features.y, text=text)
    return calibrate(head.logits(features.final).astype(np.float64), labels)


def calibrate(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Probabilities (r, c) at the temperature with the smallest log-loss of the labels: positions, (r,)."""
    # The pictures are many, and their encoder may be any: the temperature has no prior.
    return learn_calibrator(logits, labels, prior_deviation=np.inf).probabilities(logits)
