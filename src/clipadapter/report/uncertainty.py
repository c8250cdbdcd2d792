"""What a model says beside the best class, on test pictures and on pictures of none of its classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.classifier import FewShotClassifier
from clipadapter.metrics.detection import auroc, fpr_at
from clipadapter.uncertainty import Answers, DecisionOptions

Array = NDArray[Any]
REJECT, COVERAGE = 0.05, 0.9
"""What is asked for where neither the caller nor the model says anything."""


@dataclass(frozen=True, eq=False)
class Sure:
    """What was asked for and what came of it.

    Args:
        answers: of the test pictures.
        reject: share of the test pictures that may be called none of the classes; None if that was not learned.
        coverage: share of test pictures whose class is to be in the set; None if that was not learned.
        labels: (m,) positions of the true classes.
        background: answers of pictures of none of the classes, or None.
        cost: mean cost of an answer, where the model has costs of mistakes.
        likeliest: mean cost if it named the likeliest class instead.
    """

    answers: Answers
    reject: float | None
    coverage: float | None
    labels: Array
    background: Answers | None = None
    cost: float | None = None
    likeliest: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: asked and found, by name."""
        found: dict[str, Any] = {}
        if self.reject is not None:
            found["reject"] = {"asked": self.reject, "found": float(self.answers.rejected.mean())}
        sets = self.answers.sets
        if sets is not None:
            inside = float(sets[np.arange(len(sets)), self.labels].mean())
            sizes = sets.sum(axis=1)
            found["sets"] = {
                "asked": self.coverage,
                "found": inside,
                "mean_size": float(sizes.mean()),
                "single": float((sizes == 1).mean()),
            }
        if self.background is not None:
            known, strange = strangeness(self.answers), strangeness(self.background)
            found["background"] = {
                "pictures": len(strange),
                "auroc": auroc(known, strange),
                "fpr95": fpr_at(known, strange),
                "rejected": float(self.background.rejected.mean()) if self.reject is not None else None,
            }
        if self.cost is not None:
            found["cost"] = {"mean": self.cost, "of_the_likeliest": self.likeliest}
        return found


def strangeness(answers: Answers) -> Array:
    """Score of "none of these"; where none was learned, what is missing from the probability of the best class."""
    return 1 - answers.probabilities.max(axis=1) if answers.ood_scores is None else answers.ood_scores


def ask(
    model: FewShotClassifier,
    features: Array,
    logits: Array,
    labels: Array,
    *,
    reject: float | None = None,
    coverage: float | None = None,
    background: Array | None = None,
) -> Sure:
    """Ask a model for "none of these" and for sets, as far as its shots could teach them.

    Args:
        model: fitted.
        features: (m, d) of the test pictures.
        logits: (m, c) that the head gives them.
        labels: (m,) positions of their true classes.
        reject: rate; the model's own if not given, else 5 %.
        coverage: likewise; else 90 %.
        background: (b, d) features of pictures of none of the classes.
    """
    uncertainty, own = model.uncertainty_, model.uncertainty_.decisions
    rate = None if uncertainty.rejector is None else reject or own.reject or REJECT
    cover = None if uncertainty.conformal is None else coverage or own.coverage or COVERAGE
    asked = DecisionOptions(rate, cover, own.costs)

    def answers(X: Array, z: Array) -> Answers:
        return uncertainty.answer(z, X, asked, [head.logits(X) for head in model.fold_heads_])

    told = answers(features, logits)
    cost = likeliest = None
    if own.costs is not None:
        cost = float(own.costs[labels, told.best].mean())
        likeliest = float(own.costs[labels, told.probabilities.argmax(axis=1)].mean())
    strange = None if background is None else answers(background, model.head_.logits(background))
    return Sure(told, rate, cover, labels, strange, cost, likeliest)
