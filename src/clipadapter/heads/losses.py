"""Losses of training and of held-out shots, for single-label and multi-label pictures.

In the multi-label task every class is a binary problem, predicted by a sigmoid. A contrastive encoder such as CLIP only
learned which of several texts fits a picture best: its cosines have no threshold above which a text fits. Where the
encoder has no logit bias (SigLIP has one, Zhai et al., ICCV 2023, https://arxiv.org/abs/2303.15343), a bias of each
class is fitted to the shots. The fitted bias is this project's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, hardshrink, normalize

from clipadapter.heads.base import Head
from clipadapter.heads.parameters import NOT_NEGATIVE
from clipadapter.heads.support import SupportSet
from clipadapter.utils.functional import unit

BIAS_PRIOR_STD = 2.0
"""Standard deviation, in logits, of the normal prior of a class's bias around the bias of all classes."""
WRONG_LABEL_SHARE = 0.05  # assumed, so that one wrongly labelled shot can't outweigh all others where text is weighed
MAX_NEWTON_STEPS = 60  # limit of Newton steps; about ten are usual


def fit_bias(logits: Tensor, targets: Tensor, prior_std: float = BIAS_PRIOR_STD) -> Tensor:
    """Biases that make the mean probability of each class its share of the shots, with a prior around a common bias.

    This is logistic regression on a constant with the logits as offset: at its optimum the probabilities of a class sum
    to the number of its shots. The mean of the normal prior is the bias that does so for all classes together. It keeps
    classes with few shots near the common bias; a class without a shot gets the common bias, lowered by the evidence
    of the shots that lack it. The logits (n, c) come from a head that did not learn from the shots.
    """
    x, y = logits.double(), targets.double()
    # Half a positive and half a negative are added: the common bias is finite even if every shot has every class.
    share = (y.sum() + 0.5) / (y.numel() + 1)
    common = _solve_bias(x.reshape(-1, 1), share * y.numel(), x.new_zeros(1), 0.0)
    return _solve_bias(x, y.sum(dim=0), common.expand(x.shape[1]), prior_std**-2).to(logits.dtype)


def _solve_bias(x: Tensor, total: Tensor, prior_mean: Tensor, precision: float) -> Tensor:
    """Biases b (c,) for which ``sum_i sigmoid(x_i + b) + precision * (b - prior_mean) = total``.

    The left side rises with b, so that the root is bracketed. A Newton step that leaves the bracket is replaced by a
    bisection.
    """
    low = (-x.amax(dim=0) - 50.0).minimum(prior_mean)
    high = (-x.amin(dim=0) + 50.0).maximum(prior_mean)
    b = prior_mean.clone() if precision else -x.median(dim=0).values
    for _ in range(MAX_NEWTON_STEPS):
        p = (x + b).sigmoid()
        excess = p.sum(dim=0) - total + precision * (b - prior_mean)
        low, high = torch.where(excess < 0, b, low), torch.where(excess > 0, b, high)
        newton = b - excess / ((p * (1 - p)).sum(dim=0) + precision).clamp_min(1e-300)
        step = torch.where((newton > low) & (newton < high), newton, (low + high) / 2)
        is_converged = bool((step - b).abs().max() < 1e-10)
        b = step
        if is_converged:
            break
    return b


def sigmoid_bias(shots: SupportSet, logits: Tensor) -> Tensor:
    """(c,) bias that turns scaled cosines of the shots (n, c) into sigmoid logits: the encoder's, or a fitted one."""
    assert shots.targets is not None
    if shots.bias is not None:
        return logits.new_full((logits.shape[1],), shots.bias)
    return fit_bias(logits, shots.targets)


def add_bias(head: object, logits: Tensor) -> Tensor:
    """(m, c) logits plus the learned ``bias_`` of a head, if it has one."""
    bias: Tensor | None = getattr(head, "bias_", None)
    return logits if bias is None else logits + bias.to(logits.dtype)


def mean_bias(head: object, n_classes: int) -> Tensor | None:
    """(n_classes,) bias for classes that a head was not fitted to: the mean of its ``bias_``; None if it has none."""
    bias: Tensor | None = getattr(head, "bias_", None)
    return None if bias is None else bias.mean().expand(n_classes).clone()


def binary_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """(n,) binary cross-entropy of each picture, summed over the classes."""
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)


