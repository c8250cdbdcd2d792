"""The OpenVINO backend, the fastest on most CPUs."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.backends.base import ConvertingBackend, Int8Calibration, Runner, Tower
from clipadapter.backends.registry import register_backend
from clipadapter.conversion.openvino import import_openvino, quantize_openvino
from clipadapter.parallel import PICTURES_PER_THREAD
from clipadapter.telemetry import telemetry_disabled

TOWER_FILE = "tower.xml"
PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
MIN_THROUGHPUT_SQUARES = 16
"""With so many squares in a call each core runs some of them; with fewer all cores work on one after another."""
TRANSFORMER_SQUARES_PER_CORE = 8
"""Largest batch of a core for a transformer; for convolutional towers see `PICTURES_PER_THREAD`."""


@register_backend("openvino")
class OpenVinoBackend(ConvertingBackend):
    """OpenVINO of Intel, fast on AMD and ARM as well; in int8 post-training quantisation of NNCF."""

    precisions = ("fp32", "bf16", "int8")
    packages = ("openvino", "nncf")
    extra = "openvino"

    @classmethod
    def title(cls) -> str:
        """The name as its authors write it."""
        return "OpenVINO"

    def _convert(self, tower: Tower, precision: str, calibration: Int8Calibration | None, folder: Path) -> None:
        from clipadapter.conversion.tracing import SquareTower, example_squares, is_transformer, trace

        size, example = tower.pixels.size, example_squares(tower.pixels)
        with telemetry_disabled():
            ov = import_openvino()
            graph = trace(SquareTower(tower.module, tower.pixels).eval(), example)
            model = ov.convert_model(graph, example_input=example, input=[([-1, size, size, 3], ov.Type.u8)])
            if precision == "int8" and calibration is not None and calibration.squares is not None:
                model = quantize_openvino(model, [calibration.squares], is_transformer(tower.module))
            ov.save_model(model, folder / TOWER_FILE, compress_to_fp16=False)

    def write_graph(self, graph: Any, example: Any, path: Path) -> None:
        """Write a traced function of rows (n, d) float32 as a file that `open_graph` reads.

        Args:
            graph: a ``torch.jit.ScriptModule``.
            example: some rows.
            path: ends in ``.xml``.
        """
        with telemetry_disabled():
            ov = import_openvino()
            model = ov.convert_model(graph, example_input=example, input=[([-1, example.shape[1]], ov.Type.f32)])
            ov.save_model(model, path, compress_to_fp16=False)

    def load(self, folder: Path, precision: str) -> Runner:
        """See `ConvertingBackend.load`."""
        per_core = PICTURES_PER_THREAD if self.is_convolutional(folder) else TRANSFORMER_SQUARES_PER_CORE
        return _TowerGraph(folder / TOWER_FILE, precision, per_core)

    def open_graph(self, path: Path, precision: str) -> Runner:
        """Open a graph with one input and one output, for any number of rows, as a function."""
        request = _compile_graph(path, precision, "LATENCY").create_infer_request()
        lock = threading.Lock()

        def run(rows: NDArray[Any]) -> NDArray[np.float32]:
            with lock:
                request.infer({0: rows})
                return _copy_output(request)

        return run


class _TowerGraph:
    """A tower as a function of squares, compiled for low latency with few squares and for throughput with many.

    Either is quick to compile once the other was, but each has its copy of the weights in memory. The one for few
    squares is dropped when many come for the first time. Both stay if few come after that.

    Args:
        path: of the graph.
        precision: in which it runs.
        squares_per_core: largest batch of a core.
    """

    def __init__(self, path: Path, precision: str, squares_per_core: int) -> None:
        self._path, self._precision, self._squares_per_core = path, precision, squares_per_core
        self._lock = threading.Lock()
        self._latency_run: Runner | None = self._compile_for_latency()
        self._throughput_run: Runner | None = None

    def __call__(self, squares: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Squares (n, s, s, 3) to (n, d)."""
        with self._lock:
            if len(squares) < MIN_THROUGHPUT_SQUARES:
                run = self._latency_run = self._latency_run or self._compile_for_latency()
            else:
                if self._throughput_run is None:
                    self._latency_run = None  # first, so that the weights are in memory once
                    self._throughput_run = self._compile_for_throughput()
                run = self._throughput_run
        return run(squares)

    def _compile_for_latency(self) -> Runner:
        return OpenVinoBackend().open_graph(self._path, self._precision)

    def _compile_for_throughput(self) -> Runner:
        compiled, lock = _compile_graph(self._path, self._precision, "THROUGHPUT"), threading.Lock()
        n_requests = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        queue = import_openvino().AsyncInferQueue(compiled, n_requests)
        queue.set_callback(_store_output)

        def run(squares: NDArray[np.uint8]) -> NDArray[np.float32]:
            batch_size = max(1, min(self._squares_per_core, -(-len(squares) // n_requests)))
            outputs: dict[int, NDArray[np.float32]] = {}
            with lock:
                for start in range(0, len(squares), batch_size):
                    queue.start_async({0: squares[start : start + batch_size]}, (outputs, start))
                queue.wait_all()
            return np.concatenate([outputs[start] for start in sorted(outputs)])

        return run


def _store_output(request: Any, target: tuple[dict[int, NDArray[np.float32]], int]) -> None:
    outputs, start = target
    outputs[start] = _copy_output(request)


def _copy_output(request: Any) -> NDArray[np.float32]:
    return np.array(request.get_output_tensor(0).data, dtype=np.float32)


def _compile_graph(path: Path, precision: str, performance_hint: str) -> Any:
    options = {
        "INFERENCE_PRECISION_HINT": PRECISION_HINTS[precision],
        "PERFORMANCE_HINT": performance_hint,
        "CACHE_DIR": str(path.parent / "compiled"),
    }
    return _core().compile_model(path, "CPU", options)


@cache
def _core() -> Any:
    return import_openvino().Core()
