"""The formats: how a graph becomes files, in the precision asked for, with a description in them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from clipadapter.conversion.onnx import MAX_FILE_BYTES, quantize_onnx, suppress_logs, write_onnx
from clipadapter.conversion.openvino import import_openvino, quantize_openvino
from clipadapter.conversion.tracing import is_transformer, trace
from clipadapter.errors import InputError, require
from clipadapter.export.graph import FEATURES, ModelGraph
from clipadapter.files import ONNX_SUFFIX, OPENVINO_SUFFIX, OPENVINO_WEIGHTS_SUFFIX
from clipadapter.runtime._checksum import append_checksum
from clipadapter.telemetry import require_without_telemetry, telemetry_disabled

FIRST = 6
"""Convolutions at the beginning that stay in float in int8 as ONNX: with three, the worst cosine of `lite` to fp32 was
0.984 on 64 pictures of Caltech-101, with six 0.993, with twelve 0.995."""


class ModelFile(ABC):
    """A graph in one format.

    Args:
        graph: the model.
        folder: where files are written, and nothing else is.
        name: of the file.
    """

    suffix: ClassVar[str]
    runtime: ClassVar[str]
    """What runs it, as `clipadapter.runtime.Predictor` takes it."""

    def __init__(self, graph: ModelGraph, folder: Path, name: str) -> None:
        self.graph, self.folder, self.name = graph, folder, name

    @classmethod
    @abstractmethod
    def check(cls) -> None:
        """Refuse what can't be made here.

        Raises:
            MissingExtraError: if a package is missing.
        """

    @abstractmethod
    def convert(self, rows: NDArray[Any] | None) -> None:
        """Make the graph one of this format.

        Args:
            rows: pictures as the graph takes them, that set the ranges of int8; None for fp32.

        Raises:
            Exception: of the converter, if the format can't say what it does.
            InputError: if it is too large, or the head is no fixed function of features.
        """

    @abstractmethod
    def write(self, texts: Mapping[str, str]) -> list[Path]:
        """Write it with these texts as its description, and its checksum; the file that is opened comes last.

        Raises:
            OSError: if there is no room for it.
        """


class OnnxFile(ModelFile):
    """One ``.onnx`` file."""

    suffix = ONNX_SUFFIX
    runtime = "onnxruntime"

    @classmethod
    def check(cls) -> None:
        """See `ModelFile.check`."""
        require("onnx", "onnx", "Export as ONNX")
        require_without_telemetry("onnxruntime", "onnx", "Export as ONNX")

    def convert(self, rows: NDArray[Any] | None) -> None:
        """See `ModelFile.convert`."""
        self._check_size()
        path, steps = self.folder / self.name, self.folder / "steps"
        steps.mkdir()  # the file may have the name of a step to it
        plain = steps / "plain.onnx" if rows is not None else path
        with suppress_logs():
            write_onnx(self.graph, self.graph.example_input, plain, self.graph.input_name, self.graph.output_names)
            if rows is not None:
                quantize_onnx(plain, path, self.graph.input_name, rows, FIRST, float_after=FEATURES)
        self._length = path.stat().st_size

    def write(self, texts: Mapping[str, str]) -> list[Path]:
        """See `ModelFile.write`."""
        onnx = require("onnx", "onnx", "Export as ONNX")
        path, further = self.folder / self.name, onnx.ModelProto()
        for key, value in texts.items():
            entry = further.metadata_props.add()
            entry.key, entry.value = key, value
        # One message behind another is both in one: so the weights are not read again.
        with path.open("r+b") as file:
            file.truncate(self._length)
            file.seek(self._length)
            file.write(further.SerializeToString())
        append_checksum(path)
        return [path]

    def _check_size(self) -> None:
        size = self.graph.count_weight_bytes()
        if size >= MAX_FILE_BYTES:
            raise InputError(
                f"the model has {size / 2**30:.1f} GiB of weights, but an ONNX file holds less than 2 GiB: export it "
                "as OpenVINO (format openvino), or take a smaller encoder"
            )


class OpenVinoFile(ModelFile):
    """A pair of files, ``.xml`` for the graph and ``.bin`` for its weights."""

    suffix = OPENVINO_SUFFIX
    runtime = "openvino"
    _written = 0

    @classmethod
    def check(cls) -> None:
        """See `ModelFile.check`."""
        import_openvino()

    def convert(self, rows: NDArray[Any] | None) -> None:
        """See `ModelFile.convert`."""
        with telemetry_disabled(), suppress_logs():
            ov = import_openvino()
            example, names = self.graph.example_input, self.graph.output_names
            kind = ov.Type.u8 if self.graph.input_kind == "uint8" else ov.Type.f32
            shape = [-1, *example.shape[1:]]
            model = ov.convert_model(trace(self.graph, example), example_input=example, input=[(shape, kind)])
            model.input(0).get_tensor().set_names({self.graph.input_name})
            for output, name in zip(model.outputs, names, strict=True):
                output.get_tensor().set_names({name})
            if rows is not None:
                model = quantize_openvino(model, rows, is_transformer(self.graph.tower), float_after=FEATURES)
        self._model = model

    def write(self, texts: Mapping[str, str]) -> list[Path]:
        """See `ModelFile.write`."""
        # Into a folder of its own: the weights of the pair before may be in use, mapped into memory.
        self._written += 1
        folder = self.folder / str(self._written)
        folder.mkdir()
        path = folder / self.name
        with telemetry_disabled():
            for key, value in texts.items():
                self._model.set_rt_info(value, [key])
            try:
                import_openvino().save_model(self._model, path, compress_to_fp16=False)
            except RuntimeError as error:  # a full disk, most likely: it does not say
                raise OSError(str(error).strip().split("\n")[-1]) from error
        append_checksum(path)
        return [path.with_suffix(OPENVINO_WEIGHTS_SUFFIX), path]
