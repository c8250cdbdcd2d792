"""Measuring: the few-shot protocol, suites, records, tables and plots. The test part is opened by `score` alone.

- A suite says what is to be measured: a TOML file with heads, data sets, shots and seeds.
- A fit is one head fitted once to one draw of shots; it is the unit of work of a launcher.
- A run is the measurement of one fit on one test part.
- A record is a run as it is stored, under a key that is a hash of everything that determines its metrics.
- An entry is one planned record of a suite; the plan of a suite is the list of its entries.
- A study is a suite with its entries and the records that exist.
"""

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.bundle_files import load_bundle, save_bundle
from clipadapter.bench.comparison import Comparison, compare
from clipadapter.bench.continual.learning import StreamTask, learn_task_stream
from clipadapter.bench.continual.metrics import ContinualMetrics, continual_metrics
from clipadapter.bench.continual.summary import stream_table
from clipadapter.bench.costs import Estimate, estimate
from clipadapter.bench.evaluation import (
    CrossValidation,
    ModelEvaluation,
    MultiLabelModelEvaluation,
    cross_validate_model,
    evaluate_model,
    evaluate_multilabel_model,
)
from clipadapter.bench.fitting import few_shot
from clipadapter.bench.launch import run_suite
from clipadapter.bench.methods import BASELINES, default_heads, method_version
from clipadapter.bench.plan import Plan, list_planned_suites
from clipadapter.bench.plots import draw_confusion_matrix, draw_learning_curve
from clipadapter.bench.protocols import create_protocol, list_protocols, register_protocol
from clipadapter.bench.protocols.cross_validation import cross_validate
from clipadapter.bench.records import RecordFolder
from clipadapter.bench.report import compare_heads, compare_studies, write_report
from clipadapter.bench.run import Run, append_runs, read_runs
from clipadapter.bench.sources import FEATURES, Source, open_source, split_in_halves, split_train_test
from clipadapter.bench.study import Study, load_study
from clipadapter.bench.suite import Suite, list_suites, load_suite
from clipadapter.bench.summary import summarise, table
from clipadapter.classifier.evaluation import Score, score

__all__ = [
    "MultiLabelModelEvaluation",
    "BASELINES",
    "FEATURES",
    "Bundle",
    "Comparison",
    "CrossValidation",
    "ContinualMetrics",
    "Estimate",
    "ModelEvaluation",
    "Plan",
    "RecordFolder",
    "Run",
    "Score",
    "Source",
    "StreamTask",
    "Study",
    "Suite",
    "TestPart",
    "append_runs",
    "compare",
    "compare_heads",
    "compare_studies",
    "draw_confusion_matrix",
    "continual_metrics",
    "create_protocol",
    "cross_validate",
    "cross_validate_model",
    "default_heads",
    "estimate",
    "evaluate_model",
    "evaluate_multilabel_model",
    "few_shot",
    "split_in_halves",
    "draw_learning_curve",
    "list_protocols",
    "list_suites",
    "load_bundle",
    "load_study",
    "load_suite",
    "method_version",
    "open_source",
    "list_planned_suites",
    "read_runs",
    "register_protocol",
    "run_suite",
    "save_bundle",
    "score",
    "learn_task_stream",
    "stream_table",
    "summarise",
    "table",
    "split_train_test",
    "write_report",
]
