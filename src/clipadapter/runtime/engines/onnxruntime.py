"""ONNX Runtime, for systems without OpenVINO; and ONNX: one ``.onnx`` file, for it and many other runtimes."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.errors import InputError, require
from clipadapter.runtime.engines.base import Backend, Runner, register_backend, unreadable_file
from clipadapter.runtime.engines.export_format import METADATA_KEY, ExportFormat, WriteFile
from clipadapter.runtime.engines.graphs import FEATURES_OUTPUT, InferenceGraph, Rows, TorchGraph
from clipadapter.runtime.engines.quantize import quantize_onnx
from clipadapter.runtime.engines.telemetry import require_without_telemetry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

MAX_FILE_BYTES = 1 << 31  # limit of the format; larger models need a second file for their weights
OPSET = 17  # the first version of ONNX with layer norm as one operator; torch 2.6 and later can write it


def convert(graph: TorchGraph, path: Path, rows: Rows | None) -> WriteFile:
    """See `ExportFormat.convert`."""
    from clipadapter.runtime.engines.tracing import suppress_logs

    tensors = (*graph.module.parameters(), *graph.module.buffers())
    weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors) + graph.constant_bytes
    if weight_bytes >= MAX_FILE_BYTES:
        raise InputError(
            f"the model has {weight_bytes / 2**30:.1f} GiB of weights, but an ONNX file holds less than 2 GiB: "
            "use OpenVINO (format openvino, backend openvino), or a smaller encoder"
        )
    steps = path.parent / "onnx"
    steps.mkdir()  # a separate folder: the file may have the same name as an intermediate one
    float_file = steps / "plain.onnx" if rows is not None else path
    with suppress_logs():
        write_onnx(graph.module, graph.example_inputs, float_file, graph.input_names, graph.output_names)
        if rows is not None:
            quantize_onnx(float_file, path, rows, graph.tower_output)
    graph_bytes = path.stat().st_size

    def write(entries: Mapping[str, str]) -> list[Path]:
        metadata = require("onnx", "onnx", "Export as ONNX").ModelProto()
        for key, value in entries.items():
            entry = metadata.metadata_props.add()
            entry.key, entry.value = key, value
        # Two messages of protobuf one after the other are their union, so that the weights need not be read again.
        with path.open("r+b") as file:
            file.truncate(graph_bytes)
            file.seek(graph_bytes)
            file.write(metadata.SerializeToString())
        return [path]

    return write


def write_onnx(
    module: nn.Module, examples: Sequence[Tensor], path: Path, input_names: Sequence[str], output_names: Sequence[str]
) -> None:
    """Write a module as an ONNX file for any number of rows; each of its example inputs has two."""
    import torch

    from clipadapter.runtime.engines.tracing import unfused_attention

    # Torch's newer exporter gives the same numbers, but takes four times as long and needs a further package. This one
    # prints the whole graph when it fails.
    with unfused_attention(), torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(examples),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_axes={name: {0: "n"} for name in (*input_names, *output_names)},
        )


@register_backend("onnxruntime")
class OnnxRuntimeBackend(Backend):
    """ONNX Runtime of Microsoft; in int8 its static quantisation, of products with weights only."""

    title = "ONNX Runtime"
    precisions = ("fp32", "int8")
    packages = ("onnxruntime", "onnx")
    extra = "onnx"
    format = ExportFormat(
        name="onnx",
        title="ONNX",
        summary="one file, for ONNX Runtime and many other runtimes",
        suffix=".onnx",
        convert=convert,
        # Field 14 of ModelProto, `metadata_props`: 74 bytes, of which field 1 is the key and field 2 the value.
        checksum_ending=(b"rJ\n\x06sha256\x12@", b""),
        extra="onnx",
        modules=("onnx", "onnxruntime"),
        distributions=("onnx", "onnxruntime"),
    )

    @classmethod
    def open_file(cls, path: Path, threads: int | None = None) -> InferenceGraph:
        """See `Backend.open_file`. It runs on the CPU, in fp32 except for quantised operations."""
        ort = require_without_telemetry("onnxruntime", "onnx", "An exported .onnx file")
        options = ort.SessionOptions()
        options.log_severity_level = 4  # fatal errors; others are raised as well
        # Threads that wait for the next batch must not occupy the cores that decode it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            metadata = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "")
        except Exception as error:  # its exceptions have no common base
            raise unreadable_file(path, cls.title, error) from error
        outputs = session.get_outputs()
        names = [each.name for each in outputs]

        def run(rows: Rows) -> dict[str, NDArray[Any]]:
            return dict(zip(names, session.run(names, dict(rows)), strict=True))

        widths = {each.name: _width(each.shape) for each in outputs}
        return InferenceGraph(metadata, tuple(each.name for each in session.get_inputs()), widths, run)

    def load(self, folder: Path, precision: str) -> Runner:
        """See `Backend.load`."""
        import numpy as np

        from clipadapter.utils.parallel import PICTURES_PER_THREAD, count_cores

        graph, size = self.open_file(folder / "tower.onnx"), PICTURES_PER_THREAD * count_cores()
        is_convolutional = self.is_convolutional(folder)

        def run(squares: NDArray[np.uint8]) -> NDArray[np.float32]:
            starts = range(0, len(squares), size) if is_convolutional else ()
            batches = [squares[i : i + size] for i in starts] or [squares]
            return np.concatenate([graph.run({graph.inputs[0]: batch})[FEATURES_OUTPUT] for batch in batches])

        return run


def _width(shape: Sequence[Any]) -> int:
    return int(shape[1]) if len(shape) == 2 and isinstance(shape[1], int) else 0
