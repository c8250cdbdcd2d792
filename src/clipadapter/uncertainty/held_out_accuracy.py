"""Accuracy on held-out shots: what a fit tells about a model before anybody has test pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.uncertainty.saved_state import SavedState

Array = NDArray[Any]
MIN_SEEN = 0.6
"""With two shots per class each fit saw half of them. The accuracy was then 3 (auto) to 10 points (linear-probe) too
low, with three or more shots at most 5 (docs/tutorials/own-pictures.md)."""


@dataclass(frozen=True)
class HeldOutAccuracy:
    """Accuracy on held-out shots.

    Args:
        accuracy: share of correct predictions.
        shots: number of shots that were held out, each counted once.
        zero_shot: accuracy of the class names alone on the same shots; None without class text.
        seen: share of the shots that each of the fits saw.

    >>> print(HeldOutAccuracy(0.9, 20, 0.5).describe())
    about 90 % of 20 held-out pictures right (70 to 97 %); class names alone 50 %
    """

    accuracy: float
    shots: int
    zero_shot: float | None = None
    seen: float = 1.0

    @classmethod
    def measure(
        cls, logits: Array, labels: Array, rows: Array, zero_shot: Array | None, seen: float
    ) -> HeldOutAccuracy:
        """Of logits (r, c) of held-out shots with class positions (r,), and zero-shot logits of the same rows.

        Rows (r,) are the numbers of the shots: one that was held out more than once has a row for each time.
        """
        _, position, times = np.unique(rows, return_inverse=True, return_counts=True)

        def share(z: Array) -> float:
            return float((np.bincount(position, z.argmax(axis=1) == labels) / times).mean())

        return cls(share(logits), len(times), None if zero_shot is None else share(zero_shot), seen)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval at 95 %."""
        from clipadapter.metrics import wilson_interval  # late: a prediction needs no metrics

        return wilson_interval(self.accuracy, self.shots)

    def describe(self) -> str:
        """Describe it in one line."""
        low, high = self.interval
        names = "" if self.zero_shot is None else f"; class names alone {100 * self.zero_shot:.0f} %"
        half = f"; too low, since each fit saw {100 * self.seen:.0f} % of them" if self.seen < MIN_SEEN else ""
        return (
            f"about {100 * self.accuracy:.0f} % of {self.shots:,} held-out pictures right "
            f"({100 * low:.0f} to {100 * high:.0f} %){names}{half}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it with its interval, as JSON."""
        return {**asdict(self), "interval": list(self.interval)}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any] | None) -> HeldOutAccuracy | None:
        """Restore what `to_dict` returned; None for None.

        Raises:
            ArtifactError: if it is damaged.
        """
        if facts is None:
            return None
        saved = SavedState("accuracy on held-out shots", facts, {})

        def share(name: str) -> float:
            return float(saved.fact(name, float, lambda x: 0 <= x <= 1))

        zero_shot = None if saved.facts.get("zero_shot") is None else share("zero_shot")
        return cls(share("accuracy"), saved.fact("shots", int, lambda x: x > 0), zero_shot, share("seen"))
