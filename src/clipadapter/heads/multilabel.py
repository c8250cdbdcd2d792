"""Multi-label classification: every class is a binary problem, predicted by a sigmoid. What heads share for it.

A contrastive encoder such as CLIP only learned which of several texts fits a picture best: its cosines have no
threshold above which a text fits. Where the encoder has no logit bias (SigLIP has one, Zhai et al., ICCV 2023,
https://arxiv.org/abs/2303.15343), a bias of each class is fitted to the shots. The fitted bias is this project's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipadapter.heads.support import SupportSet

BIAS_PRIOR_STD = 2.0
"""Standard deviation, in logits, of the normal prior of a class's bias around the bias of all classes."""
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
