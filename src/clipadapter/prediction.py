"""What is said of one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Prediction:
    """What is said of one picture.

    Args:
        source: the picture, as the user named it.
        label: the best class, None if the picture can't be read.
        probability: of that class.
        top: (class, probability) of the best classes, best first.
        error: why the picture can't be read, else None.
    """

    source: str
    label: str | None
    probability: float | None
    top: tuple[tuple[str, float], ...]
    error: str | None = None


def answer(
    source: str, class_names: Sequence[str], probabilities: NDArray[Any] | None, error: str | None, top: int
) -> Prediction:
    """The best classes of one picture, from its probabilities (c,); or why there are none."""
    if probabilities is None:
        return Prediction(source, None, None, (), error)
    order = np.argsort(-probabilities, kind="stable")[: max(1, top)]
    best = tuple((class_names[i], float(probabilities[i])) for i in order)
    return Prediction(source, best[0][0], best[0][1], best)


def softmax(logits: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """Logits (m, c) to probabilities (m, c)."""
    scaled = logits.astype(np.float64) / temperature
    exponent = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponent / exponent.sum(axis=1, keepdims=True))
