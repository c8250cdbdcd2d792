"""ONNX Runtime opens exported files."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from clipadapter.errors import ArtifactError
from clipadapter.runtime._graph import Graph
from clipadapter.runtime.metadata import METADATA_KEY
from clipadapter.telemetry import require_without_telemetry


def installed() -> bool:
    """Whether it can be imported."""
    return importlib.util.find_spec("onnxruntime") is not None


def open_graph(path: Path, threads: int | None) -> Graph:
    """Open a file for the CPU.

    Raises:
        ArtifactError: if it is no ONNX file, or not one of ours.
        MissingExtraError: if ONNX Runtime is not installed.
    """
    ort = require_without_telemetry("onnxruntime", "runtime", "An exported .onnx file")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # fatal errors; others are raised as well
    # Threads that wait for the next batch must leave the cores to those that read it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        about = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    except Exception as error:  # its exceptions have no common base
        reason = str(error).split("\n")[0]
        raise ArtifactError(f"{path} can't be opened by ONNX Runtime ({reason}): copy or export it again") from error
    if about is None:
        raise ArtifactError(f"{path} was not written by 'clipadapter export': it says nothing of its classes")
    names, inputs = [output.name for output in session.get_outputs()], [each.name for each in session.get_inputs()]
    source = inputs[0] if len(inputs) == 1 else ""

    def run(rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return dict(zip(names, session.run(names, {source: rows}), strict=True))

    return Graph(about, source, {each.name: _width(each.shape) for each in session.get_outputs()}, run)


def _width(shape: list[Any]) -> int:
    return int(shape[1]) if len(shape) == 2 and isinstance(shape[1], int) else 0
