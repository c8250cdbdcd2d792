"""Drift detection: whether new pictures still have the distribution that a model was made for.

`detect_drift` runs three checks on a stream of pictures without labels: whether the features changed (covariate shift),
whether the class priors changed (label shift), and whether more pictures show none of the classes.
"""

from clipadapter.monitor.detection import MIN_PICTURES, detect_drift, sort_pictures
from clipadapter.monitor.priors import estimate_priors, prior_intervals
from clipadapter.monitor.report import CHECKS, CheckResult, ClassPrior, DriftReport, OodRate, Window
from clipadapter.monitor.shift import CovariateShift, holm, measure_covariate_shift

__all__ = [
    "CHECKS",
    "MIN_PICTURES",
    "CheckResult",
    "ClassPrior",
    "CovariateShift",
    "DriftReport",
    "OodRate",
    "Window",
    "detect_drift",
    "estimate_priors",
    "holm",
    "measure_covariate_shift",
    "prior_intervals",
    "sort_pictures",
]
