"""Stratified folds of pictures: how many, which rows they have, and what a head scores over all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.fits import fit_head, score_part
from clipadapter.bench.suite import ALL
from clipadapter.classifier.evaluation import Score
from clipadapter.data import draw_shots
from clipadapter.errors import InputError
from clipadapter.heads import Head
from clipadapter.metrics import evaluate

DEFAULT_FOLDS = 5
Split = tuple[list[int], list[int]]  # rows of the shots, and rows that a head fitted to them predicts


def count_folds(labels: Sequence[str], folds: int) -> int:
    """The number of folds: as requested, but at most the number of pictures of the smallest class.

    >>> count_folds(["cat"] * 3 + ["dog"] * 9, 5)
    3
    """
    if folds < 2:
        raise InputError(f"folds must be 2 or more, but are {folds}")
    counts = Counter(labels)
    single = sorted(name for name, n in counts.items() if n < 2)
    if single or not counts:
        raise InputError(
            f"cross-validation needs two pictures of each class, but has one of: {', '.join(single[:5])}. "
            "Give a test folder, or more pictures"
        )
    return min(folds, *counts.values())


def draw_folds(labels: Sequence[str], folds: int, seed: int, shots: int = ALL) -> list[Split]:
    """Cut pictures into stratified folds, and draw the shots of each fold from the other folds."""
    from sklearn.model_selection import StratifiedKFold  # late: to compare on a test part needs no scikit-learn

    cut = StratifiedKFold(count_folds(labels, folds), shuffle=True, random_state=seed)
    splits = []
    for others, fold in cut.split(np.zeros(len(labels)), list(labels)):
        drawn = draw_shots([labels[row] for row in others], shots, seed)
        splits.append((others[drawn].tolist(), fold.tolist()))
    return splits


def score_folds(head: Head, bundle: Bundle, splits: Sequence[Split]) -> tuple[Score, float, list[Head]]:
    """Cross-validate one head: the score over all pictures, mean seconds of a fit, and the fitted heads."""
    scores, heads, seconds = list[Score](), list[Head](), 0.0
    for shots, fold in splits:
        part = TestPart(bundle.support.take(fold))
        fitted, duration = fit_head(head, bundle.support.take(shots), [part], bundle)
        scores.append(score_part(fitted, part))
        heads.append(fitted)
        seconds += duration
    classes = [item.name for item in scores[0].evaluation.classes]
    labels = [classes[i] for score in scores for i in score.labels]
    log_probabilities = np.concatenate([score.evaluation.predictions.log_probabilities for score in scores])
    logits, predict_seconds = np.concatenate([score.logits for score in scores]), sum(score.seconds for score in scores)
    pooled = Score(evaluate(labels, log_probabilities, classes), logits, predict_seconds)
    return pooled, seconds / len(splits), heads
