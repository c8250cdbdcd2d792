"""OpenVINO: a pair of files, ``.xml`` with the graph and ``.bin`` with the weights."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from clipadapter.conversion.onnx import suppress_logs
from clipadapter.conversion.openvino import import_openvino, quantize_openvino
from clipadapter.formats.base import ExportFormat, GraphModule, Rows, WriteFile
from clipadapter.formats.sessions import OPENVINO
from clipadapter.telemetry import telemetry_disabled

if TYPE_CHECKING:
    from torch import nn


def convert(graph: GraphModule, path: Path, rows: Rows | None) -> WriteFile:
    """See `ExportFormat.convert`."""
    from clipadapter.conversion.tracing import is_transformer, trace

    with telemetry_disabled(), suppress_logs():
        ov = import_openvino()
        examples = graph.example_inputs
        dtype = ov.Type.u8 if graph.input_kind == "uint8" else ov.Type.f32
        traced = trace(cast("nn.Module", graph), *examples)
        shapes = [([-1, *example.shape[1:]], dtype) for example in examples]
        model = ov.convert_model(traced, example_input=examples[0] if len(examples) == 1 else examples, input=shapes)
        for tensor, name in zip(model.inputs, graph.input_names, strict=True):
            tensor.get_tensor().set_names({name})
        for output, name in zip(model.outputs, graph.output_names, strict=True):
            output.get_tensor().set_names({name})
        if rows is not None:
            calibration = [rows[name] for name in graph.input_names]
            model = quantize_openvino(model, calibration, is_transformer(graph.tower), float_after=graph.tower_output)
    numbers = itertools.count(1)

    def write(entries: Mapping[str, str]) -> list[Path]:
        # A new folder each time: the weights of the pair before may be mapped into memory.
        folder = path.parent / str(next(numbers))
        folder.mkdir()
        file = folder / path.name
        with telemetry_disabled():
            for key, value in entries.items():
                model.set_rt_info(value, [key])
            try:
                import_openvino().save_model(model, file, compress_to_fp16=False)
            except RuntimeError as error:  # most likely a full disk: OpenVINO does not say
                raise OSError(str(error).strip().split("\n")[-1]) from error
        return [file.with_suffix(".bin"), file]

    return write


FORMAT = ExportFormat(
    name="openvino",
    title="OpenVINO",
    summary="a pair of files, the fastest on most CPUs",
    suffix=".xml",
    backends=(OPENVINO,),
    convert=convert,
    checksum_ending=(b"<!--sha256 ", b"-->"),
    extra="openvino",
    modules=("openvino",),
    distributions=("openvino", "nncf"),
    companion_suffixes=(".bin",),
)
