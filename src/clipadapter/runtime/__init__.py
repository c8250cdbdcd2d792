"""Predict without torch, with a file that `clipadapter export` wrote.

Needs numpy, Pillow, and ONNX Runtime or OpenVINO.
"""

from clipadapter.runtime.metadata import ExportMetadata
from clipadapter.runtime.predictor import DEFAULT_BATCH_SIZE, Outputs, Predictor

__all__ = ["DEFAULT_BATCH_SIZE", "ExportMetadata", "Outputs", "Predictor"]
