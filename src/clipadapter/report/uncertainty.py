"""Rejection, prediction sets and costs of a model, on test pictures and on pictures of none of its classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.classifier import FewShotClassifier
from clipadapter.metrics.detection import auroc, fpr_at
from clipadapter.uncertainty import Answers, DecisionOptions

Array = NDArray[Any]
DEFAULT_REJECT_RATE, DEFAULT_COVERAGE = 0.05, 0.9


@dataclass(frozen=True, eq=False)
class UncertaintyResults:
    """Rates that were requested, and rates that were measured."""

    answers: Answers  # for the test pictures
    reject: float | None  # requested share of the test pictures that are rejected; None if the model can't reject
    # Requested share of test pictures whose class is in the prediction set; None if the model has no sets
    coverage: float | None
    labels: Array  # (m,) positions of the true classes
    outliers: Answers | None = None  # answers for pictures of none of the classes, or None
    cost: float | None = None  # mean cost of the predictions, if the model has costs of mistakes
    cost_of_likeliest: float | None = None  # mean cost if the likeliest class were predicted instead

    def to_dict(self) -> dict[str, Any]:
        """Requested and measured rates as JSON values."""
        data: dict[str, Any] = {}
        if self.reject is not None:
            data["reject"] = {"requested": self.reject, "measured": float(self.answers.rejected.mean())}
        sets = self.answers.sets
        if sets is not None:
            sizes = sets.sum(axis=1)
            data["sets"] = {
                "requested": self.coverage,
                "measured": float(sets[np.arange(len(sets)), self.labels].mean()),
                "mean_size": float(sizes.mean()),
                "single": float((sizes == 1).mean()),
            }
        if self.outliers is not None:
            scores, outlier_scores = rejection_scores(self.answers), rejection_scores(self.outliers)
            data["outliers"] = {
                "pictures": len(outlier_scores),
                "auroc": auroc(scores, outlier_scores),
                "fpr95": fpr_at(scores, outlier_scores),
                "rejected": float(self.outliers.rejected.mean()) if self.reject is not None else None,
            }
        if self.cost is not None:
            data["cost"] = {"mean": self.cost, "of_the_likeliest": self.cost_of_likeliest}
        return data


def rejection_scores(answers: Answers) -> Array:
    """Score of "none of these"; one minus the largest probability if the model has no such score."""
    return 1 - answers.probabilities.max(axis=1) if answers.ood_scores is None else answers.ood_scores


def measure_uncertainty(
    model: FewShotClassifier,
    features: Array,
    logits: Array,
    labels: Array,
    *,
    reject: float | None = None,
    coverage: float | None = None,
    outliers: Array | None = None,
) -> UncertaintyResults:
    """Predict with rejection and prediction sets, as far as the model has learned them from its shots.

    Args:
        model: fitted.
        features: (m, d) of the test pictures, all blocks.
        logits: (m, c) of the head for them.
        labels: (m,) positions of their true classes.
        reject: rate; that of the model if not given, else 5 %.
        coverage: rate; that of the model if not given, else 90 %.
        outliers: (b, d) features of pictures of none of the classes, all blocks.
    """
    uncertainty, defaults = model.uncertainty_, model.uncertainty_.decisions
    reject_rate = None if uncertainty.rejector is None else reject or defaults.reject or DEFAULT_REJECT_RATE
    set_coverage = None if uncertainty.conformal is None else coverage or defaults.coverage or DEFAULT_COVERAGE
    decisions = DecisionOptions(reject_rate, set_coverage, defaults.costs)

    width = model.support_.blocks[0].width  # "none of these" reads the block final

    def predict(X: Array, logits: Array) -> Answers:
        return uncertainty.answer(logits, X[:, :width], decisions, [head.logits(X) for head in model.fold_heads_])

    answers = predict(features, logits)
    cost = cost_of_likeliest = None
    if defaults.costs is not None:
        cost = float(defaults.costs[labels, answers.best].mean())
        cost_of_likeliest = float(defaults.costs[labels, answers.probabilities.argmax(axis=1)].mean())
    outlier_answers = None if outliers is None else predict(outliers, model.head_.logits(outliers))
    return UncertaintyResults(answers, reject_rate, set_coverage, labels, outlier_answers, cost, cost_of_likeliest)
