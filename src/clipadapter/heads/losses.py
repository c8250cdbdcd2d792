"""What the training of an adapter minimises, and how held-out shots judge it: one label a picture, or several."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clipadapter.functional import unit
from clipadapter.heads._cosine_error import cosine_error
from clipadapter.heads._several import binary_losses
from clipadapter.heads._shots import SupportSet


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
    def of(cls, shots: SupportSet, rows: Tensor, bias: Tensor | None, temperature: float = 1.0) -> Objective:
        """That of some of the shots, with the encoder's logit scale divided by a temperature."""
        targets = None if shots.targets is None else shots.targets[rows]
        return cls(shots.scale / temperature, shots.labels[rows], targets, bias)

    def of_cosines(self, x: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
        """Mean loss of features (b, d) of any length, of which the rows are told."""
        if self.targets is None:
            return cosine_error(x, weight, self.labels[rows], self.scale)
        return self.of_products(unit(x), weight, rows)

    def of_products(self, x: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
        """Mean loss of features (b, d) as they are, of which the rows are told."""
        return self._losses(self.scale * x @ weight.T, rows).mean()

    def losses_at(self, logits: Tensor, rows: Tensor, temperatures: Tensor, wrong: float) -> Tensor:
        """(t,) summed loss of rows with scaled cosines (b, c), divided by each of the temperatures (t,).

        A share of the labels may be wrong, each other label being as likely, so that one of them can't outweigh the
        rest. Several labels a picture are taken as they are.

        >>> objective = Objective(1.0, torch.tensor([0, 1]), None, None)
        >>> sure_and_wrong = torch.tensor([[-100.0, 100.0], [100.0, -100.0]])
        >>> objective.losses_at(sure_and_wrong, torch.arange(2), torch.ones(1), wrong=0.1).round(decimals=2)
        tensor([5.9900])
        """
        if self.targets is not None:
            logits = self._with_bias(logits)
            return torch.stack([binary_losses(logits / t, self.targets[rows]).sum() for t in temperatures])
        labels = self.labels[rows, None]
        right = [(logits / t).softmax(dim=1).gather(1, labels)[:, 0] for t in temperatures]
        return torch.stack([-((1 - wrong) * p + wrong / logits.shape[1]).log().sum() for p in right])

    def guess_loss(self, rows: Tensor, n_classes: int) -> float:
        """Summed loss of a guess: each label is as likely; of several labels, each as likely as it is frequent."""
        if self.targets is None:
            return len(rows) * math.log(n_classes)
        targets = self.targets[rows]
        share = targets.mean(dim=0)
        return float(-(torch.xlogy(targets, share) + torch.xlogy(1 - targets, 1 - share)).sum())

    def _with_bias(self, logits: Tensor) -> Tensor:
        return logits if self.bias is None else logits + self.bias

    def _losses(self, logits: Tensor, rows: Tensor) -> Tensor:
        if self.targets is None:
            return cross_entropy(logits, self.labels[rows], reduction="none")
        return binary_losses(self._with_bias(logits), self.targets[rows])
