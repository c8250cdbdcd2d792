"""Predict without torch: with a file that `clipadapter export` wrote, or with the quick entry of a saved model.

Needs numpy, Pillow, and ONNX Runtime or OpenVINO.
"""

from clipadapter.runtime.metadata import ExportMetadata
from clipadapter.runtime.model import DEFAULT_BATCH_SIZE, Outputs, RuntimeModel
from clipadapter.runtime.predictor import Predictor

__all__ = ["DEFAULT_BATCH_SIZE", "ExportMetadata", "Outputs", "Predictor", "RuntimeModel"]
