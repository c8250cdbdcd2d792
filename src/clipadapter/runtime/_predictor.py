"""The predictor of exported files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import ArtifactError, InputError
from clipadapter.files import ONNX_SUFFIX, OPENVINO_SUFFIX
from clipadapter.runtime import _onnxruntime, _openvino
from clipadapter.runtime._about import INPUTS, About
from clipadapter.runtime._checksum import Stamp, check_file, stamp_of
from clipadapter.runtime._graph import Graph
from clipadapter.runtime._model import Outputs, RuntimeModel

BACKENDS = {"onnxruntime": _onnxruntime.open_graph, "openvino": _openvino.open_graph}
BACKENDS_BY_SUFFIX = {ONNX_SUFFIX: ("onnxruntime", "openvino"), OPENVINO_SUFFIX: ("openvino",)}
"""Which backends run a file, the first by itself."""
GIVEN = ("logits", "features", "probabilities", "strangeness", "strangeness_parts")
"""Outputs that are looked at; a file may have others."""


class Predictor(RuntimeModel):
    """A model that ``clipadapter export`` wrote, ready to answer; neither torch nor open_clip is loaded.

    Args:
        path: an ``.onnx`` file, or the ``.xml`` of an OpenVINO pair.
        backend: "onnxruntime" or "openvino"; "auto" takes ONNX Runtime for ``.onnx``, or OpenVINO where only that is
            installed.
        threads: that run the graph; all cores if not given.

    Raises:
        ArtifactError: if the file is missing, altered, of a later format, or was not written by ``clipadapter export``.
        MissingExtraError: if the backend is not installed.
        InputError: if the backend can't run such a file.

    Attributes:
        sha256: checksum of the file, which was compared with its bytes before a backend opened it; None for a file that
            was exported without one.

    ::

        predictor = Predictor("model.onnx")
        predictor.predict(["photo.jpg"])
        predictor.classify(["photo.jpg"], reject=0.05)[0].label  # None: none of these
    """

    def __init__(self, path: str | Path, *, backend: str = "auto", threads: int | None = None) -> None:
        self.path = Path(path)
        chosen = _backend(self.path, backend)
        if threads is not None and threads < 1:
            raise InputError(f"threads must be 1 or more, but are {threads}")
        before = stamp_of(self.path)
        self.sha256 = check_file(self.path)
        self._graph: Graph = BACKENDS[chosen](self.path, threads)
        self.backend = chosen
        self.about = About.from_json(self._graph.about)
        self._check_whole(before)
        self.class_names, self.pixels = self.about.class_names, self.about.pixels
        self.uncertainty, self.precision = self.about.uncertainty, self.about.precision
        self._check_shapes()

    def run(self, squares: NDArray[np.uint8]) -> Outputs:
        """Squares (n, s, s, 3), values 0 .. 255, to what the graph says; may be called from several threads.

        Raises:
            InputError: if they are of another shape or type.
            ArtifactError: if the graph can't be run, or says something else than its description.
        """
        side = self.pixels.size
        if squares.ndim != 4 or squares.shape[1:] != (side, side, 3) or squares.dtype != np.uint8:
            raise InputError(
                f"this model takes squares (n, {side}, {side}, 3) of uint8, but got {squares.shape} of {squares.dtype}"
            )
        if not len(squares):
            return self._none()
        rows = squares if self.about.input == "uint8" else self.pixels.normalize(squares)
        try:
            found = self._graph.run(np.ascontiguousarray(rows))
        except Exception as error:  # those of backends have no common base
            reason = str(error).strip().split("\n")[0]
            raise ArtifactError(
                f"{self.path} can't be run on {len(rows)} pictures ({reason}): give fewer at a time, or export it again"
            ) from error
        for name, values in found.items():
            # Too few rows would be the answers of other pictures, and what is no number would be an answer.
            if name in GIVEN and (len(np.atleast_1d(values)) != len(rows) or not np.isfinite(values).all()):
                raise ArtifactError(
                    f"{self.path} gives {name} {values.shape} for {len(rows)} pictures, or some that are no numbers: "
                    "copy or export it again"
                )
        return _outputs(found)

    def _none(self) -> Outputs:
        """What is said of no picture, of the same widths."""
        widths = self._graph.widths.items()
        return _outputs({name: np.zeros((0, width) if width else 0, np.float32) for name, width in widths})

    def _check_whole(self, before: Stamp) -> None:
        """Refuse a file that lost its checksum, or is not the one that was compared with it."""
        if stamp_of(self.path) != before:
            raise ArtifactError(f"{self.path} changed while it was opened: open it again when it is whole")
        if self.sha256 is None and self.about.checksum:
            raise ArtifactError(f"{self.path} was altered: the SHA-256 at its end is missing. Copy or export it again")
        if self.sha256 is None:
            logging.getLogger(__name__).info(
                "%s has no SHA-256, so that damage may go unnoticed: export the model again", self.path
            )

    def _check_shapes(self) -> None:
        """Refuse a graph that does not fit its description."""
        widths, rejector = self._graph.widths, self.uncertainty.rejector
        wanted: dict[str, Any] = {"logits": len(self.class_names), "probabilities": len(self.class_names)}
        if rejector is not None:
            wanted["strangeness_parts"] = len(rejector.parts)
        for name, width in wanted.items():
            if widths.get(name) != width:
                raise ArtifactError(
                    f"{self.path} has {widths.get(name)} {name} a picture where its description says {width}: export "
                    "the model again"
                )
        if "features" not in widths or self._graph.input != INPUTS[self.about.input]:
            raise ArtifactError(f"{self.path} does not fit its description: export the model again")


def _outputs(found: Mapping[str, NDArray[Any]]) -> Outputs:
    logits, features, probabilities = (found[name] for name in GIVEN[:3])
    return Outputs(logits, features, found.get("strangeness_parts"), probabilities, found.get("strangeness"))


def _backend(path: Path, backend: str) -> str:
    """The backend to take.

    Raises:
        InputError: if there is none of the name, or it can't run such a file.
        ArtifactError: if there is no such file.
    """
    able = BACKENDS_BY_SUFFIX.get(path.suffix.lower())
    if backend not in ("auto", *BACKENDS):
        raise InputError(f"backend must be auto, {' or '.join(BACKENDS)}, but is {backend!r}")
    try:
        folder, file = path.is_dir(), path.is_file()
    except OSError as error:
        raise ArtifactError(f"{path} can't be opened: {error.strerror}") from error
    if able is None:
        hint = "'clipadapter export' makes such a file of a saved model" if folder else "give one of these"
        raise ArtifactError(f"{path} is no exported model: those end in {' or '.join(BACKENDS_BY_SUFFIX)}; {hint}")
    if not file:
        raise ArtifactError(f"there is no file {path}")
    if backend == "auto":
        return able[0] if len(able) == 1 or _onnxruntime.installed() or not _openvino.installed() else able[1]
    if backend not in able:
        raise InputError(f"{path.name} is run by {' or '.join(able)}, not by {backend}: leave the backend to be chosen")
    return backend
