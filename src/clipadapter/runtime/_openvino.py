"""OpenVINO opens exported files."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.engines._silent import require_silent
from clipadapter.errors import ArtifactError
from clipadapter.runtime._about import KEY
from clipadapter.runtime._graph import Graph


def installed() -> bool:
    """Whether it can be imported."""
    return importlib.util.find_spec("openvino") is not None


def open_graph(path: Path, threads: int | None) -> Graph:
    """Open a file for the CPU, computed as it is written: in fp32 but for what was quantised.

    Raises:
        ArtifactError: if it is no such file, or not one of ours.
        MissingExtraError: if OpenVINO is not installed.
    """
    ov = require_silent("openvino", "openvino", "An exported .xml file")
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = str(threads)
    try:
        core = ov.Core()
        model = core.read_model(path)
        about = _about(model)
        compiled = core.compile_model(model, "CPU", options)
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[-1]
        raise ArtifactError(f"{path} can't be opened by OpenVINO ({reason}): copy or export it again") from error
    if not about:
        raise ArtifactError(f"{path} was not written by 'clipadapter export': it says nothing of its classes")
    names = [output.get_any_name() for output in compiled.outputs]
    widths = {name: _width(out.partial_shape) for name, out in zip(names, compiled.outputs, strict=True)}
    request, lock = compiled.create_infer_request(), threading.Lock()

    def run(rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
        with lock:
            request.infer({0: rows})
            return {name: np.array(request.get_output_tensor(i).data) for i, name in enumerate(names)}

    return Graph(about, compiled.inputs[0].get_any_name(), widths, run)


def _about(model: Any) -> str:
    """The description: of a pair of ours, or of an ONNX file, whose metadata lie elsewhere."""
    for place in ([KEY], ["framework", KEY]):
        if model.has_rt_info(place):
            found = model.get_rt_info(place)
            return str(found.astype(str) if hasattr(found, "astype") else found)
    return ""


def _width(shape: Any) -> int:
    return int(shape[1].get_length()) if len(shape) == 2 and shape[1].is_static else 0
