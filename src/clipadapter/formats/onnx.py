"""ONNX: one ``.onnx`` file, for ONNX Runtime and many other runtimes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from clipadapter.conversion.onnx import MAX_FILE_BYTES, quantize_onnx, suppress_logs, write_onnx
from clipadapter.errors import InputError, require
from clipadapter.formats.base import ExportFormat, GraphModule, Rows, WriteFile
from clipadapter.formats.sessions import ONNX_RUNTIME, OPENVINO

if TYPE_CHECKING:
    from torch import nn

FLOAT_CONVOLUTIONS = 6
"""Convolutions at the beginning that stay in float in int8: with three, the smallest cosine of `lite` to fp32 was 0.984
on 64 pictures of Caltech-101, with six 0.993, with twelve 0.995."""


def convert(graph: GraphModule, path: Path, rows: Rows | None) -> WriteFile:
    """See `ExportFormat.convert`."""
    weight_bytes = graph.count_weight_bytes()
    if weight_bytes >= MAX_FILE_BYTES:
        raise InputError(
            f"the model has {weight_bytes / 2**30:.1f} GiB of weights, but an ONNX file holds less than 2 GiB: export "
            "it as OpenVINO (format openvino), or use a smaller encoder"
        )
    steps = path.parent / "steps"
    steps.mkdir()  # a separate folder: the file may have the same name as an intermediate one
    float_file = steps / "plain.onnx" if rows is not None else path
    with suppress_logs():
        write_onnx(cast("nn.Module", graph), graph.example_inputs, float_file, graph.input_names, graph.output_names)
        if rows is not None:
            quantize_onnx(float_file, path, rows, FLOAT_CONVOLUTIONS, float_after=graph.tower_output)
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


FORMAT = ExportFormat(
    name="onnx",
    title="ONNX",
    summary="one file, for ONNX Runtime and many other runtimes",
    suffix=".onnx",
    backends=(ONNX_RUNTIME, OPENVINO),
    convert=convert,
    # Field 14 of ModelProto, `metadata_props`: 74 bytes, of which field 1 is the key and field 2 the value.
    checksum_ending=(b"rJ\n\x06sha256\x12@", b""),
    extra="onnx",
    modules=("onnx", "onnxruntime"),
    distributions=("onnx", "onnxruntime"),
)
