"""Test pictures and shots one by one, and which shots are most similar to which picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench.evaluation import ModelEvaluation
from clipadapter.data import Dataset
from clipadapter.explain.explanation import name_shot, nearest_rows
from clipadapter.features import FeatureSet
from clipadapter.uncertainty import Answers

Array = NDArray[Any]
NEAREST_SHOTS = 3
"""Shots that are shown with each picture."""


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
    shots = []
    for i, label in enumerate(support.y):
        source, is_path = name_shot(support, i)
        k = position[label]
        shots.append(_picture(Path(source), k) if is_path else ReportPicture(None, source, k))
    p = answers.probabilities
    nearest, cosine = nearest_rows(np.asarray(evaluation.test.final), support.final, NEAREST_SHOTS)
    return PictureTable(tuple(test), tuple(shots), tuple(names), p, p.argmax(axis=1), nearest, cosine)


def _picture(path: Path, label: int) -> ReportPicture:
    # Not the whole path: the page may be given to others, and must not name the folders of this machine.
    name = "/".join(path.parts[-2:])
    return ReportPicture(path, name.encode(errors="backslashreplace").decode(), label)
