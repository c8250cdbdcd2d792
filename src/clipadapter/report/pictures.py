"""Test pictures and shots one by one, and which shots are most similar to which picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench import ModelEvaluation
from clipadapter.data import Dataset
from clipadapter.features import FeatureSet
from clipadapter.uncertainty import Answers

Array = NDArray[Any]
NEAREST_SHOTS = 3
"""Shots that are shown with each picture."""
CHUNK_ROWS = 1024


@dataclass(frozen=True)
class ReportPicture:
    """One picture."""

    path: Path | None  # of the file; None if that is not known
    name: str  # its file and the folder above it, as printable text
    label: int  # position of its class


@dataclass(frozen=True, eq=False)
class PictureTable:
    """Pictures one by one."""

    test: tuple[ReportPicture, ...]  # m test pictures
    shots: tuple[ReportPicture, ...]  # n shots of the model
    class_names: tuple[str, ...]  # of all classes, in order
    probabilities: Array  # (m, c), calibrated
    predictions: Array  # (m,) position of the likeliest class
    nearest: Array  # (m, k) the shots most similar to each picture, the nearest first
    cosine: Array  # (m, k) their similarity

    @property
    def labels(self) -> Array:
        """(m,) positions of the true classes."""
        return np.array([picture.label for picture in self.test])

    @property
    def mistakes(self) -> list[int]:
        """Test pictures whose likeliest class is wrong, in decreasing order of its probability."""
        wrong = np.flatnonzero(self.predictions != self.labels)
        confidence = self.probabilities[wrong, self.predictions[wrong]]
        return [int(i) for i in wrong[np.argsort(-confidence, kind="stable")]]


def collect_pictures(
    dataset: Dataset, evaluation: ModelEvaluation, support: FeatureSet, answers: Answers
) -> PictureTable:
    """The pictures of an evaluation."""
    names = support.class_names
    position = {name: i for i, name in enumerate(names)}
    paths = [dataset.samples[i].path for i in evaluation.test.provenance["rows"]]
    test = [_picture(path, int(k)) for path, k in zip(paths, evaluation.model.labels, strict=True)]
    sources = support.provenance.get("sources") or ()
    sources_or_empty: Sequence[Any] = sources if len(sources) == len(support) else [""] * len(support)
    shots = []
    for i, (source, label) in enumerate(zip(sources_or_empty, support.y, strict=True)):
        # A picture that was given as pixels has a name too, but no file of that name.
        path = Path(source) if source and (Path(source).suffix or Path(source).is_file()) else None
        number = support.y[: i + 1].count(label)
        unnamed = ReportPicture(None, f"shot {number} of {label}", position[label])
        shots.append(_picture(path, position[label]) if path else unnamed)
    p = answers.probabilities
    nearest, cosine = _nearest_shots(np.asarray(evaluation.test.final), support.final)
    return PictureTable(tuple(test), tuple(shots), tuple(names), p, p.argmax(axis=1), nearest, cosine)


def _picture(path: Path, label: int) -> ReportPicture:
    # Not the whole path: the page may be given to others, and must not name the folders of this machine.
    name = "/".join(path.parts[-2:])
    return ReportPicture(path, name.encode(errors="backslashreplace").decode(), label)


def _nearest_shots(test: Array, shots: Array) -> tuple[Array, Array]:
    """(m, k) rows of the shots with the largest cosine, and these cosines; k is at most the number of shots."""
    k = min(NEAREST_SHOTS, len(shots))
    rows, values = np.zeros((len(test), k), np.int64), np.zeros((len(test), k))
    units = _unit_rows(shots).T
    for start in range(0, len(test) if k else 0, CHUNK_ROWS):
        cosines = _unit_rows(test[start : start + CHUNK_ROWS]) @ units
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        rows[start : start + CHUNK_ROWS] = order
        values[start : start + CHUNK_ROWS] = np.take_along_axis(cosines, order, axis=1)
    return rows, values


def _unit_rows(X: Array) -> Array:
    wide = X.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float64).tiny))