MIN_GRADIENT = 1e-30
"""Gradients of single logits that are smaller are zero. Products with them stay above 1.2e-38, the smallest float32
with all its digits. Intel's processors need up to 190 times as long for a product of smaller numbers."""


def label_loss(logits: Tensor, labels: Tensor, offset: Tensor | None = None, q: float = 0.0) -> Tensor:
    """Mean loss of logits (b, c) for class positions (b,): cross-entropy, logit-adjusted and generalised if asked for.

    Logit adjustment adds to the logits, in training only, a constant of each class (c,) that grows with its frequency:
    Menon et al., ICLR 2021, https://arxiv.org/abs/2007.07314, equation 10. Generalised cross-entropy is
    ``(1 - p ** q) / q`` for the probability p of the label: Zhang and Sabuncu, NeurIPS 2018,
    https://arxiv.org/abs/1805.07836, equation 6. Its gradient is that of cross-entropy times ``p ** q``, so that labels
    which the model contradicts weigh less. With q near 0 it is cross-entropy, with q of 1 one minus the probability.
    """
    logits = drop_tiny_gradients(logits if offset is None else logits + offset)
    if q == 0:
        return cross_entropy(logits, labels)
    log_p = -cross_entropy(logits, labels, reduction="none")
    return -(torch.expm1(q * log_p) / q).mean()


@dataclass(frozen=True)
class Loss:
    """`label_loss`; or, of multi-label targets, binary cross-entropy summed over the classes.

    The second is SigLIP's loss without its text side (Zhai et al., ICCV 2023, equation 1): the sum over classes, not
    their mean, is as large as the cross-entropy of as many labels.
    """

    labels: Tensor  # (n,) class positions; not used with multi-label targets
    targets: Tensor | None = None  # (n, c) ones and zeros of multi-label pictures
    offset: Tensor | None = None  # (c,) added to the logits for labels
    q: float = 0.0  # of generalised cross-entropy; 0 is cross-entropy

    @classmethod
    def of_support_set(cls, shots: SupportSet, rows: Tensor, offset: Tensor | None = None, q: float = 0.0) -> Loss:
        """The loss of some of the shots."""
        return cls(shots.labels[rows], None if shots.targets is None else shots.targets[rows], offset, q)

    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Mean loss of a batch with logits (b, c), whose labels have the row numbers (b,)."""
        if self.targets is None:
            return label_loss(logits, self.labels[rows], self.offset, self.q)
        return binary_losses(drop_tiny_gradients(logits), self.targets[rows]).mean()

    def sums_at_temperatures(
        self, logits: Tensor, rows: Tensor, temperatures: Tensor, wrong_label_share: float
    ) -> Tensor:
        """(t,) summed loss of rows with logits (b, c), divided by each of the temperatures (t,).

        A share of the labels may be wrong, so that one wrong label can't outweigh the rest.
        """
        if self.targets is not None:
            return torch.stack([binary_losses(logits / t, self.targets[rows]).sum() for t in temperatures])
        right = probabilities_at_temperatures(logits, self.labels[rows], temperatures, self.offset)
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
        present = counts[counts > 0]
        if self.logit_adjustment == 0 or not len(present) or present.min() == present.max():
            return None
        return self.logit_adjustment * (counts.clamp_min(present.min()) / counts.sum()).log()


def estimate_wrong_share(logits: Tensor, labels: Tensor) -> float:
    """Share of the labels (n,) that are wrong, as out-of-fold logits (n, c) of a head suggest it.

    The estimate maximises the likelihood of the labels, where this share of them is drawn from all classes, each as
    likely, and the others from the softmax of the logits at the best temperature. So it is slightly higher than the
    share of labels that differ from the truth.
    """
    p = probabilities_at_temperatures(logits.double(), labels, TEMPERATURES)  # (t, n)
    likelihoods = [((1 - s) * p + s / logits.shape[1]).clamp_min(1e-300).log().sum(dim=1).max() for s in WRONG_SHARES]
    return WRONG_SHARES[int(torch.stack(likelihoods).argmax())]


def held_out_gce(logits: Tensor, labels: Tensor, q: float) -> float:
    """Generalised cross-entropy at the best temperature: bounded, so that wrong labels can't decide it."""
    divided = (logits.double() / temperature for temperature in TEMPERATURES.tolist())
    return min(float(label_loss(each, labels, q=q)) for each in divided)


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
