"""Calibrated probabilities, rejection ("none of these"), prediction sets and unequal costs.

Only numpy is used, so that an exported model can predict without torch. Everything is learned from out-of-fold logits
of the shots, see `clipadapter.heads.out_of_fold`.
"""

from clipadapter.uncertainty.calibration import Calibrator, learn_calibrator
from clipadapter.uncertainty.conformal import Conformal, learn_conformal
from clipadapter.uncertainty.costs import decide, parse_costs, read_costs
from clipadapter.uncertainty.decisions import Answers, DecisionOptions, HeldOutAccuracy, Uncertainty, UncertaintyOptions
from clipadapter.uncertainty.multilabel import MultiLabel, learn_multilabel
from clipadapter.uncertainty.negative_labels import select_negative_labels
from clipadapter.uncertainty.ood import Rejector, learn_rejector

__all__ = [
    "Answers",
    "Calibrator",
    "Conformal",
    "DecisionOptions",
    "HeldOutAccuracy",
    "MultiLabel",
    "Rejector",
    "Uncertainty",
    "UncertaintyOptions",
    "decide",
    "learn_calibrator",
    "learn_conformal",
    "learn_multilabel",
    "learn_rejector",
    "parse_costs",
    "read_costs",
    "select_negative_labels",
]
