"""OpenVINO opens exported files."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import ArtifactError, MissingExtraError
from clipadapter.files import OPENVINO_WEIGHTS_SUFFIX
from clipadapter.runtime._graph import Graph
from clipadapter.runtime.metadata import INPUT_NAMES, METADATA_KEY
from clipadapter.telemetry import require_without_telemetry


def installed() -> bool:
    """Whether it can be imported."""
    return importlib.util.find_spec("openvino") is not None


def open_graph(path: Path, threads: int | None) -> Graph:
    """Open a file for the CPU, computed as it is written: in fp32 but for what was quantised.

    Raises:
        ArtifactError: if it is no such file, or not one of ours.
        MissingExtraError: if OpenVINO is not installed.
    """
    if not installed():
        raise MissingExtraError(f"{path.name} is to be run by OpenVINO, which is not installed: pip install openvino")
    ov = require_without_telemetry("openvino", "openvino", "What OpenVINO runs")
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = str(threads)
    try:
        core = ov.Core()
        core.set_property({"ENABLE_MMAP": False})  # a file that is written over would change a model that is open
        # Weights lie beside the graph, or beside what a link to it leads to.
        model = core.read_model(path if path.with_suffix(OPENVINO_WEIGHTS_SUFFIX).exists() else path.resolve())
        about = _about(model)
        compiled = core.compile_model(model, "CPU", options)
    except Exception as error:  # its exceptions have no common base
        reason = str(error).strip().split("\n")[-1]
        raise ArtifactError(f"{path} can't be opened by OpenVINO ({reason}): copy or export it again") from error
    if not about:
        raise ArtifactError(f"{path} was not written by 'clipadapter export': it says nothing of its classes")
    # A tensor may have several names, or none.
    places = {name: i for i, output in enumerate(compiled.outputs) for name in output.get_names()}
    widths = {name: _width(compiled.outputs[i].partial_shape) for name, i in places.items()}
    request, lock = compiled.create_infer_request(), threading.Lock()

    def run(rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
        with lock:
            request.infer({0: rows})
            return {name: np.array(request.get_output_tensor(i).data) for name, i in places.items()}

    return Graph(about, _source(compiled.inputs), widths, run)


def _about(model: Any) -> str:
    """The description: of a pair of ours, or of an ONNX file, whose metadata lie elsewhere."""
    for place in ([METADATA_KEY], ["framework", METADATA_KEY]):
        if model.has_rt_info(place):
            found = model.get_rt_info(place)
            return str(found.astype(str) if hasattr(found, "astype") else found)
    return ""


def _source(inputs: Any) -> str:
    """The name of the only input, as ours are called."""
    names = inputs[0].get_names() if len(inputs) == 1 else set()
    return next((name for name in INPUT_NAMES.values() if name in names), "")


def _width(shape: Any) -> int:
    return int(shape[1].get_length()) if len(shape) == 2 and shape[1].is_static else 0
