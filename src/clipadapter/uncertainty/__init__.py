"""Predictions one can act on: calibrated probabilities, "none of these", sets of classes, unequal costs.

Everything here is numpy alone, so that a model can be asked without torch. It is learned from logits of shots by fits
that did not see them, see `clipadapter.heads.out_of_fold`.
"""

from clipadapter.uncertainty.calibration import Calibrator, learn_calibrator
from clipadapter.uncertainty.conformal import Conformal, learn_conformal
from clipadapter.uncertainty.costs import costs_for, decide, expected_cost, read_costs
from clipadapter.uncertainty.decisions import Answers, DecisionOptions, Uncertainty, UncertaintyOptions
from clipadapter.uncertainty.multilabel import MultiLabel, learn_multilabel
from clipadapter.uncertainty.negative_labels import select_negative_labels
from clipadapter.uncertainty.ood import Rejector, learn_rejector

__all__ = [
    "Answers",
    "DecisionOptions",
    "Calibrator",
    "Conformal",
    "MultiLabel",
    "Rejector",
    "Uncertainty",
    "UncertaintyOptions",
    "costs_for",
    "decide",
    "expected_cost",
    "select_negative_labels",
    "learn_calibrator",
    "learn_conformal",
    "learn_multilabel",
    "learn_rejector",
    "read_costs",
]
