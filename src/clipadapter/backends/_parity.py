"""How near features of another backend or precision are to those of the plain encoder, and how near is near enough."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST = {"fp32": (0.99999, 0.99999), "bf16": (0.999, 0.9995), "int8": (0.98, 0.995)}
"""Cosines that each precision must reach: the least of all pictures, and their mean."""
AGREEMENT = 0.98
"""Share of pictures whose zero-shot answer must stay."""


@dataclass(frozen=True)
class Parity:
    """Features beside those of the plain encoder.

    Args:
        least: smallest cosine.
        mean: mean cosine.
        agreement: share of pictures with the same zero-shot answer, or None without class text.
    """

    least: float
    mean: float
    agreement: float | None = None

    def passes(self, precision: str) -> bool:
        """Whether they may stand in for the plain ones."""
        least, mean = LEAST[precision]
        return self.least >= least and self.mean >= mean and (self.agreement is None or self.agreement >= AGREEMENT)

    def words(self) -> str:
        """For a note."""
        same = "" if self.agreement is None else f", same zero-shot answer {self.agreement:.1%}"
        return f"cosine to fp32 {self.mean:.5f}, least {self.least:.5f}{same}"


def parity(
    reference: NDArray[np.float32], found: NDArray[np.float32], text: NDArray[np.floating] | None = None
) -> Parity:
    """Compare.

    Args:
        reference: (n, d) features of the plain encoder.
        found: (n, d) those to judge, of the same pictures.
        text: (c, d) class text of any length; None compares cosines only.

    >>> parity(np.eye(2, dtype=np.float32), 2 * np.eye(2, dtype=np.float32)).least
    1.0
    """
    one, two = (_unit(rows) for rows in (reference, found))
    cosines = (one * two).sum(axis=1)
    agreement = None
    if text is not None:
        agreement = float((_answers(one, text) == _answers(two, text)).mean())
    return Parity(float(cosines.min()), float(cosines.mean()), agreement)


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30))


def _answers(rows: NDArray[np.float64], text: NDArray[np.floating]) -> NDArray[np.intp]:
    return (rows[:, : text.shape[1]] @ _unit(text).T).argmax(axis=1)
