"""Scores of fitted heads on test parts. No other module opens a test part."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench.run import Metrics
from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head
from clipadapter.metrics import (
    Evaluation,
    MultiLabelEvaluation,
    evaluate,
    evaluate_multilabel,
    metrics_shown,
)
from clipadapter.uncertainty import Calibrator


@dataclass(frozen=True, eq=False)
class Score:
    """The score of a fitted head on a test part.

    Args:
        evaluation: metrics, metrics by class, confusions, and the predictions that they are computed from.
        logits: (m, c), columns in the order of the evaluation's classes.
        seconds: of the prediction.
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
        calibrator: turns logits into probabilities; None for their softmax.
        among: the classes that the head predicts among; None for all.

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
        columns = [i for i, name in enumerate(classes) if name in set(among)]
        classes, logits = [classes[i] for i in columns], logits[:, columns]
        check_labels(test.y, classes)
    logs = (calibrator or Calibrator()).log_probabilities(logits)
    return Score(evaluate(test.y, logs, classes), logits, seconds)


def pool_scores(scores: Sequence[Score]) -> Score:
    """One score of several test parts, such as folds; each picture counts the same.

    Raises:
        InputError: if the parts have different classes.
    """
    classes = [item.name for item in scores[0].evaluation.classes]
    if any([item.name for item in part.evaluation.classes] != classes for part in scores):
        raise InputError("scores of different classes can't be pooled")
    logits = np.concatenate([part.logits for part in scores])
    labels = [classes[i] for part in scores for i in part.labels]
    log_probabilities = np.concatenate([part.evaluation.predictions.log_probabilities for part in scores])
    return Score(evaluate(labels, log_probabilities, classes), logits, sum(part.seconds for part in scores))


def measure_decisions(model: FewShotClassifier, test: FeatureSet, result: Score) -> dict[str, float]:
    """Metrics of a model's decisions on a test part: rejection as "none of these", sets of classes, unequal costs.

    Args:
        model: fitted, with one label per picture.
        test: plain features are used.
        result: its score.

    Returns:
        Rates and means by name; empty if the model has no such options.
    """
    options = model.uncertainty_.decisions
    if options.reject is None and options.coverage is None and options.costs is None:
        return {}
    folds = [head.logits(test.plain) for head in model.fold_heads_]
    answers = model.uncertainty_.answer(result.logits, test.plain, None, folds)
    rows = np.arange(len(result.labels))
    shares: dict[str, float] = {}
    if options.reject is not None:
        shares |= {"reject": options.reject, "rejected": float(answers.rejected.mean())}
    if options.coverage is not None and answers.sets is not None:
        shares |= {"coverage": options.coverage, "covered": float(answers.sets[rows, result.labels].mean())}
        shares |= {"set_size": float(answers.sets.sum(axis=1).mean())}
    if options.costs is not None:
        likeliest = result.probabilities.argmax(axis=1)
        shares |= {"cost": float(options.costs[result.labels, answers.best].mean())}
        shares |= {"cost_of_likeliest": float(options.costs[result.labels, likeliest].mean())}
        shares |= {"accuracy_by_cost": float((answers.best == result.labels).mean())}
    return shares


def score_multilabel(model: FewShotClassifier, test: FeatureSet) -> MultiLabelEvaluation:
    """Measure a multi-label classifier.

    Args:
        model: fitted to pictures with several labels.
        test: with ``targets``; plain features are used.

    Raises:
        InputError: if there are no test pictures.
    """
    if not len(test) or test.targets is None:
        raise InputError("there are no test pictures with several labels")
    logits = model.head_.logits(test.plain)
    answers = model.uncertainty_.answer(logits, test.plain)
    assert answers.sets is not None
    return evaluate_multilabel(test.targets, answers.probabilities, answers.sets, model.class_names_)


def check_labels(labels: Sequence[str], classes: Sequence[str]) -> None:
    """Refuse a test part that is empty, or has a label that is no class of the model.

    Raises:
        InputError: if so.

    >>> check_labels(["cat", "cow"], ["cat", "dog"])
    Traceback (most recent call last):
    ...
    clipadapter.errors.InputError: the test pictures have a label that is no class of the model: cow; known: cat, dog...
    """
    if not len(labels):
        raise InputError("there are no test pictures")
    unknown = sorted(set(labels) - set(classes))
    if unknown:
        what = "a label that is no class" if len(unknown) == 1 else f"{len(unknown)} labels that are no classes"
        raise InputError(
            f"the test pictures have {what} of the model: {_some(unknown)}; known: {_some(classes)}. "
            "Leave these pictures out, or rename them, or fit with shots of them"
        )


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (" ..." if len(names) > limit else "")
