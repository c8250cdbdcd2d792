"""The loss of labels that a head is trained with: parameters of heads for unequal shots and for wrong labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from clipadapter.heads.base import Head, SupportSet
from clipadapter.heads.estimator import clone
from clipadapter.heads.folds import hyperparameter_folds
from clipadapter.heads.losses import LabelLoss, Loss, probabilities_at_temperatures
from clipadapter.heads.parameters import NOT_NEGATIVE, OneOf, Within
from clipadapter.utils.functional import unit

ROBUST_Q = 0.7  # q that "auto" chooses if labels are wrong; the paper's
MIN_WRONG_SHARE = 0.05  # estimated share of wrong labels from which "auto" compares losses
GCE_FOLDS = 4
WRONG_SHARES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
TEMPERATURES = torch.logspace(-1.5, 1.5, 31, dtype=torch.float64)  # temperatures at which held-out shots are judged


@dataclass(eq=False, repr=False, kw_only=True)
class LogitAdjustedHead(Head):
    """Base of the heads that can take the frequencies of the classes among the shots out of their logits.

    Args:
        logit_adjustment: tau of logit adjustment (Menon et al., ICLR 2021), for unequal shots. In training, tau times
            the logarithm of each class's share of the shots is added to its logits, so that a prediction does not
            prefer the classes with many shots. 1 for pictures of all classes alike, 0 for pictures in which classes are
            as frequent as in the shots. No effect with equal shots per class, and for multi-label pictures.
    """

    logit_adjustment: Annotated[float, NOT_NEGATIVE] = 1.0

    def _log_prior(self, counts: Tensor) -> Tensor | None:
        """(c,) tau times the logarithm of each class's share of the shots, by counts (c,); None for no adjustment.

        A class without a shot is taken as frequent as the rarest class that has one.
        """
        tau = self.logit_adjustment
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
            where 0.7 is the paper's. 0 is cross-entropy. "auto" fits in four folds, and takes cross-entropy if the held
            out shots do not look as if 5 % of the labels or more were wrong; else it fits in the folds with 0.7 as
            well, and takes what predicts held-out shots better. Not used for multi-label pictures.
    """

    gce_q: Annotated[float | str, Within(0, 1), OneOf("auto")] = 0.0

    def _loss_of(self, shots: SupportSet, rows: Tensor) -> Loss:
        """The loss of some of the shots, labels or targets, after `_choose_gce_q`."""
        q = float(self.gce_q_ if self.gce_q == "auto" else self.gce_q)
        return Loss.of_support_set(shots, rows, LabelLoss(self._log_prior(class_counts(shots, rows)), q))

    def _choose_gce_q(self, shots: SupportSet) -> None:
        """If q is "auto", choose it and store it as ``gce_q_``."""
        self.__dict__.pop("gce_q_", None)
        if self.gce_q != "auto":
            return
        # The q of the fit to all shots, of which this one leaves some out, or of the fit that this one starts from.
        source = self._full_fit if self._full_fit is not None else self._previous
        known = getattr(source, "gce_q_", None)
        self.gce_q_: float = self._search_gce_q(shots) if known is None else known

    def _search_gce_q(self, shots: SupportSet) -> float:
        splits = [] if shots.targets is not None else hyperparameter_folds(shots, GCE_FOLDS, 0)
        if not splits:
            return 0.0
        labels = shots.labels[torch.cat([held_out for _, held_out in splits])]
        plain = self._out_of_fold_logits(shots, splits, 0.0)
        if estimate_wrong_share(plain, labels) < MIN_WRONG_SHARE:
            return 0.0
        robust = self._out_of_fold_logits(shots, splits, ROBUST_Q)
        return ROBUST_Q if _held_out_gce(robust, labels) < _held_out_gce(plain, labels) else 0.0

    def _out_of_fold_logits(self, shots: SupportSet, splits: list[tuple[Tensor, Tensor]], q: float) -> Tensor:
        """(r, c) logits of the held-out shots of all folds."""
        logits = []
        for train_rows, held_out in splits:
            head: Any = clone(self)
            head.gce_q, head.progress = q, False
            head.classes_, head.n_features_in_, head.blocks_ = self.classes_, self.n_features_in_, self.blocks_
            head._fit(shots.take(train_rows))
            with torch.inference_mode():
                logits.append(head._logits(shots.X[held_out]))
        return torch.cat(logits)


def estimate_wrong_share(logits: Tensor, labels: Tensor) -> float:
    """Share of the labels (n,) that are wrong, as out-of-fold logits (n, c) of a head suggest it.

    The estimate maximises the likelihood of the labels, where this share of them is drawn from all classes, each as
    likely, and the others from the softmax of the logits at the best temperature. So it is slightly higher than the
    share of labels that differ from the truth.
    """
    p = probabilities_at_temperatures(logits.double(), labels, TEMPERATURES)  # (t, n)
    likelihoods = [((1 - s) * p + s / logits.shape[1]).clamp_min(1e-300).log().sum(dim=1).max() for s in WRONG_SHARES]
    return WRONG_SHARES[int(torch.stack(likelihoods).argmax())]


def _held_out_gce(logits: Tensor, labels: Tensor) -> float:
    """Generalised cross-entropy at the best temperature: bounded, so that wrong labels can't decide it."""
    loss = LabelLoss(q=ROBUST_Q)
    return min(float(loss(logits.double() / temperature, labels)) for temperature in TEMPERATURES.tolist())


def class_counts(shots: SupportSet, rows: Tensor) -> Tensor:
    """(c,) how many of some shots each class has; zeros in the multi-label task."""
    labels = shots.labels[rows]
    counts = torch.bincount(labels[labels >= 0], minlength=shots.n_classes)
    return counts.to(shots.views.dtype)


def class_mean(shots: SupportSet, rows: Tensor) -> Tensor:
    """(d,) mean of some shots' unit features, in which each class weighs the same; multi-label, each shot."""
    x = unit(shots.X[rows])
    if shots.targets is not None:
        return x.mean(dim=0)
    weights = 1 / class_counts(shots, rows)[shots.labels[rows]]
    return weights @ x / weights.sum()
