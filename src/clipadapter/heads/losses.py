"""Losses of training and of held-out shots, for single-label and multi-label pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, hardshrink, normalize

from clipadapter.heads.multilabel import binary_losses
from clipadapter.heads.support import SupportSet

MIN_GRADIENT = 1e-30
"""Gradients of single logits that are smaller are zero. Products with them stay above 1.2e-38, the smallest float32
with all its digits. Intel's processors need up to 190 times as long for a product of smaller numbers."""


@dataclass(frozen=True)
class LabelLoss:
    """Mean loss of logits for class labels: cross-entropy, logit-adjusted and generalised if asked for.

    Logit adjustment adds to the logits, in training only, a constant of each class that grows with its frequency: Menon
    et al., ICLR 2021, https://arxiv.org/abs/2007.07314, equation 10. Generalised cross-entropy is
    ``(1 - p ** q) / q`` for the probability p of the label: Zhang and Sabuncu, NeurIPS 2018,
    https://arxiv.org/abs/1805.07836, equation 6. Its gradient is that of cross-entropy times ``p ** q``, so that labels
    which the model contradicts weigh less. With q near 0 it is cross-entropy, with q of 1 one minus the probability.
    """

    offset: Tensor | None = None  # (c,) added to the logits
    q: float = 0.0  # of generalised cross-entropy; 0 is cross-entropy

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of logits (b, c) and class positions (b,)."""
        logits = drop_tiny_gradients(logits if self.offset is None else logits + self.offset)
        if self.q == 0:
            return cross_entropy(logits, labels)
        log_p = -cross_entropy(logits, labels, reduction="none")
        return -(torch.expm1(self.q * log_p) / self.q).mean()


CROSS_ENTROPY = LabelLoss()  # the loss without either change


@dataclass(frozen=True)
class Loss:
    """Cross-entropy of labels; or, of multi-label targets, binary cross-entropy summed over the classes.

    The second is SigLIP's loss without its text side (Zhai et al., ICCV 2023, equation 1): the sum over classes, not
    their mean, is as large as the cross-entropy of as many labels.
    """

    labels: Tensor  # (n,) class positions; not used with multi-label targets
    targets: Tensor | None = None  # (n, c) ones and zeros of multi-label pictures
    label_loss: LabelLoss = CROSS_ENTROPY

    @classmethod
    def of_support_set(cls, shots: SupportSet, rows: Tensor, label_loss: LabelLoss = CROSS_ENTROPY) -> Loss:
        """The loss of some of the shots."""
        return cls(shots.labels[rows], None if shots.targets is None else shots.targets[rows], label_loss)

    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Mean loss of a batch with logits (b, c), whose labels have the row numbers (b,)."""
        if self.targets is None:
            return self.label_loss(logits, self.labels[rows])
        return binary_losses(drop_tiny_gradients(logits), self.targets[rows]).mean()

    def sums_at_temperatures(
        self, logits: Tensor, rows: Tensor, temperatures: Tensor, wrong_label_share: float
    ) -> Tensor:
        """(t,) summed loss of rows with logits (b, c), divided by each of the temperatures (t,).

        A share of the labels may be wrong, so that one wrong label can't outweigh the rest.
        """
        if self.targets is not None:
            return torch.stack([binary_losses(logits / t, self.targets[rows]).sum() for t in temperatures])
        right = probabilities_at_temperatures(logits, self.labels[rows], temperatures, self.label_loss.offset)
        return -((1 - wrong_label_share) * right + wrong_label_share / logits.shape[1]).log().sum(dim=1)

    def of_null_model(self, rows: Tensor, n_classes: int) -> float:
        """Summed loss of a prediction without features: each class as likely; multi-label, as likely as frequent."""
        if self.targets is None:
            return len(rows) * math.log(n_classes)
        targets = self.targets[rows]
        share = targets.mean(dim=0)
        return float(-(torch.xlogy(targets, share) + torch.xlogy(1 - targets, 1 - share)).sum())


def probabilities_at_temperatures(
    logits: Tensor, labels: Tensor, temperatures: Tensor, offset: Tensor | None = None
) -> Tensor:
    """(t, n) probabilities of the labels (n,) by the softmax of logits (n, c) divided by each temperature (t,)."""
    divided = (logits / t if offset is None else logits / t + offset for t in temperatures)
    return torch.stack([each.softmax(dim=1).gather(1, labels[:, None])[:, 0] for each in divided])


def drop_tiny_gradients(logits: Tensor) -> Tensor:
    """The same logits, whose gradient becomes zero where it is smaller than `MIN_GRADIENT`.

    With CLIP's logit scale of 100, most probabilities of a trained head are so small. They change no weight.

    >>> logits = torch.tensor([[100.0, 0.0]], requires_grad=True)
    >>> drop_tiny_gradients(logits).softmax(dim=1)[0, 1].backward()
    >>> logits.grad
    tensor([[0., 0.]])
    """
    if logits.requires_grad:
        logits.register_hook(lambda gradient: hardshrink(gradient, MIN_GRADIENT))
    return logits


def trained_cosines(features: Tensor, weight: Tensor) -> Tensor:
    """(b, c) cosines of trained features (b, d) with unit class weights (c, d); zeros have a finite gradient."""
    return normalize(features, dim=1) @ weight.T
