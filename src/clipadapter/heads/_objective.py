"""What the training of an adapter minimises, and how held-out shots judge it: one label a picture, or several."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clipadapter.functional import unit
from clipadapter.heads._cosine_error import cosine_error
from clipadapter.heads._several import binary_losses
from clipadapter.heads._shots import Shots

ONE_SHOT = 0.1
"""Strength with several labels a picture, if most classes have one shot: found on mosaics of Caltech-101's training
pictures under `lite`. What is sure of one label among twenty is unsure of most answers to twenty questions."""
STRENGTHS = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.65, 0.75, 0.85, 1.0)


@dataclass(frozen=True)
class Objective:
    """Cross-entropy of labels; or, of several labels a picture, binary cross-entropy summed over the classes.

    The second is SigLIP's loss without its text side (Zhai et al., ICCV 2023, equation 1): the sum over classes, not
    their mean, is as large as the cross-entropy of as many labels.

    Args:
        scale: of the cosines.
        labels: (n,) class positions; not looked at with several labels.
        targets: (n, c) ones and zeros of several labels, else None.
        bias: (c,) added to the logits of several labels, else None.
    """

    scale: float
    labels: Tensor
    targets: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(cls, shots: Shots, rows: Tensor, bias: Tensor | None) -> Objective:
        """That of some of the shots."""
        return cls(shots.scale, shots.labels[rows], None if shots.targets is None else shots.targets[rows], bias)

    def of_cosines(self, x: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
        """Mean loss of features (b, d) of any length, of which the rows are told."""
        if self.targets is None:
            return cosine_error(x, weight, self.labels[rows], self.scale)
        return self.of_products(unit(x), weight, rows)

    def of_products(self, x: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
        """Mean loss of features (b, d) as they are, of which the rows are told."""
        return self._losses(self.scale * x @ weight.T, rows).mean()

    def total(self, logits: Tensor) -> Tensor:
        """Sum of the losses of all rows, from scaled cosines (n, c)."""
        return self._losses(logits, torch.arange(len(logits))).sum()

    def strength(self, losses: list[Tensor], zero_shot: Tensor) -> float:
        """How much of the ratio trained with to keep.

        Args:
            losses: (strengths,) on held-out shots, by fold; empty if none can be held out.
            zero_shot: (n, c) scaled cosines of all shots and class text.
        """
        if not losses:
            if self.targets is not None:
                return ONE_SHOT
            # One shot a class: no shot can be spared. Zero-shot never saw the shots, so its confidence in their
            # labels is an honest estimate of how far to trust it. The square root is ours: found on other data.
            own = zero_shot.softmax(dim=1)[torch.arange(len(self.labels)), self.labels]
            return math.sqrt(1.0 - float(own.mean()))
        return float(torch.softmax(-sum(losses, torch.zeros(len(STRENGTHS))), dim=0) @ torch.tensor(STRENGTHS))

    def _losses(self, logits: Tensor, rows: Tensor) -> Tensor:
        if self.targets is None:
            return torch.nn.functional.cross_entropy(logits, self.labels[rows], reduction="none")
        return binary_losses(logits if self.bias is None else logits + self.bias, self.targets[rows])
