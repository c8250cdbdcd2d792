"""Measuring: the few-shot protocol, records, tables and plots. The test part is opened by `score` alone."""

from clipadapter.bench.comparison import Comparison, compare, halves, train_and_test
from clipadapter.bench.evaluation import ModelEvaluation, evaluate_model
from clipadapter.bench.plots import confusion_matrix, learning_curve
from clipadapter.bench.protocol import BASELINES, default_heads, few_shot
from clipadapter.bench.report import summarise, table
from clipadapter.bench.run import Run, append_runs, read_runs
from clipadapter.bench.score import Score, score

__all__ = [
    "BASELINES",
    "Comparison",
    "ModelEvaluation",
    "Run",
    "Score",
    "append_runs",
    "compare",
    "confusion_matrix",
    "default_heads",
    "evaluate_model",
    "few_shot",
    "halves",
    "learning_curve",
    "read_runs",
    "score",
    "summarise",
    "table",
    "train_and_test",
]
