"""Open exported graphs with ONNX Runtime and OpenVINO. Both run on the CPU, in fp32 except for quantised operations."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.errors import ArtifactError, MissingExtraError
from clipadapter.formats.base import METADATA_KEY, InferenceBackend, InferenceGraph, Rows, is_input_name
from clipadapter.telemetry import require_without_telemetry

if TYPE_CHECKING:
    from numpy.typing import NDArray


def open_onnxruntime(path: Path, threads: int | None) -> InferenceGraph:
    """Open a file with ONNX Runtime; see `InferenceBackend.open`."""
    ort = require_without_telemetry("onnxruntime", "runtime", "An exported .onnx file")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # fatal errors; others are raised as well
    # Threads that wait for the next batch must not occupy the cores that decode it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    except Exception as error:  # its exceptions have no common base
        raise unreadable_file(path, "ONNX Runtime", str(error).split("\n")[0]) from error
    if metadata is None:
        raise foreign_file(path)
    input_names = tuple(each.name for each in session.get_inputs())
    output_names = [each.name for each in session.get_outputs()]

    def run(rows: Rows) -> dict[str, NDArray[Any]]:
        return dict(zip(output_names, session.run(output_names, dict(rows)), strict=True))

    widths = {each.name: _onnx_width(each.shape) for each in session.get_outputs()}
    return InferenceGraph(metadata, input_names, widths, run)


def open_openvino(path: Path, threads: int | None) -> InferenceGraph:
    """Open a file with OpenVINO; see `InferenceBackend.open`."""
    if not OPENVINO.is_installed():
        raise MissingExtraError(f"{path.name} needs OpenVINO, which is not installed: pip install openvino")
    ov = require_without_telemetry("openvino", "openvino", "OpenVINO")
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = str(threads)
    try:
        core = ov.Core()
        core.set_property({"ENABLE_MMAP": False})  # a file that is overwritten must not change an open model
        # Weights lie beside the graph, or beside the target of a link to it.
        model = core.read_model(path if path.with_suffix(".bin").exists() else path.resolve())
        metadata = _openvino_metadata(model)
        compiled = core.compile_model(model, "CPU", options)
    except Exception as error:  # its exceptions have no common base
        raise unreadable_file(path, "OpenVINO", str(error).strip().split("\n")[-1]) from error
    if not metadata:
        raise foreign_file(path)
    # A tensor may have several names, or none.
    indices = {name: i for i, output in enumerate(compiled.outputs) for name in output.get_names()}
    widths = {name: _openvino_width(compiled.outputs[i].partial_shape) for name, i in indices.items()}
    input_names = tuple(map(_openvino_input, compiled.inputs))
    request, lock = compiled.create_infer_request(), threading.Lock()

    def run(rows: Rows) -> dict[str, NDArray[Any]]:
        with lock:
            request.infer({i: rows[name] for i, name in enumerate(input_names)})
            return {name: request.get_output_tensor(i).data.copy() for name, i in indices.items()}

    return InferenceGraph(metadata, input_names, widths, run)


ONNX_RUNTIME = InferenceBackend("onnxruntime", "onnxruntime", open_onnxruntime)
OPENVINO = InferenceBackend("openvino", "openvino", open_openvino)


def unreadable_file(path: Path, runtime: str, reason: str) -> ArtifactError:
    """The error for a file that a runtime can't open."""
    return ArtifactError(f"{path} can't be opened by {runtime} ({reason}): copy or export it again")


def foreign_file(path: Path) -> ArtifactError:
    """The error for a file without metadata of this package."""
    return ArtifactError(f"{path} was not written by 'clipadapter export': it has no metadata with the classes")


def _onnx_width(shape: Sequence[Any]) -> int:
    return int(shape[1]) if len(shape) == 2 and isinstance(shape[1], int) else 0


def _openvino_metadata(model: Any) -> str:
    """The metadata: of an OpenVINO file, or of an ONNX file, where OpenVINO has them at another place."""
    for keys in ([METADATA_KEY], ["framework", METADATA_KEY]):
        if model.has_rt_info(keys):
            value = model.get_rt_info(keys)
            return str(value.astype(str) if hasattr(value, "astype") else value)
    return ""


def _openvino_input(tensor: Any) -> str:
    """That of the names of an input which this package gives; "" if it has none."""
    return next((name for name in sorted(tensor.get_names()) if is_input_name(name)), "")


def _openvino_width(shape: Any) -> int:
    return int(shape[1].get_length()) if len(shape) == 2 and shape[1].is_static else 0
