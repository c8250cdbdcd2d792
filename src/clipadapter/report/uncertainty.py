"""Rejection, prediction sets and costs of a model, on test pictures and on pictures of none of its classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from clipadapter.classifier import FewShotClassifier
from clipadapter.classifier.evaluation import Score, measure_answers
from clipadapter.metrics.detection import auroc, fpr_at
from clipadapter.uncertainty import Answers, DecisionOptions

Array = NDArray[Any]
DEFAULT_REJECT_RATE, DEFAULT_COVERAGE = 0.05, 0.9


@dataclass(frozen=True, eq=False)
class UncertaintyResults:
    """Rates that were requested, and rates that were measured."""

    answers: Answers  # for the test pictures
    measured: dict[str, float]  # see `measure_answers`
    outliers: Answers | None = None  # answers for pictures of none of the classes, or None

    def to_dict(self) -> dict[str, Any]:
        """Requested and measured rates as JSON values."""
        data: dict[str, Any] = {}
        measured, sets = self.measured, self.answers.sets
        if "reject" in measured:
            data["reject"] = {"requested": measured["reject"], "measured": measured["rejected"]}
        if sets is not None:
            data["sets"] = {
                "requested": measured["coverage"],
                "measured": measured["covered"],
                "mean_size": measured["set_size"],
                "single": float((sets.sum(axis=1) == 1).mean()),
            }
        if self.outliers is not None:
            scores, outlier_scores = rejection_scores(self.answers), rejection_scores(self.outliers)
            data["outliers"] = {
                "pictures": len(outlier_scores),
                "auroc": auroc(scores, outlier_scores),
                "fpr95": fpr_at(scores, outlier_scores),
                "rejected": float(self.outliers.rejected.mean()) if "reject" in measured else None,
            }
        if "cost" in measured:
            data["cost"] = {"mean": measured["cost"], "of_the_likeliest": measured["cost_of_likeliest"]}
        return data


def rejection_scores(answers: Answers) -> Array:
    """Score of "none of these"; one minus the largest probability if the model has no such score."""
    return 1 - answers.probabilities.max(axis=1) if answers.ood_scores is None else answers.ood_scores


def measure_uncertainty(
    model: FewShotClassifier,
    features: Array,
    result: Score,
    *,
    reject: float | None = None,
    coverage: float | None = None,
    outliers: Array | None = None,
) -> UncertaintyResults:
    """Predict with rejection and prediction sets, as far as the model has learned them from its shots.

    Features have all blocks. A rate that is not given is that of the model, else 5 % rejection and 90 % coverage.
    """
    uncertainty, defaults = model.uncertainty_, model.uncertainty_.decisions
    reject_rate = None if uncertainty.rejector is None else reject or defaults.reject or DEFAULT_REJECT_RATE
    set_coverage = None if uncertainty.conformal is None else coverage or defaults.coverage or DEFAULT_COVERAGE
    decisions = DecisionOptions(reject_rate, set_coverage, defaults.costs)

    width = model.support_.blocks[0].width  # "none of these" reads the block final

    def predict(X: Array, logits: Array) -> Answers:
        return uncertainty.answer(logits, X[:, :width], decisions, [head.logits(X) for head in model.fold_heads_])

    answers = predict(features, result.logits)
    outlier_answers = None if outliers is None else predict(outliers, model.head_.logits(outliers))
    return UncertaintyResults(answers, measure_answers(decisions, answers, result), outlier_answers)
