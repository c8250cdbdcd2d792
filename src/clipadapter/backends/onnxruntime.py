"""ONNX Runtime: runs where OpenVINO does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipadapter.backends._base import Calibration, ConvertingBackend, Runner, Tower
from clipadapter.backends._onnx_files import LARGEST, quantise, quiet
from clipadapter.backends._registry import register_backend
from clipadapter.backends._silent import require_silent
from clipadapter.errors import InputError
from clipadapter.parallel import PICTURES_PER_THREAD, count_cores, map_row_batches

FILE = "tower.onnx"
INPUT = "squares"


@register_backend("onnxruntime")
class OnnxRuntimeBackend(ConvertingBackend):
    """Microsoft's runtime; int8 by its own static quantisation, of products with weights only."""

    precisions = ("fp32", "int8")
    packages = ("onnxruntime", "onnx")
    extra = "onnx"

    @classmethod
    def title(cls) -> str:
        """As its makers write it."""
        return "ONNX Runtime"

    def _convert(self, tower: Tower, precision: str, calibration: Calibration | None, folder: Path) -> None:
        from clipadapter.backends._modules import write_onnx

        plain = folder / ("plain.onnx" if precision == "int8" else FILE)
        _check_size(tower)
        with quiet():
            write_onnx(tower, plain, INPUT)
            if precision == "int8" and calibration is not None and calibration.squares is not None:
                quantise(plain, folder / FILE, INPUT, calibration.squares)

    def load(self, folder: Path, precision: str) -> Runner:
        """See `ConvertingBackend.load`."""
        ort = require_silent("onnxruntime", self.extra, "The ONNX Runtime backend")
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors
        # Threads that wait for the next batch must leave the cores to those that decode it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = ort.InferenceSession(str(folder / FILE), options, providers=["CPUExecutionProvider"])

        def run(squares: NDArray[np.uint8]) -> NDArray[np.float32]:
            features: NDArray[np.float32] = session.run(None, {INPUT: squares})[0]
            return features

        if not self.convolutional(folder):
            return run
        return lambda squares: map_row_batches(run, squares, PICTURES_PER_THREAD * count_cores())


def _check_size(tower: Tower) -> None:
    size = sum(weight.numel() * weight.element_size() for weight in tower.module.parameters())
    if size >= LARGEST:
        raise InputError(
            f"the image tower of {tower.name} has {size / 2**30:.1f} GiB of weights, but the ONNX Runtime backend "
            "converts less than 2 GiB: use the backend 'openvino' or 'torch'"
        )
