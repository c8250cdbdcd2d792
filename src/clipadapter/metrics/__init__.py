"""Metrics of predictions: accuracy and F1, calibration, out-of-distribution detection, multi-label; their table."""

from clipadapter.metrics.calibration import (
    Reliability,
    expected_calibration_error,
    log_loss,
    reliability,
)
from clipadapter.metrics.detection import aurc, auroc, fpr_at, risk_coverage
from clipadapter.metrics.evaluation import ClassReport, Evaluation, Predictions, evaluate, mean_sd
from clipadapter.metrics.extrapolation import AccuracyForecast, forecast_accuracy
from clipadapter.metrics.intervals import (
    Estimate,
    MetricsWithIntervals,
    bootstrap_metrics,
    percentile_interval,
    wilson_interval,
)
from clipadapter.metrics.multilabel import (
    MultiLabelEvaluation,
    MultiLabelPredictions,
    average_precision,
    evaluate_multilabel,
)
from clipadapter.metrics.table import METRICS, MetricInfo, check_metrics, metrics_shown

__all__ = [
    "AccuracyForecast",
    "METRICS",
    "ClassReport",
    "Estimate",
    "Evaluation",
    "MetricInfo",
    "MetricsWithIntervals",
    "MultiLabelEvaluation",
    "MultiLabelPredictions",
    "Predictions",
    "Reliability",
    "aurc",
    "auroc",
    "average_precision",
    "bootstrap_metrics",
    "check_metrics",
    "evaluate",
    "evaluate_multilabel",
    "expected_calibration_error",
    "forecast_accuracy",
    "fpr_at",
    "log_loss",
    "mean_sd",
    "metrics_shown",
    "percentile_interval",
    "reliability",
    "risk_coverage",
    "wilson_interval",
]
