"""What the automatic head learns from pictures with several labels: text and ridge regression, mixed by held-out shots.

Ours, in the manner of the head for one label. Zero-shot saw none of the shots, so that their likelihood gives the slope
of its logits. Ridge regression onto the ones and zeros answers for held-out shots; two weights that all classes share,
and a bias of each class, are fitted to the answers by log-loss with normal priors, as in stacked generalisation
(Wolpert, 1992). Many classes share two numbers, so that a few shots of each suffice.

Chosen on three development sets of mosaics, of 2 x 2 pictures of Caltech-101's training part under `lite`, with 2 to 16
shots a class: this mixture was before logistic regression that begins with the text by 1 to 2 points of mean average
precision, and as good as both together. Half or twice of the numbers below changes it by 0.3 or less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from clipadapter.functional import unit
from clipadapter.heads._experts import RIDGE, solve
from clipadapter.heads._several import SPREAD, binary_losses, fitted_bias, most_are_several, several_folds
from clipadapter.heads._shots import SupportSet
from clipadapter.parallel import limit_threads

SLOPES = torch.logspace(-2, 1, 31)
"""Factors of zero-shot logits of unit spread; their prior is log-normal, of median 1 and spread 1."""
EXPECTED = (0.5, 0.5)
"""Weights before a shot is held out: of the text, as a share of its slope; of ridge, in units of its noise."""
ONE_SHOT = 0.5
"""Weight of ridge, beside the whole of the text, where most classes have one shot and none can be held out."""
REPEATS, ENOUGH = 3, 300
"""Shots are divided into folds up to three times, as long as this many are not held out in all."""


@dataclass(frozen=True)
class Mixed:
    """A fitted mixture: ``trust / spread * cosines + z W' + bias``, with z centred unit features.

    Args:
        centre: (d,) taken off unit features.
        weight: W, (c, d).
        bias: (c,).
        text: (c, d), or None.
        trust: weight of zero-shot logits of unit spread; 0 without text.
        spread: of the shots' cosines with each class's text.
    """

    centre: Tensor
    weight: Tensor
    bias: Tensor
    text: Tensor | None
    trust: float
    spread: float


def fit_several(shots: SupportSet, folds: int, seed: int) -> Mixed:
    """The mixture for shots with several labels."""
    assert shots.targets is not None
    x, targets = unit(unit(shots.views).mean(dim=1)), shots.targets  # (n, d), (n, c)
    middle = x.mean(dim=0)
    z = unit(x - middle)
    text = None if shots.text is None else _complete(shots.text)
    zero_shot, spread, slope, mean = torch.zeros_like(targets), 1.0, 0.0, 0.0
    if text is not None:
        # Not less the mean of each row: how much all classes fit tells how many of them a picture has.
        zero_shot = x @ text.T
        spread, mean = float(zero_shot.std(dim=0, unbiased=False).mean()) or 1.0, float(zero_shot.mean())
        zero_shot = (zero_shot - mean) / spread
        slope = _slope(zero_shot, targets)
    with limit_threads(z.numel() * targets.shape[1]):
        map_ = ridge_several(z, targets)
        held, scores, again = _held_out_scores(z, targets, folds, seed)
    if again:
        noise = _noise(scores, targets[held])
        weights, bias = mixing_weights_several(
            [zero_shot[held], scores / noise],
            targets[held],
            [EXPECTED[0] * slope, EXPECTED[1]],
            1 / again,
        )
    else:
        own = _unseen(z, targets)
        noise = _noise(own, targets)
        weights = [slope, ONE_SHOT]
        bias = fitted_bias(slope * zero_shot + ONE_SHOT / noise * own, targets)
    bias = bias.to(z.dtype) - weights[0] / spread * mean
    return Mixed(middle, weights[1] / noise * map_, bias, text, weights[0], spread)


def ridge_several(z: Tensor, targets: Tensor) -> Tensor:
    """Ridge regression (c, d) of centred targets on rows z (n, d), in the smaller of its two forms.

    >>> ridge_several(torch.eye(2), torch.tensor([[1.0], [0.0]])).round(decimals=3)
    tensor([[ 0.4550, -0.4550]])
    """
    aim = targets - targets.mean(dim=0)
    if len(z) < z.shape[1]:
        return (z.T @ solve(z @ z.T, aim, RIDGE)).T
    return solve(z.T @ z, z.T @ aim, RIDGE).T


def mixing_weights_several(
    logits: list[Tensor], targets: Tensor, expected: list[float], share: float = 1.0
) -> tuple[list[float], Tensor]:
    """Weights w >= 0 that all classes share, and the bias of each, that make labels likeliest under normal priors.

    Args:
        logits: (r, c) of each expert, on rows it did not see.
        targets: (r, c) ones and zeros.
        expected: mean of each weight's prior, of spread one.
        share: of each row, if rows occur several times.

    Returns:
        The weights, and biases (c,), which lie around a common one with spread 2.
    """
    stack, truth, k = torch.stack(logits).double(), targets.double(), len(logits)
    mean = np.asarray(expected)

    def loss(point: Any) -> tuple[float, Any]:
        values = torch.from_numpy(np.asarray(point))
        mixed = torch.tensordot(values[:k], stack, dims=1) + values[k] + values[k + 1 :]
        residual = (mixed.sigmoid() - truth) * share
        away, own = point[:k] - mean, point[k + 1 :] / SPREAD
        value = float(binary_losses(mixed, truth).sum()) * share + float(away @ away + own @ own) / 2
        of_weights = torch.tensordot(stack, residual, dims=2).numpy() + away
        of_bias = residual.sum(dim=0).numpy()
        return value, np.concatenate([of_weights, [of_bias.sum()], of_bias + own / SPREAD])

    start = np.concatenate([mean, [-1.0], np.zeros(stack.shape[2])])
    bounds = [(0.0, None)] * k + [(None, None)] * (len(start) - k)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-11, "gtol": 1e-7}).x
    return [float(weight) for weight in found[:k]], torch.from_numpy(found[k] + found[k + 1 :])


def _slope(zero_shot: Tensor, targets: Tensor) -> float:
    """Posterior mean of the factor that calibrates zero-shot logits of unit spread."""
    fits = []
    with limit_threads(0):
        for slope in SLOPES.tolist():
            logits = slope * zero_shot
            losses = binary_losses(logits + fitted_bias(logits, targets), targets)
            fits.append(-float(losses.sum()) - np.log(slope) ** 2 / 2)
    return float((torch.tensor(fits, dtype=torch.float64).softmax(dim=0) @ SLOPES.double().log()).exp())


def _held_out_scores(z: Tensor, targets: Tensor, folds: int, seed: int) -> tuple[Tensor, Tensor, int]:
    """Rows, ridge's scores of them without them, and how often each row is there; nothing if most have one shot."""
    if not most_are_several(targets):
        return torch.zeros(0, dtype=torch.int64), targets[:0], 0
    again = max(1, min(REPEATS, ENOUGH // len(z)))
    rows, scores = [], []
    for i in range(again):
        for train, held in several_folds(targets, folds, seed + i):
            rows.append(held)
            scores.append(z[held] @ ridge_several(z[train], targets[train]).T)
    return torch.cat(rows), torch.cat(scores), again


def _noise(scores: Tensor, targets: Tensor) -> float:
    """Spread of the scores of classes that pictures do not have."""
    others = scores[targets == 0]
    return (float(others.std(unbiased=False)) if len(others) else 0.0) or 1.0


def _unseen(z: Tensor, targets: Tensor) -> Tensor:
    """(n, c) ridge scores of each shot by the others, in closed form."""
    gram = z @ z.T
    gram.diagonal().add_(RIDGE)
    inverse, aim = torch.linalg.inv(gram), targets - targets.mean(dim=0)
    return aim - inverse @ aim / inverse.diagonal()[:, None]


def _complete(text: Tensor) -> Tensor:
    """Class text in which a class without text has the mean of the others: the text then says nothing of it."""
    missing = text.norm(dim=1) == 0
    return torch.where(missing[:, None], text[~missing].mean(dim=0), text) if missing.any() else text
