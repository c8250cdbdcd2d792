"""OpenVINO: the fastest on most CPUs."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.backends._base import Calibration, ConvertingBackend, Runner, Tower
from clipadapter.backends._openvino_files import open_openvino, quantised
from clipadapter.backends._registry import register_backend
from clipadapter.backends._silent import nothing_told
from clipadapter.parallel import PICTURES_PER_THREAD

FILE = "tower.xml"
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
MANY = 16
"""Squares in one call from which each core takes some for itself, instead of all cores together one after another."""
ATTENDING = 8
"""Most squares that a core takes at a time where the tower is no convolutional one."""


@register_backend("openvino")
class OpenVinoBackend(ConvertingBackend):
    """Intel's runtime, fast on AMD and ARM as well; int8 by NNCF's quantisation after training."""

    precisions = ("fp32", "bf16", "int8")
    packages = ("openvino", "nncf")
    extra = "openvino"

    @classmethod
    def title(cls) -> str:
        """As its makers write it."""
        return "OpenVINO"

    def _convert(self, tower: Tower, precision: str, calibration: Calibration | None, folder: Path) -> None:
        from clipadapter.backends._modules import is_transformer, traced

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
        """See `ConvertingBackend.load`."""
        return _Graph(folder / FILE, precision, PICTURES_PER_THREAD if self.convolutional(folder) else ATTENDING)

    def open(self, path: Path, precision: str) -> Runner:
        """A graph with one input and one output, whose rows may be any number, as a function."""
        request = _compiled(path, precision, "LATENCY").create_infer_request()
        lock = threading.Lock()

        def run(rows: NDArray[Any]) -> NDArray[np.float32]:
            with lock:
                request.infer({0: rows})
                return _answer(request)

        return run


class _Graph:
    """A graph as a function of squares: few are worked on by all cores together, many by each core for itself.

    Both are quick to open once either was, but each has the weights in memory: those for few are given up when many
    come for the first time. Both stay if few come after that.

    Args:
        path: of the graph.
        precision: in which it runs.
        piece: most squares that a core takes at a time.
    """

    def __init__(self, path: Path, precision: str, piece: int) -> None:
        self._path, self._precision, self._piece = path, precision, piece
        self._lock = threading.Lock()
        self._few: Runner | None = self._open_few()
        self._many: Runner | None = None

    def __call__(self, squares: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Squares (n, s, s, 3) to (n, d)."""
        with self._lock:
            if len(squares) < MANY:
                run = self._few = self._few or self._open_few()
            else:
                if self._many is None:
                    self._few = None  # first, so that the weights are there once
                    self._many = self._open_many()
                run = self._many
        return run(squares)

    def _open_few(self) -> Runner:
        return OpenVinoBackend().open(self._path, self._precision)

    def _open_many(self) -> Runner:
        compiled, lock = _compiled(self._path, self._precision, "THROUGHPUT"), threading.Lock()
        jobs = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        queue = open_openvino().AsyncInferQueue(compiled, jobs)
        queue.set_callback(_keep)

        def run(squares: NDArray[np.uint8]) -> NDArray[np.float32]:
            piece = max(1, min(self._piece, -(-len(squares) // jobs)))
            found: dict[int, NDArray[np.float32]] = {}
            with lock:
                for start in range(0, len(squares), piece):
                    queue.start_async({0: squares[start : start + piece]}, (found, start))
                queue.wait_all()
            return np.concatenate([found[start] for start in sorted(found)])

        return run


def _keep(request: Any, place: tuple[dict[int, NDArray[np.float32]], int]) -> None:
    found, start = place
    found[start] = _answer(request)


def _answer(request: Any) -> NDArray[np.float32]:
    return np.array(request.get_output_tensor(0).data, dtype=np.float32)


def _compiled(path: Path, precision: str, hint: str) -> Any:
    options = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "PERFORMANCE_HINT": hint,
        "CACHE_DIR": str(path.parent / "compiled"),
    }
    return _core().compile_model(path, "CPU", options)


@cache
def _core() -> Any:
    return open_openvino().Core()


def _example(size: int) -> Any:
    import torch

    return torch.zeros(2, size, size, 3, dtype=torch.uint8)
