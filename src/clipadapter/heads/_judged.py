"""What is known of a head's logits beside the logits: how loud they usually are, and what it said of unseen shots."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from clipadapter.heads._inputs import Array

SHOTS = (1, 2, 4, 8, 16)


class Judged:
    """Part of `Head`."""

    usual_temperatures: ClassVar[tuple[float, float, float, float, float]] = (1.0, 1.0, 1.0, 1.0, 1.0)
    """What logits are to be divided by, typically, so that their softmax can be taken at its word: after fits to 1, 2,
    4, 8 and 16 shots a class. A calibrator starts from there."""

    def told(self) -> tuple[Array, Array, float] | None:
        """What the last `fit` held out by the way; not part of what is saved.

        Returns:
            (r, c) logits of shots by fits without them, (r,) row numbers, and how many shots a class those fits saw;
            None if nothing was held out.
        """
        found: tuple[Array, Array, float] | None = self.__dict__.get("_told")
        return found

    def usual_temperature(self, shots: float) -> float:
        """`usual_temperatures` at any number of shots a class: between two of them on a line in both logarithms."""
        places, values = np.log(SHOTS), np.log(self.usual_temperatures)
        return float(np.exp(np.interp(np.log(max(shots, 1.0)), places, values)))
