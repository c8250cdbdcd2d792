"""OpenVINO, the fastest on most CPUs; and its pair of files: ``.xml`` with the graph, ``.bin`` with the weights."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.errors import MissingExtraError
from clipadapter.runtime.engines.base import Backend, Runner, register_backend, unreadable_file
from clipadapter.runtime.engines.export_format import METADATA_KEY, ExportFormat, WriteFile
from clipadapter.runtime.engines.graphs import INPUT_PATTERN, InferenceGraph, Rows, TorchGraph
from clipadapter.runtime.engines.quantize import quantize_openvino
from clipadapter.runtime.engines.telemetry import require_without_telemetry, telemetry_disabled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
MIN_THROUGHPUT_SQUARES = 16
"""With so many squares in a call each core runs some of them; with fewer all cores work on one after another."""
TRANSFORMER_SQUARES_PER_CORE = 8
"""Largest batch of a core for a transformer; for convolutional towers see `PICTURES_PER_THREAD`."""


def import_openvino() -> Any:
    """The package, imported with telemetry off."""
    return require_without_telemetry("openvino", "openvino", "OpenVINO")


def convert(graph: TorchGraph, path: Path, rows: Rows | None) -> WriteFile:
    """See `ExportFormat.convert`."""
    import torch

    from clipadapter.runtime.engines.tracing import suppress_logs, trace

    with telemetry_disabled(), suppress_logs():
        ov = import_openvino()
        examples = graph.example_inputs
        dtype = ov.Type.u8 if examples[0].dtype == torch.uint8 else ov.Type.f32
        traced = trace(graph.module, *examples)
        shapes = [([-1, *example.shape[1:]], dtype) for example in examples]
        model = ov.convert_model(traced, example_input=examples[0] if len(examples) == 1 else examples, input=shapes)
        names = (*graph.input_names, *graph.output_names)
        for port, name in zip((*model.inputs, *model.outputs), names, strict=True):
            port.get_tensor().set_names({name})
        if rows is not None:
            calibration = [rows[name] for name in graph.input_names]
            is_transformer = any("attention" in type(each).__name__.lower() for each in graph.module.modules())
            model = quantize_openvino(model, calibration, is_transformer, graph.tower_output)
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


@register_backend("openvino")
class OpenVinoBackend(Backend):
    """OpenVINO of Intel, fast on AMD and ARM as well; in int8 post-training quantisation of NNCF."""

    title = "OpenVINO"
    precisions = ("fp32", "bf16", "int8")
    packages = ("openvino", "nncf")
    extra = "openvino"
    format = ExportFormat(
        name="openvino",
        title="OpenVINO",
        summary="a pair of files, the fastest on most CPUs",
        suffix=".xml",
        convert=convert,
        checksum_ending=(b"<!--sha256 ", b"-->"),
        extra="openvino",
        modules=("openvino",),
        distributions=("openvino", "nncf"),
        companion_suffixes=(".bin",),
    )
    opens = ("onnx",)

    @classmethod
    def open_file(cls, path: Path, threads: int | None = None) -> InferenceGraph:
        """See `Backend.open_file`. It runs on the CPU, in fp32 except for quantised operations."""
        if not cls.is_installed():
            raise MissingExtraError(f"{path.name} needs OpenVINO, which is not installed: pip install openvino")
        try:
            core = import_openvino().Core()
            core.set_property({"ENABLE_MMAP": False})  # a file that is overwritten must not change an open model
            # Weights lie beside the graph, or beside the target of a link to it.
            model = core.read_model(path if path.with_suffix(".bin").exists() else path.resolve())
            metadata = _read_metadata(model)
            more = {} if threads is None else {"INFERENCE_NUM_THREADS": str(threads)}
            compiled = _compile(core, model, **more)
        except Exception as error:  # its exceptions have no common base
            raise unreadable_file(path, cls.title, error, line=-1) from error
        # A tensor may have several names, or none.
        indices = {name: i for i, output in enumerate(compiled.outputs) for name in output.get_names()}
        widths = {name: _width(compiled.outputs[i].partial_shape) for name, i in indices.items()}
        inputs = tuple(next(filter(INPUT_PATTERN.fullmatch, sorted(each.get_names())), "") for each in compiled.inputs)
        request, lock = compiled.create_infer_request(), threading.Lock()

        def run(rows: Rows) -> dict[str, NDArray[Any]]:
            with lock:
                request.infer({i: rows[name] for i, name in enumerate(inputs)})
                return {name: request.get_output_tensor(i).data.copy() for name, i in indices.items()}

        return InferenceGraph(metadata, inputs, widths, run)

    def load(self, folder: Path, precision: str) -> Runner:
        """See `Backend.load`. A tower is compiled for low latency with few squares, and for throughput with many."""
        from clipadapter.utils.parallel import PICTURES_PER_THREAD

        per_core = PICTURES_PER_THREAD if self.is_convolutional(folder) else TRANSFORMER_SQUARES_PER_CORE
        compile_tower, lock = partial(_compile_tower, folder, precision, per_core), threading.Lock()
        # Either is quick to compile once the other was, but each has its copy of the weights in memory. The one for few
        # squares is dropped when many come for the first time. Both stay if few come after that.
        runs = {"LATENCY": compile_tower("LATENCY")}

        def run(squares: NDArray[np.uint8]) -> NDArray[np.float32]:
            hint = "LATENCY" if len(squares) < MIN_THROUGHPUT_SQUARES else "THROUGHPUT"
            with lock:
                if hint not in runs:
                    if hint == "THROUGHPUT":
                        runs.clear()  # first, so that the weights are in memory once
                    runs[hint] = compile_tower(hint)
                compiled = runs[hint]
            return compiled(squares)

        return run


def _compile_tower(folder: Path, precision: str, squares_per_core: int, performance_hint: str) -> Runner:
    """A converted tower as a function of squares. It is opened by its path: what was compiled once is beside it."""
    import numpy as np

    compiled = _compile(_core(), folder / "tower.xml", precision, performance_hint, CACHE_DIR=str(folder / "compiled"))
    is_split = performance_hint == "THROUGHPUT"
    n_requests = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")) if is_split else 1
    # Not AsyncInferQueue, whose threads call Python: one that does so while the process ends aborts it.
    requests, lock = [compiled.create_infer_request() for _ in range(n_requests)], threading.Lock()

    def run(squares: NDArray[np.uint8]) -> NDArray[np.float32]:
        per_request = -(-len(squares) // n_requests)
        batch_size = max(1, min(squares_per_core, per_request) if is_split else per_request)
        starts = range(0, len(squares), batch_size)
        outputs: list[NDArray[np.float32]] = []

        def take_next() -> None:
            request = requests[len(outputs) % n_requests]
            request.wait()
            outputs.append(request.get_output_tensor(0).data.astype("float32"))

        with lock:
            for i, start in enumerate(starts):
                if i >= n_requests:
                    take_next()
                requests[i % n_requests].start_async({0: squares[start : start + batch_size]})
            while len(outputs) < len(starts):
                take_next()
        return np.concatenate(outputs)

    return run


@cache
def _core() -> Any:
    return import_openvino().Core()


def _compile(core: Any, model: Any, precision: str = "fp32", performance_hint: str = "LATENCY", **more: str) -> Any:
    hints = {"INFERENCE_PRECISION_HINT": PRECISION_HINTS[precision], "PERFORMANCE_HINT": performance_hint}
    return core.compile_model(model, "CPU", {**hints, **more})


def _read_metadata(model: Any) -> str:
    """The metadata: of an OpenVINO file, or of an ONNX file, where OpenVINO has them at another place."""
    for keys in ([METADATA_KEY], ["framework", METADATA_KEY]):
        if model.has_rt_info(keys):
            value = model.get_rt_info(keys)
            return str(value.astype(str) if hasattr(value, "astype") else value)
    return ""


def _width(shape: Any) -> int:
    return int(shape[1].get_length()) if len(shape) == 2 and shape[1].is_static else 0
