"""The ONNX Runtime backend, for systems without OpenVINO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipadapter.backends.base import ConvertingBackend, Int8Calibration, Runner, Tower
from clipadapter.backends.registry import register_backend
from clipadapter.conversion.onnx import MAX_FILE_BYTES, quantize_onnx, suppress_logs, write_onnx
from clipadapter.errors import InputError
from clipadapter.parallel import PICTURES_PER_THREAD, count_cores, map_row_batches
from clipadapter.telemetry import require_without_telemetry

TOWER_FILE = "tower.onnx"
INPUT_NAME = "squares"


@register_backend("onnxruntime")
class OnnxRuntimeBackend(ConvertingBackend):
    """ONNX Runtime of Microsoft; in int8 its static quantisation, of products with weights only."""

    precisions = ("fp32", "int8")
    packages = ("onnxruntime", "onnx")
    extra = "onnx"

    @classmethod
    def title(cls) -> str:
        """The name as its authors write it."""
        return "ONNX Runtime"

    def _convert(self, tower: Tower, precision: str, calibration: Int8Calibration | None, folder: Path) -> None:
        from clipadapter.conversion.tracing import SquareTower, example_squares

        float_file = folder / ("plain.onnx" if precision == "int8" else TOWER_FILE)
        _check_size(tower)
        module = SquareTower(tower.module, tower.pixels).eval()
        with suppress_logs():
            try:
                write_onnx(module, [example_squares(tower.pixels)], float_file, [INPUT_NAME], ["features"])
            except RuntimeError as error:
                reason = str(error).split("\n")[0]
                raise InputError(
                    f"the image tower of {tower.name} can't be written as ONNX ({reason}): use backend 'openvino' or "
                    "'torch'"
                ) from error
            if precision == "int8" and calibration is not None and calibration.squares is not None:
                quantize_onnx(float_file, folder / TOWER_FILE, {INPUT_NAME: calibration.squares})

    def load(self, folder: Path, precision: str) -> Runner:
        """See `ConvertingBackend.load`."""
        ort = require_without_telemetry("onnxruntime", self.extra, "The ONNX Runtime backend")
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors
        # Threads that wait for the next batch must not occupy the cores that decode it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = ort.InferenceSession(str(folder / TOWER_FILE), options, providers=["CPUExecutionProvider"])

        def run(squares: NDArray[np.uint8]) -> NDArray[np.float32]:
            features: NDArray[np.float32] = session.run(None, {INPUT_NAME: squares})[0]
            return features

        if not self.is_convolutional(folder):
            return run
        return lambda squares: map_row_batches(run, squares, PICTURES_PER_THREAD * count_cores())


def _check_size(tower: Tower) -> None:
    weight_bytes = sum(weight.numel() * weight.element_size() for weight in tower.module.parameters())
    if weight_bytes >= MAX_FILE_BYTES:
        raise InputError(
            f"the image tower of {tower.name} has {weight_bytes / 2**30:.1f} GiB of weights, but the ONNX Runtime "
            "backend converts less than 2 GiB: use the backend 'openvino' or 'torch'"
        )
