"""Test pictures and shots one by one, and which shots are like which picture."""

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
NEAREST = 3
"""Shots that stand beside a picture."""
CHUNK = 1024


@dataclass(frozen=True)
class Item:
    """A picture.

    Args:
        path: where it lies; None if that is not known.
        name: its file and the folder above it, as can be printed.
        label: position of its class.
    """

    path: Path | None
    name: str
    label: int


@dataclass(frozen=True, eq=False)
class Rows:
    """Pictures one by one.

    Args:
        test: m test pictures.
        shots: n shots of the model.
        class_names: of all classes, in order.
        probabilities: (m, c), calibrated.
        answer: (m,) position of the likeliest class.
        nearest: (m, k) the shots most like each picture, the nearest first.
        cosine: (m, k) their likeness.
    """

    test: tuple[Item, ...]
    shots: tuple[Item, ...]
    class_names: tuple[str, ...]
    probabilities: Array
    answer: Array
    nearest: Array
    cosine: Array

    @property
    def labels(self) -> Array:
        """(m,) positions of the true classes."""
        return np.array([one.label for one in self.test])

    @property
    def mistakes(self) -> list[int]:
        """Test pictures whose likeliest class is wrong, those first that the model was surest of."""
        wrong = np.flatnonzero(self.answer != self.labels)
        sure = self.probabilities[wrong, self.answer[wrong]]
        return [int(i) for i in wrong[np.argsort(-sure, kind="stable")]]


def rows_of(dataset: Dataset, found: ModelEvaluation, support: FeatureSet, answers: Answers) -> Rows:
    """The pictures of an evaluation.

    Args:
        dataset: the test pictures, those that can't be read too.
        found: figures; its features say which pictures could be read.
        support: the shots, may be empty.
        answers: of the test pictures.
    """
    names = support.class_names
    position = {name: i for i, name in enumerate(names)}
    kept = [dataset.samples[i].path for i in found.test.provenance["rows"]]
    test = [_item(path, int(k)) for path, k in zip(kept, found.model.labels, strict=True)]
    sources = support.provenance.get("sources") or ()
    known: Sequence[Any] = sources if len(sources) == len(support) else [""] * len(support)
    shots = []
    for i, (source, label) in enumerate(zip(known, support.y, strict=True)):
        # A picture that came as pixels has a name, too, but none that finds it.
        path = Path(source) if source and (Path(source).suffix or Path(source).is_file()) else None
        unnamed = f"shot {support.y[: i + 1].count(label)} of {label}"
        shots.append(_item(path, position[label]) if path else Item(None, unnamed, position[label]))
    p = answers.probabilities
    nearest, cosine = _nearest(np.asarray(found.test.plain), support.plain)
    return Rows(tuple(test), tuple(shots), tuple(names), p, p.argmax(axis=1), nearest, cosine)


def _item(path: Path, label: int) -> Item:
    # Not the whole path: a page is handed on, and whose folder it was is nobody's business.
    name = "/".join(path.parts[-2:])
    return Item(path, name.encode(errors="backslashreplace").decode(), label)


def _nearest(test: Array, shots: Array) -> tuple[Array, Array]:
    """(m, k) rows of the shots with the largest cosine, and these; k is at most their number."""
    k = min(NEAREST, len(shots))
    rows, values = np.zeros((len(test), k), np.int64), np.zeros((len(test), k))
    unit = _unit(shots).T
    for start in range(0, len(test) if k else 0, CHUNK):
        cosines = _unit(test[start : start + CHUNK]) @ unit
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        rows[start : start + CHUNK] = order
        values[start : start + CHUNK] = np.take_along_axis(cosines, order, axis=1)
    return rows, values


def _unit(X: Array) -> Array:
    wide = X.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float64).tiny))
