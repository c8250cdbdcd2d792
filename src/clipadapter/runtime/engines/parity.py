"""Compare features of another backend or precision with those of the encoder in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipadapter.utils.blocks import Block, column_slices
from clipadapter.utils.prediction import unit_rows

MIN_COSINES = {"fp32": (0.99999, 0.99999), "bf16": (0.999, 0.9995), "int8": (0.98, 0.995)}
"""Smallest and mean cosine that each precision must reach."""
MIN_AGREEMENT = 0.98  # share of pictures that must keep their zero-shot class


@dataclass(frozen=True)
class Parity:
    """Features compared with those of the encoder in fp32."""

    min_cosine: float
    mean_cosine: float
    agreement: float | None = None  # share of pictures with the same zero-shot class; None without class text

    def passes(self, precision: str) -> bool:
        """Whether the features may replace those in fp32."""
        min_cosine, mean_cosine = MIN_COSINES[precision]
        is_close = self.min_cosine >= min_cosine and self.mean_cosine >= mean_cosine
        return is_close and (self.agreement is None or self.agreement >= MIN_AGREEMENT)

    def summary(self) -> str:
        """For a note."""
        same = "" if self.agreement is None else f", same zero-shot answer {self.agreement:.1%}"
        return f"cosine to fp32 {self.mean_cosine:.5f}, smallest {self.min_cosine:.5f}{same}"


def measure_parity(
    reference: NDArray[np.float32],
    features: NDArray[np.float32],
    text: NDArray[np.floating] | None = None,
    blocks: Sequence[Block] = (),
) -> Parity:
    """Compare features (n, d) of the same pictures, and zero-shot classes by class text (c, w) for the first w columns.

    With several blocks, the cosine of a picture is that of its worst block.
    """
    parts = list(column_slices(blocks).values()) or [slice(None)]
    pairs = [[unit_rows(rows[:, part]) for rows in (reference, features)] for part in parts]
    cosines = np.min([(a * b).sum(axis=1) for a, b in pairs], axis=0)
    agreement = None
    if text is not None:
        classes, other = ((rows[:, : text.shape[1]] @ unit_rows(text).T).argmax(axis=1) for rows in pairs[0])
        agreement = float((classes == other).mean())
    return Parity(float(cosines.min()), float(cosines.mean()), agreement)
