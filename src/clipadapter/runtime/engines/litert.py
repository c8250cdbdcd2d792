"""LiteRT (formerly TensorFlow Lite): one ``.tflite`` file, for phones and small devices.

Metadata are files in a ZIP archive at the end of the file, as LiteRT's own metadata are: ``unzip model.tflite`` lists
them, and LiteRT ignores them. The SHA-256 is the comment of the archive. The graph takes one picture at a time.
"""

from __future__ import annotations

import contextlib
import io
import json
import threading
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.errors import require
from clipadapter.runtime.engines.base import Backend, register_backend, unreadable_file
from clipadapter.runtime.engines.export_format import METADATA_KEY, ExportFormat, WriteFile
from clipadapter.runtime.engines.graphs import InferenceGraph, Rows, TorchGraph

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIGNATURE_KEY = "signature"
"""Key of the names of input and outputs: the converter calls them args_0, output_0, output_1 and so on."""
MAX_ENTRY_BYTES = 256 << 20


def convert(graph: TorchGraph, path: Path, rows: Rows | None) -> WriteFile:
    """See `ExportFormat.convert`."""
    from clipadapter.runtime.engines.tracing import suppress_logs

    with suppress_logs(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        litert_torch = require("litert_torch", "litert", "Export as LiteRT")
        # One picture: the converter writes the batch size of the example into the shapes of reshape operations.
        litert_torch.convert(graph.module, tuple(each[:1] for each in graph.example_inputs)).export(str(path))
    graph_bytes = path.stat().st_size
    first, *others = graph.input_names
    further = {"further_inputs": others} if others else {}
    signature = json.dumps({"input": first, **further, "outputs": list(graph.output_names)})

    def write(entries: Mapping[str, str]) -> list[Path]:
        with path.open("r+b") as file:
            file.truncate(graph_bytes)
        append_archive(path, {**entries, SIGNATURE_KEY: signature})
        return [path]

    return write


def append_archive(path: Path, entries: Mapping[str, str]) -> None:
    """Append an archive with texts by key, without the length of its comment, which `checksum_ending` begins with."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for key, text in entries.items():
            archive.writestr(f"{key}.json", text)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 2)  # two bytes: a length of 0


def read_archive(data: bytes, keys: Sequence[str]) -> dict[str, str]:
    """Texts of some keys."""
    texts = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for key in keys:
            info = archive.getinfo(f"{key}.json")
            if info.file_size > MAX_ENTRY_BYTES:
                raise ValueError(f"{info.filename} has {info.file_size} bytes")
            texts[key] = archive.read(info).decode("utf-8")
    return texts


@register_backend("litert")
class LiteRtBackend(Backend):
    """LiteRT of Google; it runs exported models only."""

    title = "LiteRT"
    packages = ("ai_edge_litert",)
    extra = "litert"
    format = ExportFormat(
        name="litert",
        title="LiteRT",
        summary="one file, for phones; the graph takes one picture at a time",
        suffix=".tflite",
        convert=convert,
        # The length of the comment of a ZIP archive, 64, in the last field before it.
        checksum_ending=(b"\x40\x00", b""),
        extra="litert",
        modules=("litert_torch",),
        distributions=("litert-torch", "ai-edge-litert"),
        precisions=("fp32",),
    )

    @classmethod
    def open_file(cls, path: Path, threads: int | None = None) -> InferenceGraph:
        """See `Backend.open_file`."""
        interpreters = require("ai_edge_litert.interpreter", "litert", "An exported .tflite file")
        data = path.read_bytes()  # a mapped file that is overwritten would change an open model
        try:
            texts = read_archive(data, (METADATA_KEY, SIGNATURE_KEY))
            signature = json.loads(texts[SIGNATURE_KEY])
            names = [str(name) for name in signature["outputs"]]
            input_names = tuple(str(name) for name in (signature["input"], *signature.get("further_inputs", ())))
        except (KeyError, ValueError, TypeError, NotImplementedError, RuntimeError, zipfile.BadZipFile):
            return InferenceGraph("", (), {}, lambda rows: {})  # of another program
        try:
            interpreter = interpreters.Interpreter(model_content=data, num_threads=threads)
            interpreter.allocate_tensors()
            run_one = interpreter.get_signature_runner()
            # Called args_0, args_1 and so on.
            arguments = dict(
                zip(sorted(run_one.get_input_details(), key=lambda name: (len(name), name)), input_names, strict=True)
            )
            details = run_one.get_output_details()
            shapes = {name: tuple(details[f"output_{i}"]["shape"]) for i, name in enumerate(names)}
        except Exception as error:  # its exceptions have no common base
            raise unreadable_file(path, cls.title, error) from error
        lock = threading.Lock()

        def run(rows: Rows) -> dict[str, NDArray[Any]]:
            import numpy as np

            with lock:
                n = len(rows[input_names[0]])
                outputs = [
                    run_one(**{each: rows[name][i : i + 1] for each, name in arguments.items()}) for i in range(n)
                ]
            return {name: np.concatenate([each[f"output_{i}"] for each in outputs]) for i, name in enumerate(names)}

        widths = {name: int(shape[1]) if len(shape) == 2 else 0 for name, shape in shapes.items()}
        return InferenceGraph(texts[METADATA_KEY], input_names, widths, run)
