"""OpenVINO: the fastest on most CPUs."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.engines._base import Calibration, ConvertingEngine, Runner, Tower
from clipadapter.engines._openvino_files import open_openvino, quantised
from clipadapter.engines._registry import register_engine
from clipadapter.engines._silent import nothing_told

FILE = "tower.xml"
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


@register_engine("openvino")
class OpenVinoEngine(ConvertingEngine):
    """Intel's runtime, fast on AMD and ARM as well; int8 by NNCF's quantisation after training."""

    precisions = ("fp32", "bf16", "int8")
    packages = ("openvino", "nncf")
    extra = "openvino"

    @classmethod
    def title(cls) -> str:
        """As its makers write it."""
        return "OpenVINO"

    def _convert(self, tower: Tower, precision: str, calibration: Calibration | None, folder: Path) -> None:
        from clipadapter.engines._modules import is_transformer, traced

        size = tower.pixels.size
        with nothing_told():
            ov = open_openvino()
            shape = [-1, size, size, 3]
            model = ov.convert_model(traced(tower), example_input=_example(size), input=[(shape, ov.Type.u8)])
            if precision == "int8" and calibration is not None and calibration.squares is not None:
                model = quantised(model, calibration.squares, is_transformer(tower.module))
            ov.save_model(model, folder / FILE, compress_to_fp16=False)

    def write(self, graph: Any, example: Any, path: Path) -> None:
        """A traced function of rows (n, d) float32, as a file that `open` reads.

        Args:
            graph: a ``torch.jit.ScriptModule``.
            example: some rows.
            path: ends in ``.xml``.
        """
        with nothing_told():
            ov = open_openvino()
            shape = [-1, example.shape[1]]
            model = ov.convert_model(graph, example_input=example, input=[(shape, ov.Type.f32)])
            ov.save_model(model, path, compress_to_fp16=False)

    def load(self, folder: Path, precision: str) -> Runner:
        """See `ConvertingEngine.load`."""
        return self.open(folder / FILE, precision)

    def open(self, path: Path, precision: str) -> Runner:
        """A graph with one input and one output, whose rows may be any number, as a function."""
        options = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",  # one batch on all cores: batches come one after another
            "CACHE_DIR": str(path.parent / "compiled"),
        }
        request = _core().compile_model(path, "CPU", options).create_infer_request()
        lock = threading.Lock()

        def run(rows: NDArray[Any]) -> NDArray[np.float32]:
            with lock:
                request.infer({0: rows})
                return np.array(request.get_output_tensor(0).data, dtype=np.float32)

        return run


@cache
def _core() -> Any:
    return open_openvino().Core()


def _example(size: int) -> Any:
    import torch

    return torch.zeros(2, size, size, 3, dtype=torch.uint8)
