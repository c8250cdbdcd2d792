"""Answers without torch: a file that `clipadapter export` wrote, and a saved model's quick entry.

Needs numpy, Pillow, and ONNX Runtime or OpenVINO.
"""

from clipadapter.runtime._about import About
from clipadapter.runtime._model import BATCH, Outputs, RuntimeModel
from clipadapter.runtime._predictor import Predictor

__all__ = ["BATCH", "About", "Outputs", "Predictor", "RuntimeModel"]
