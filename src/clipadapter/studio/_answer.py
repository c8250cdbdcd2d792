"""What is said of one picture, and why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clipadapter.data.images import ImageSource
from clipadapter.explain import explain
from clipadapter.studio._features import Features
from clipadapter.studio._learning import Learned
from clipadapter.studio._reading import Contents

TOP = 5
NEAREST = 5


@dataclass(frozen=True)
class Near:
    """A shot that is like the picture.

    Args:
        key: of the shot.
        label: its class.
        similarity: cosine of the features, -1 to 1.
    """

    key: str
    label: str
    similarity: float


@dataclass(frozen=True)
class Answer:
    """What is said of one picture.

    Args:
        top: (class, probability), best first.
        shots: how many pictures it was learned from; 0 if from the names alone.
        sentences: why.
        nearest: the shots most like it.
        among: the class that it has, if it is one of the shots.
    """

    top: tuple[tuple[str, float], ...]
    shots: int
    sentences: tuple[str, ...] = ()
    nearest: tuple[Near, ...] = ()
    among: str | None = None


def answer(learned: Learned, image: ImageSource, contents: Contents, features: Features) -> Answer:
    """Ask what was learned.

    Args:
        learned: from shots, or from class names.
        image: path, PIL image or array.
        contents: tell whether a shot is still there.
        features: make those of the picture.

    Raises:
        ImageError: if it can't be read.
    """
    if learned.model is None:
        row = learned.probabilities(features.of(image)[None])[0]
        best = np.argsort(-row, kind="stable")[:TOP]
        return Answer(tuple((learned.names[i], float(row[i])) for i in best), 0)
    found = explain(learned.model, image, top=TOP, neighbours=NEAREST)
    near = tuple(
        Near(one.source, one.label, one.similarity) for one in found.nearest if contents.label(one.source) is not None
    )
    same = [one.label for one in near if one.similarity > 1 - 1e-6]
    return Answer(found.prediction.top, learned.shots, tuple(found.sentences()[1:]), near, same[0] if same else None)
