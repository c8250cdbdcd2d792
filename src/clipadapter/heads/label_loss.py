"""The loss of labels that a head is trained with: parameters of heads for unequal shots and for wrong labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clipadapter.errors import InputError, brief
from clipadapter.heads.base import Head, SupportSet
from clipadapter.heads.losses import LabelLoss


@dataclass(eq=False, repr=False, kw_only=True)
class LogitAdjustedHead(Head):
    """Base of the heads that can take the frequencies of the classes among the shots out of their logits.

    Args:
        logit_adjustment: tau of logit adjustment (Menon et al., ICLR 2021), for unequal shots. In training, tau times
            the logarithm of each class's share of the shots is added to its logits, so that a prediction does not
            prefer the classes with many shots. 1 for pictures of all classes alike, 0 for pictures in which classes are
            as frequent as in the shots. No effect with equal shots per class, and for multi-label pictures.
    """

    logit_adjustment: float = 1.0

    def _log_prior(self, counts: Tensor) -> Tensor | None:
        """(c,) tau times the logarithm of each class's share of the shots; None if there is nothing to adjust.

        A class without a shot is taken as frequent as the rarest class that has one.

        Args:
            counts: (c,) shots per class that the head is trained on; all zero in the multi-label task.
        """
        tau = self.logit_adjustment
        if isinstance(tau, str) or not tau >= 0:
            raise InputError(f"logit_adjustment must be 0 or more, but is {brief(tau)}")
        has_shots = counts > 0
        if tau == 0 or not has_shots.any() or counts[has_shots].min() == counts.max():
            return None
        smallest = counts[has_shots].min()
        return tau * (counts.clamp_min(smallest) / counts.sum()).log()


@dataclass(eq=False, repr=False, kw_only=True)
class LabelLossHead(LogitAdjustedHead):
    """Base of the trained heads whose loss of labels can be changed.

    Args:
        gce_q: q of generalised cross-entropy (Zhang and Sabuncu, NeurIPS 2018), for wrong labels: above 0 and up to 1,
            where 0.7 is the paper's. 0 is cross-entropy. Not used for multi-label pictures.
    """

    gce_q: float = 0.0

    def _label_loss(self, shots: SupportSet, rows: Tensor | None = None) -> LabelLoss:
        """The loss for training on some of the shots, or on all."""
        q = self.gce_q
        if isinstance(q, str) or not 0 <= q <= 1:
            raise InputError(f"gce_q must be 0 to 1, but is {brief(q)}")
        return LabelLoss(self._log_prior(class_counts(shots, rows)), q)


def class_counts(shots: SupportSet, rows: Tensor | None = None) -> Tensor:
    """(c,) how many of some shots, or of all, each class has; zeros in the multi-label task."""
    labels = shots.labels if rows is None else shots.labels[rows]
    counts = torch.bincount(labels[labels >= 0], minlength=shots.n_classes)
    return counts.to(shots.views.dtype)
