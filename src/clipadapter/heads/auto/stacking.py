"""Weights of experts, fitted by log-loss on held-out shots, with a prior that stands where no shot can be held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

MISTAKES = 0.05
"""Share of labels that are taken for wrong, so that one misplaced shot can't silence the text."""
TRUST = (2.0, 1.0)
"""Log-normal prior of the text's weight: median and spread, for zero-shot logits of unit spread."""
BLOCK = 2**17
"""Logits looked at together in `trust`: a megabyte."""
NOISE = 0.08
"""Spread of ridge scores of wrong classes: what it is taken for where it can't be seen, as with two classes."""


def centre(logits: Tensor) -> Tensor:
    """(n, c) less the mean of each row."""
    return logits - logits.mean(dim=1, keepdim=True)


def trust(logits: Tensor, labels: Tensor, shares: Tensor | None = None) -> float:
    """What calibrates zero-shot: the posterior mean of the factor for its logits.

    Zero-shot saw none of the shots, so that their likelihood is an honest measure of it.

    Args:
        logits: (n, c) of unit spread.
        labels: (n,).
        shares: (n,) weights of the rows; one each if not given.

    >>> round(trust(torch.eye(4) * 5, torch.arange(4)), 1) > round(trust(torch.eye(4), torch.tensor([1, 2, 3, 0])), 1)
    True
    """
    factors = torch.logspace(-1.5, 1.5, 61, dtype=torch.float64)
    weights = torch.ones(len(labels), dtype=torch.float64) if shares is None else shares.double()
    posterior = -((factors.log() - np.log(TRUST[0])) ** 2) / (2 * TRUST[1] ** 2)
    # A block at a time stays in the processor's cache through all factors.
    for block in torch.arange(len(labels)).split(max(1, BLOCK // logits.shape[1])):
        below = logits[block].double()
        below -= below.amax(dim=1, keepdim=True)
        right = below.gather(1, labels[block, None])[:, 0]
        for i, factor in enumerate(factors.tolist()):
            probability = (factor * right).exp_() / (factor * below).exp_().sum(dim=1)
            posterior[i] += weights[block] @ ((1 - MISTAKES) * probability + MISTAKES / logits.shape[1]).log()
    return float((posterior.softmax(dim=0) @ factors.log()).exp())


def noise(logits: Tensor, labels: Tensor) -> float:
    """Spread of the scores that wrong classes get, the unit in which an expert's scores are measured.

    Args:
        logits: (n, c) of rows that the expert did not see.
        labels: (n,).
    """
    n, c = logits.shape
    wrong = ~torch.nn.functional.one_hot(labels, c).bool()
    rest = centre(logits[wrong].reshape(n, c - 1))
    freedom = n * max(c - 2, 0)
    if freedom == 0:
        return float(centre(logits).square().mean().sqrt()) / 2 or 1.0
    return float((rest.square().sum() / freedom).sqrt()) or 1.0


def mixing_weights(
    logits: Sequence[Tensor],
    labels: Tensor,
    expected: Sequence[float],
    spread: Sequence[float],
    shares: Tensor | None = None,
) -> list[float]:
    """Weights w >= 0 of ``sum_i w_i logits_i`` that make the labels likeliest, under a Gaussian prior.

    One label in twenty is taken to be wrong, so that a misplaced shot pulls less the surer the others are.

    Args:
        logits: (n, c) of each expert, on rows it did not see.
        labels: (n,).
        expected: mean of each weight's prior.
        spread: its standard deviation.
        shares: (n,) weights of the rows; one each if not given.

    >>> good, bad = torch.eye(3) * 4, torch.eye(3).roll(1, 0) * 4
    >>> mixing_weights([good, bad], torch.arange(3), [0.5, 0.1], [1.0, 1.0])[1]
    0.0
    """
    stack = torch.stack([centre(part) for part in logits]).double()  # (experts, n, c)
    onehot = torch.nn.functional.one_hot(labels, stack.shape[2]).double()
    rows = torch.ones(len(labels), dtype=torch.float64) if shares is None else shares.double()
    mean, sd = np.asarray(expected, dtype=np.float64), np.asarray(spread, dtype=np.float64)

    def loss(weights: Any) -> tuple[float, Any]:
        mixed = torch.tensordot(torch.from_numpy(np.asarray(weights)), stack, dims=1)
        probability = mixed.softmax(dim=1)
        right = (1 - MISTAKES) * (probability * onehot).sum(dim=1)
        likelihood = right + MISTAKES / stack.shape[2]
        pull = rows * right / likelihood  # how far a row is believed
        gradient = torch.tensordot(stack, (probability - onehot) * pull[:, None], dims=2).numpy()
        away = (weights - mean) / sd
        return float(-(rows @ likelihood.log())) + float(away @ away) / 2, gradient + away / sd

    start = np.maximum(mean, 1e-3)
    bounds, options = [(0.0, None)] * len(mean), {"ftol": 1e-11, "gtol": 1e-7}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return [float(weight) for weight in found.x]
