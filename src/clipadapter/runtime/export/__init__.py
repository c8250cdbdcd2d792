"""Export a fitted model as one file that predicts without this package: image tower, head, calibration and rejection.

The outputs of the file are compared with those of the model before the file gets its name; see docs/export.md.
"""

from clipadapter.runtime.export.evaluation import evaluate_file
from clipadapter.runtime.export.exporter import ExportResult, export_model

__all__ = ["ExportResult", "evaluate_file", "export_model"]
