"""Predictions one can act on: calibrated probabilities, "none of these", sets of classes, unequal costs.

Everything here is numpy alone, so that a model can be asked without torch. It is learned from logits of shots by fits
that did not see them, see `clipadapter.heads.held_out_shots`.
"""

from clipadapter.trust.answers import Answers, Asked, Trust
from clipadapter.trust.calibration import Calibrator, learn_calibrator
from clipadapter.trust.conformal import Conformal, learn_conformal
from clipadapter.trust.costs import costs_for, decide, expected_cost, read_costs
from clipadapter.trust.multilabel import MultiLabel, learn_multilabel
from clipadapter.trust.options import TrustOptions
from clipadapter.trust.rejection import Rejector, kept_distractors, learn_rejector

__all__ = [
    "Answers",
    "Asked",
    "Calibrator",
    "Conformal",
    "MultiLabel",
    "Rejector",
    "Trust",
    "TrustOptions",
    "costs_for",
    "decide",
    "expected_cost",
    "kept_distractors",
    "learn_calibrator",
    "learn_conformal",
    "learn_multilabel",
    "learn_rejector",
    "read_costs",
]
