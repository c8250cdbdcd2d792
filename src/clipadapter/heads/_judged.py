"""What is known of a head's logits beside the logits: how loud they usually are, and what it said of unseen shots."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np

from clipadapter.heads.support import Array

SHOTS = (1, 2, 4, 8, 16)


class Told(NamedTuple):
    """Answers for shots by fits without them.

    Args:
        logits: (r, c).
        rows: (r,) row numbers of the shots.
        shots: how many shots a class those fits saw.
        louder: how much larger the logits of the fit to all shots are.
    """

    logits: Array
    rows: Array
    shots: float
    louder: float


class Judged:
    """Part of `Head`."""

    usual_temperatures: ClassVar[tuple[float, float, float, float, float]] = (1.0, 1.0, 1.0, 1.0, 1.0)
    """What logits are to be divided by, typically, so that their softmax can be taken at its word: after fits to 1, 2,
    4, 8 and 16 shots a class. A calibrator starts from there."""

    def told(self) -> Told | None:
        """What the last `fit` held out by the way, or None; not part of what is saved."""
        found: Told | None = self.__dict__.get("_told")
        return found

    def usual_temperature(self, shots: float) -> float:
        """`usual_temperatures` at any number of shots a class: between two of them on a line in both logarithms."""
        places, values = np.log(SHOTS), np.log(self.usual_temperatures)
        return float(np.exp(np.interp(np.log(max(shots, 1.0)), places, values)))
