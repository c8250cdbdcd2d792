"""How often a model is right, as far as its own shots show: accuracy on held-out shots with Wilson's interval.

Each shot was predicted by a fit that did not see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from clipadapter.errors import ArtifactError, brief
from clipadapter.metrics import wilson_interval


@dataclass(frozen=True)
class HeldOutAccuracy:
    """Accuracy on held-out shots.

    Args:
        accuracy: share of correct predictions.
        shots: number of shots that were held out, each counted once.
        zero_shot: accuracy of the class names alone on the same shots; None without class text.

    >>> print(HeldOutAccuracy(0.9, 20, 0.5).describe())
    about 90 % of 20 held-out pictures right (70 to 97 %); class names alone 50 %
    """

    accuracy: float
    shots: int
    zero_shot: float | None = None

    @classmethod
    def measure(
        cls, logits: ArrayLike, labels: ArrayLike, rows: ArrayLike, zero_shot: ArrayLike | None = None
    ) -> HeldOutAccuracy:
        """Measure it.

        Args:
            logits: (r, c) of held-out shots. A shot that was held out more than once has a row for each time.
            labels: (r,) class positions.
            rows: (r,) numbers of the shots.
            zero_shot: (r, c) logits by class text of the same rows; None without class text.
        """
        y, shots = np.asarray(labels), np.asarray(rows)
        _, times = np.unique(shots, return_counts=True)
        weights = 1 / times[np.searchsorted(np.unique(shots), shots)] / len(times)  # equal for each shot

        def share(z: np.ndarray[Any, Any]) -> float:
            return float(weights[z.argmax(axis=1) == y].sum())

        return cls(share(np.asarray(logits)), len(times), None if zero_shot is None else share(np.asarray(zero_shot)))

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval at 95 %."""
        return wilson_interval(self.accuracy, self.shots)

    def describe(self) -> str:
        """Describe it in one line."""
        low, high = self.interval
        names = "" if self.zero_shot is None else f"; class names alone {100 * self.zero_shot:.0f} %"
        return (
            f"about {100 * self.accuracy:.0f} % of {self.shots:,} held-out pictures right "
            f"({100 * low:.0f} to {100 * high:.0f} %){names}"
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
        try:
            accuracy, shots, zero_shot = (facts[name] for name in ("accuracy", "shots", "zero_shot"))
            is_valid = shots >= 1 and all(0 <= value <= 1 for value in (accuracy, zero_shot or 0))
        except (KeyError, TypeError):
            is_valid = False
        if not is_valid:
            raise ArtifactError(f"the model's accuracy on held-out shots is damaged ({brief(facts)}): fit it again")
        return cls(float(accuracy), int(shots), None if zero_shot is None else float(zero_shot))
