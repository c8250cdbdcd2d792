"""Drift detection: whether new pictures still have the distribution that a model was made for.

`detect_drift` runs three checks on a stream of pictures without labels: whether the features changed (covariate shift),
whether the class priors changed (label shift), and whether more pictures show none of the classes.
"""

from clipadapter.monitor.detection import MIN_PICTURES, detect_drift, sort_pictures
from clipadapter.monitor.report import CHECKS, CheckResult, ClassPrior, DriftReport, OodRate, Window

__all__ = [
    "CHECKS",
    "MIN_PICTURES",
    "CheckResult",
    "ClassPrior",
    "DriftReport",
    "OodRate",
    "Window",
    "detect_drift",
    "sort_pictures",
]
