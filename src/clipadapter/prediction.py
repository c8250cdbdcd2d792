"""The prediction for one picture, and the softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DEFAULT_LOGIT_SCALE = 100.0
"""Logit scale if none is given: that of CLIP's released checkpoints."""


@dataclass(frozen=True)
class Prediction:
    """The prediction for one picture.

    Args:
        source: the picture, as the user named it.
        label: predicted class; None if the picture is rejected as none of the classes, or can't be read.
        probability: of that class, or of `nearest` if the picture is rejected.
        top: (class, probability) of the best classes, best first; with unequal costs the class with the least expected
            cost is first.
        error: why the picture can't be read, else None.
        nearest: the class that is predicted without rejection; `label` unless that is None.
        reason: why the picture is rejected; else None.
        labels: the prediction set if a coverage is set; the predicted labels of a multi-label model; else None.
    """

    source: str
    label: str | None
    probability: float | None
    top: tuple[tuple[str, float], ...]
    error: str | None = None
    nearest: str | None = None
    reason: str | None = None
    labels: tuple[str, ...] | None = None

    def record(self) -> dict[str, Any]:
        """As a dictionary for JSON."""
        return {
            "source": self.source,
            "label": self.label,
            "probability": self.probability,
            "top": [{"label": name, "score": score} for name, score in self.top],
            "nearest": self.nearest,
            "reason": self.reason,
            "labels": None if self.labels is None else list(self.labels),
            "error": self.error,
        }


def unreadable(source: str, error: str | None) -> Prediction:
    """The prediction for a picture that can't be read."""
    return Prediction(source, None, None, (), error)


def softmax(logits: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    """Logits (m, c) to probabilities (m, c)."""
    scaled = logits.astype(np.float64) / temperature
    exponent = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponent / exponent.sum(axis=1, keepdims=True))
