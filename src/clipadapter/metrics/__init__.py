"""Measures of predictions: accuracy and F1, calibration, detection of unknown pictures, several labels a picture."""

from clipadapter.metrics.calibration import (
    Reliability,
    brier,
    classwise_calibration_error,
    expected_calibration_error,
    log_loss,
    reliability,
)
from clipadapter.metrics.detection import aurc, auroc, excess_aurc, fpr_at, risk_coverage
from clipadapter.metrics.evaluation import ClassReport, Evaluation, evaluate, mean_sd
from clipadapter.metrics.multilabel import MultiLabelEvaluation, average_precision, evaluate_multilabel

__all__ = [
    "ClassReport",
    "Evaluation",
    "MultiLabelEvaluation",
    "Reliability",
    "aurc",
    "auroc",
    "average_precision",
    "brier",
    "classwise_calibration_error",
    "evaluate",
    "evaluate_multilabel",
    "excess_aurc",
    "expected_calibration_error",
    "fpr_at",
    "log_loss",
    "mean_sd",
    "reliability",
    "risk_coverage",
]
