"""Predict with an exported file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.backends.checksum import Stamp, check_file, stamp_files
from clipadapter.backends.formats import (
    BLOCKS_OUTPUT,
    FEATURES_OUTPUT,
    ExportFormat,
    export_suffixes,
    find_format,
    input_names,
    list_inference_backends,
)
from clipadapter.errors import ArtifactError, InputError, brief
from clipadapter.runtime.metadata import ExportMetadata
from clipadapter.runtime.model import Outputs, RuntimeModel
from clipadapter.runtime.model_folder import suggest_model
from clipadapter.utils.blocks import total_width
from clipadapter.utils.pixels import packed_shape, unpack_squares

REQUIRED_OUTPUTS = ("logits", FEATURES_OUTPUT, "probabilities")
OUTPUTS = (*REQUIRED_OUTPUTS, "ood_scores", "ood_score_parts", BLOCKS_OUTPUT)
"""Outputs that are read; a file may have others."""


class Predictor(RuntimeModel):
    """A model that ``clipadapter export`` wrote. Neither torch nor open_clip is loaded.

    Args:
        path: the file, of any format of `clipadapter.backends.formats`; of an OpenVINO pair the ``.xml``.
        backend: "onnxruntime" or "openvino"; "auto" uses the first that is installed of those that run the format.
        threads: number of threads that run the graph; all cores by default.

    Raises:
        ArtifactError: if the file is missing, altered, of a later format, or was not written by ``clipadapter export``.
        MissingExtraError: if the backend is not installed.
        InputError: if the backend can't run such a file.

    Attributes:
        sha256: checksum of the file, which was compared with its bytes before a backend opened it; None if the file was
            exported without one.
        metadata: of the file.

    ::

        predictor = Predictor("model.onnx")
        predictor.predict("photo.jpg")  # or a folder, or a list
        predictor.classify("photo.jpg", reject=0.05)[0].label  # None if it is none of the classes
    """

    def __init__(self, path: str | Path, *, backend: str = "auto", threads: int | None = None) -> None:
        self.path = Path(path)
        export_format, chosen = _choose_backend(self.path, backend)
        if threads is not None and threads < 1:
            raise InputError(f"threads must be 1 or more, but is {threads}")
        stamp = stamp_files(self.path)
        self.sha256 = check_file(self.path)
        self._graph = export_format.open_graph(self.path, chosen, threads)
        self.backend = chosen
        self.metadata = ExportMetadata.from_json(self._graph.metadata)
        self._check_unchanged(stamp)
        self.class_names, self.pixels = self.metadata.class_names, self.metadata.pixels
        self.further_inputs = self.metadata.further_inputs
        self._input_names = input_names(self.metadata.input, [spec.size for spec in self.inputs])
        self.uncertainty, self.precision = self.metadata.uncertainty, self.metadata.precision
        self._check_shapes()

    def run(self, squares: NDArray[np.uint8]) -> Outputs:
        """Squares (n, s, s, 3), values 0 .. 255, to outputs; may be called from several threads.

        A model with several `inputs` takes (n, l), rows of `preprocess`.

        Raises:
            InputError: if they are of another shape or type.
            ArtifactError: if the graph can't be run, or its outputs don't fit the squares.
        """
        expected = packed_shape(self.inputs)
        if squares.shape[1:] != expected or squares.dtype != np.uint8:
            raise InputError(
                f"this model takes {'squares' if len(expected) == 3 else 'rows of preprocess()'} "
                f"(n, {', '.join(map(str, expected))}) of uint8, but got {squares.shape} of {squares.dtype}"
            )
        n = len(squares)
        if not n:
            return self._empty_outputs()
        try:
            outputs = self._graph.run(self._as_inputs(squares))
        except Exception as error:  # the exceptions of backends have no common base
            reason = str(error).strip().split("\n")[0]
            raise ArtifactError(
                f"{self.path} can't be run on {n} pictures ({reason}): give fewer at a time, or export it again"
            ) from error
        for name, values in outputs.items():
            # Too few rows could be those of other pictures.
            if name in OUTPUTS and (len(np.atleast_1d(values)) != n or not np.isfinite(values).all()):
                raise ArtifactError(
                    f"{self.path} gives {name} {values.shape} for {n} pictures, or values that are not finite: "
                    "copy or export it again"
                )
        return _as_outputs(outputs)

    def _as_inputs(self, pictures: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """What the graph takes, by the names of its inputs."""
        arrays: dict[str, NDArray[Any]] = {}
        for name, spec, rows in zip(self._input_names, self.inputs, unpack_squares(pictures, self.inputs), strict=True):
            arrays[name] = np.ascontiguousarray(rows if self.metadata.input == "uint8" else spec.normalize(rows))
        return arrays

    def _empty_outputs(self) -> Outputs:
        """Outputs for no picture, of the same widths."""
        widths = {**self._graph.widths, **self._feature_widths()}
        return _as_outputs({name: np.zeros((0, width) if width else 0, np.float32) for name, width in widths.items()})

    def _feature_widths(self) -> dict[str, int]:
        """Widths of the outputs of features by the metadata; none for files of one block, which do not state them."""
        blocks = self.metadata.blocks
        return {FEATURES_OUTPUT: blocks[0].width, BLOCKS_OUTPUT: total_width(blocks)} if blocks else {}

    def _check_unchanged(self, stamp: Stamp) -> None:
        """Refuse a file that changed after its checksum was compared, or whose checksum is gone."""
        if stamp_files(self.path) != stamp:
            raise ArtifactError(f"{self.path} changed while it was opened: open it again when it is complete")
        if self.sha256 is None and self.metadata.checksum:
            raise ArtifactError(f"{self.path} was altered: the SHA-256 at its end is missing. Copy or export it again")
        if self.sha256 is None:
            logging.getLogger(__name__).info(
                "%s has no SHA-256, so damage can't be noticed: export the model again", self.path
            )

    def _check_shapes(self) -> None:
        """Refuse a graph whose outputs do not fit the metadata."""
        widths, rejector = self._graph.widths, self.uncertainty.rejector
        expected: dict[str, Any] = {"logits": len(self.class_names), "probabilities": len(self.class_names)}
        if rejector is not None:
            expected["ood_score_parts"] = len(rejector.parts)
        for name, width in expected.items():
            if widths.get(name) != width:
                raise ArtifactError(
                    f"{self.path} has {widths.get(name)} {name} per picture where its metadata say {width}: export the "
                    "model again"
                )
        # 0: a graph need not state the width.
        if any(widths.get(name) not in (0, width) for name, width in self._feature_widths().items()):
            raise ArtifactError(f"{self.path} has other blocks of features than its metadata say: export it again")
        if FEATURES_OUTPUT not in widths or sorted(self._graph.inputs) != sorted(self._input_names):
            raise ArtifactError(f"{self.path} does not fit its metadata: export the model again")


def _as_outputs(arrays: Mapping[str, NDArray[Any]]) -> Outputs:
    logits, features, probabilities = (arrays[name] for name in REQUIRED_OUTPUTS)
    return Outputs(
        logits,
        features,
        arrays.get("ood_score_parts"),
        probabilities,
        arrays.get("ood_scores"),
        arrays.get(BLOCKS_OUTPUT),
    )


def _choose_backend(path: Path, backend: str) -> tuple[ExportFormat, str]:
    """The format of a file, and the name of the backend that opens it."""
    known = list_inference_backends()
    if backend not in ("auto", *known):
        raise InputError(f"backend must be auto, {' or '.join(known)}, but is {brief(backend)}")
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:
        raise ArtifactError(f"{path} can't be opened: {error.strerror}") from error
    export_format = find_format(path)
    if export_format is None:
        hint = "'clipadapter export' makes such a file of a saved model" if is_folder else "give one of these"
        suffixes = " or ".join(export_suffixes())
        raise ArtifactError(f"{path} is not an exported model: those end in {suffixes}; {hint}")
    if not is_file:
        raise ArtifactError(f"there is no file {path}{suggest_model(path)}")
    if backend == "auto":
        return export_format, export_format.choose_backend()
    if backend not in export_format.backends:
        others = " or ".join(export_format.backends)
        raise InputError(f"{path.name} is run by {others}, not by {backend}: use backend 'auto'")
    return export_format, backend
