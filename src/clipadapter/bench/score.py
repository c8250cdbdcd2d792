"""The one function that opens the test part."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench.run import Metrics
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head
from clipadapter.metrics import (
    Evaluation,
    evaluate,
    metrics_shown,
)
from clipadapter.uncertainty import Calibrator


@dataclass(frozen=True, eq=False)
class Score:
    """What a fitted head makes of a test part.

    Args:
        evaluation: metrics, metrics by class, confusions, and the predictions that they are computed from.
        logits: (m, c), columns in the order of the evaluation's classes.
        seconds: how long predicting took.
    """

    evaluation: Evaluation
    logits: NDArray[np.float64]
    seconds: float

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """(m, c), columns in the order of the evaluation's classes."""
        return self.evaluation.predictions.probabilities

    @property
    def labels(self) -> NDArray[np.int64]:
        """(m,) positions of the true classes."""
        return self.evaluation.predictions.labels

    @property
    def metrics(self) -> Metrics:
        """The metrics of a record."""
        return Metrics({name: self.evaluation.metrics[name] for name in metrics_shown("record", "single-label")})


def score(
    head: Head, test: FeatureSet, calibrator: Calibrator | None = None, among: Sequence[str] | None = None
) -> Score:
    """Measure a fitted head: the only place where a fitted head meets test features.

    Args:
        head: fitted.
        test: plain features are used.
        calibrator: turns logits into probabilities; their softmax if not given.
        among: the classes that the head may choose from; all if not given.

    Raises:
        InputError: if there are no test pictures, a label is no class of the head, or a logit is not finite.
    """
    classes = [str(name) for name in head.classes_]
    check_labels(test.y, classes)
    start = time.perf_counter()
    logits = np.asarray(head.logits(test.plain), np.float64)  # (m, c)
    seconds = time.perf_counter() - start
    if not np.isfinite(logits).all():
        raise InputError(f"{type(head).__name__} gives logits that are not finite")
    if among is not None:
        kept = [i for i, name in enumerate(classes) if name in set(among)]
        classes, logits = [classes[i] for i in kept], logits[:, kept]
        check_labels(test.y, classes)
    logs = (calibrator or Calibrator()).log_probabilities(logits)
    return Score(evaluate(test.y, logs, classes), logits, seconds)


def pool(scores: Sequence[Score]) -> Score:
    """One score of several test parts, such as folds; each picture counts the same.

    Raises:
        InputError: if the parts were answered among different classes.
    """
    classes = [one.name for one in scores[0].evaluation.classes]
    if any([one.name for one in part.evaluation.classes] != classes for part in scores):
        raise InputError("scores of different classes have no common figure")
    logits = np.concatenate([part.logits for part in scores])
    labels = [classes[i] for part in scores for i in part.labels]
    log_probabilities = np.concatenate([part.evaluation.predictions.log_probabilities for part in scores])
    return Score(evaluate(labels, log_probabilities, classes), logits, sum(part.seconds for part in scores))
