"""`auto` for multi-label images: zero-shot and ridge regression, stacked by held-out shots.

The method is ours, and follows the single-label one:

1. Zero-shot was not fitted to the shots. So their likelihood gives the slope that calibrates its logits.
2. Ridge regression on the zeros and ones predicts held-out shots.
3. Two weights that all classes share, and a bias of each class, are fitted to these predictions by log-loss, as in
   stacked generalisation (Wolpert, 1992). A few shots of each class suffice for two shared numbers. The prior of the
   weights is log-normal, so that none becomes zero by chance; that of the biases is normal.
4. Each further block of features gets a ridge regression and a weight of its own.

Chosen on three development sets of mosaics, 2 x 2 images of Caltech-101's training part under `lite`, with 2 to 16
shots per class. There this mixture had 1 to 2 points more mean average precision than logistic regression that starts
from the text, and as much as both together. Half or twice of the constants below changes it by 0.3 points or less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipadapter.blocks import column_slices
from clipadapter.functional import unit
from clipadapter.heads.auto.blocks import MIN_NOISE_STD, unit_blocks, unit_centred, used_shares
from clipadapter.heads.auto.experts import RIDGE, solve_ridge
from clipadapter.heads.folds import iterative_stratification, most_targets_repeat
from clipadapter.heads.multilabel import BIAS_PRIOR_STD, binary_losses, fit_bias
from clipadapter.heads.support import SupportSet
from clipadapter.parallel import limit_threads

SLOPES = torch.logspace(-2, 1, 31, device="cpu")
"""Candidate slopes of zero-shot logits of unit spread; their prior is log-normal, of median 1 and sigma 1."""
TEXT_WEIGHT, RIDGE_WEIGHT = 0.5, 0.5
"""Prior medians of the weights: of the text, as a share of its slope; of ridge regression, in units of its noise."""
LOG_WEIGHT_STD = 1.25
"""Standard deviation of the logarithm of each of these weights."""
ONE_SHOT_RIDGE_WEIGHT = 0.5
"""Weight of ridge regression, beside the text at its full slope, where most classes have one shot."""
BLOCKS_RIDGE_RATIO = 0.5
"""Prior median of the weights of ridge regression on all further blocks together, divided by that on ``final``."""
MAX_REPEATS, MIN_HELD_OUT_ROWS = 3, 300
"""The folds are drawn up to three times, until this many rows are held out in total."""


@dataclass(frozen=True)
class MultilabelMixture:
    """A fitted mixture: ``text_weight / spread * cosines + z W' + bias``, with z centred unit features of ``final``.

    Further blocks add ``z_b W_b'``.

    Args:
        centre: (d,) subtracted from unit features.
        weight: W, (c, d).
        bias: (c,).
        text: (c, d), or None.
        text_weight: of zero-shot logits of unit spread; 0 without text.
        spread: standard deviation of the cosines of the shots with each class's text.
        block_centre: (e,) subtracted from the unit features of the further blocks; None if there are none.
        block_weight: W_b of all further blocks side by side, (c, e), or None.
        block_share: share of each block in the spread of the logits, ``final`` first, or None.
    """

    centre: Tensor
    weight: Tensor
    bias: Tensor
    text: Tensor | None
    text_weight: float
    spread: float
    block_centre: Tensor | None = None
    block_weight: Tensor | None = None
    block_share: Tensor | None = None


def fit_multilabel(shots: SupportSet, folds: int, seed: int) -> MultilabelMixture:
    """The mixture for multi-label shots."""
    assert shots.targets is not None
    x, targets = unit(unit(shots.final_views).mean(dim=1)), shots.targets  # (n, d), (n, c)
    centre = x.mean(dim=0)
    z = [unit(x - centre)]  # of each block
    further, block_centre = column_slices(shots.further_blocks).values(), None
    if further:
        further_x = unit_blocks(shots)
        block_centre = further_x.mean(dim=0)
        z += [unit_centred(further_x[:, columns] - block_centre[columns]) for columns in further]
    text = None if shots.text is None else _fill_missing_text(shots.text)
    zero_shot, spread, slope, mean = torch.zeros_like(targets), 1.0, 0.0, 0.0
    if text is not None:
        # Subtract one mean for all, not that of each row: how well all classes fit says how many labels an image has.
        zero_shot = x @ text.T
        spread, mean = float(zero_shot.std(dim=0, unbiased=False).mean()) or 1.0, float(zero_shot.mean())
        zero_shot = (zero_shot - mean) / spread
        slope = _fit_slope(zero_shot, targets)
    ratios = [1.0, *[BLOCKS_RIDGE_RATIO / max(len(further), 1)] * len(further)]
    with limit_threads(z[0].numel() * targets.shape[1]):
        maps = [fit_multilabel_ridge(each, targets) for each in z]
        held_out, scores, repeats = _out_of_fold_scores(z, targets, folds, seed)
    if repeats:
        truth = targets[held_out]
        noise = [max(_noise_std(each, truth), MIN_NOISE_STD if i else 0.0) for i, each in enumerate(scores)]
        parts = [zero_shot[held_out], *(each / std for each, std in zip(scores, noise, strict=True))]
        prior_median = [TEXT_WEIGHT * slope, *(RIDGE_WEIGHT * ratio for ratio in ratios)]
        (text_weight, *weights), bias = multilabel_stacking_weights(parts, truth, prior_median, 1 / repeats)
    else:
        scores = [_leave_one_out_scores(each, targets) for each in z]
        noise = [max(_noise_std(each, targets), MIN_NOISE_STD if i else 0.0) for i, each in enumerate(scores)]
        text_weight, weights = slope, [ONE_SHOT_RIDGE_WEIGHT * ratio for ratio in ratios]
        parts = [zero_shot, *(each / std for each, std in zip(scores, noise, strict=True))]
        mixed = slope * zero_shot
        for weight, std, each in zip(weights, noise, scores, strict=True):
            mixed = mixed + weight / std * each
        bias = fit_bias(mixed, targets)
    block_weight = block_share = None
    if further:
        of_final = text_weight * parts[0] + weights[0] * parts[1]
        of_blocks = [of_final, *(weight * part for weight, part in zip(weights[1:], parts[2:], strict=True))]
        block_share = used_shares([float(part.std(dim=0).mean()) for part in of_blocks])
        factors = [
            weight / std if share else 0.0
            for weight, std, share in zip(weights[1:], noise[1:], block_share[1:].tolist(), strict=True)
        ]
        block_weight = torch.cat([factor * each for factor, each in zip(factors, maps[1:], strict=True)], dim=1)
    bias = bias.to(x.dtype) - text_weight / spread * mean
    final_weight = weights[0] / noise[0] * maps[0]
    return MultilabelMixture(
        centre, final_weight, bias, text, text_weight, spread, block_centre, block_weight, block_share
    )


def fit_multilabel_ridge(z: Tensor, targets: Tensor) -> Tensor:
    """Ridge regression (c, d) of centred targets (n, c) on rows z (n, d), in the smaller of its two forms.

    >>> fit_multilabel_ridge(torch.eye(2), torch.tensor([[1.0], [0.0]])).round(decimals=3)
    tensor([[ 0.4550, -0.4550]])
    """
    centred = targets - targets.mean(dim=0)
    if len(z) < z.shape[1]:
        return (z.T @ solve_ridge(z @ z.T, centred, RIDGE)).T
    return solve_ridge(z.T @ z, z.T @ centred, RIDGE).T


def multilabel_stacking_weights(
    logits: list[Tensor], targets: Tensor, prior_median: list[float], row_weight: float = 1.0
) -> tuple[list[float], Tensor]:
    """Weights that all classes share, and the bias of each class, of the largest posterior.

    Args:
        logits: (r, c) of each expert, of rows that it was not fitted to.
        targets: (r, c) ones and zeros.
        prior_median: of each weight; the prior is log-normal, with the deviation `LOG_WEIGHT_STD`. A weight whose
            median is zero stays zero.
        row_weight: of each row, below 1 if rows occur several times.

    Returns:
        The weights, and biases (c,). The biases lie around a common one with standard deviation `BIAS_PRIOR_STD`.
    """
    from scipy.optimize import minimize  # late: a fitted head needs no scipy

    stack, truth, k = torch.stack(logits).double(), targets.double(), len(logits)
    median = np.asarray(prior_median)

    def negative_log_posterior(parameters: Any) -> tuple[float, Any]:
        """Of k deviations of log weights in units of the prior, the common bias, and each class's deviation from it."""
        weights = median * np.exp(LOG_WEIGHT_STD * parameters[:k])
        biases = torch.as_tensor(parameters[k] + parameters[k + 1 :])
        mixed = torch.tensordot(torch.as_tensor(weights), stack, dims=1) + biases
        residual = (mixed.sigmoid() - truth) * row_weight
        weight_deviation, bias_deviation = parameters[:k], parameters[k + 1 :] / BIAS_PRIOR_STD
        penalty = float(weight_deviation @ weight_deviation + bias_deviation @ bias_deviation) / 2
        value = float(binary_losses(mixed, truth).sum()) * row_weight + penalty
        weight_gradient = torch.tensordot(stack, residual, dims=2).cpu().numpy() * weights * LOG_WEIGHT_STD
        bias_gradient = residual.sum(dim=0).cpu().numpy()
        return value, np.concatenate(
            [
                weight_gradient + weight_deviation,
                [bias_gradient.sum()],
                bias_gradient + bias_deviation / BIAS_PRIOR_STD,
            ]
        )

    start = np.concatenate([np.zeros(k), [-1.0], np.zeros(stack.shape[2])])
    options = {"ftol": 1e-11, "gtol": 1e-7}
    solution = minimize(negative_log_posterior, start, jac=True, method="L-BFGS-B", options=options).x
    weights = median * np.exp(LOG_WEIGHT_STD * solution[:k])
    return [float(weight) for weight in weights], torch.as_tensor(solution[k] + solution[k + 1 :])


def _fit_slope(zero_shot: Tensor, targets: Tensor) -> float:
    """Posterior mean (of the logarithm) of the slope that calibrates zero-shot logits of unit spread."""
    log_posterior = []
    with limit_threads(0):
        for slope in SLOPES.tolist():
            logits = slope * zero_shot
            losses = binary_losses(logits + fit_bias(logits, targets), targets)
            log_posterior.append(-float(losses.sum()) - np.log(slope) ** 2 / 2)
    return float(
        (
            torch.tensor(log_posterior, dtype=torch.float64).softmax(dim=0) @ SLOPES.to(zero_shot.device).double().log()
        ).exp()
    )


def _out_of_fold_scores(z: list[Tensor], targets: Tensor, folds: int, seed: int) -> tuple[Tensor, list[Tensor], int]:
    """Out-of-fold scores of ridge regression on each block.

    Returns:
        Row numbers (r,), scores (r, c) of each block, and how often each row is held out: 0 if most classes have one
        shot.
    """
    if not most_targets_repeat(targets):
        return torch.zeros(0, dtype=torch.int64), [targets[:0]] * len(z), 0
    repeats = max(1, min(MAX_REPEATS, MIN_HELD_OUT_ROWS // len(targets)))
    splits = [split for i in range(repeats) for split in iterative_stratification(targets, folds, seed + i)]
    scores = [
        torch.cat([each[rows] @ fit_multilabel_ridge(each[train], targets[train]).T for train, rows in splits])
        for each in z
    ]
    return torch.cat([rows for _, rows in splits]), scores, repeats


def _leave_one_out_scores(z: Tensor, targets: Tensor) -> Tensor:
    """(n, c) scores of each shot by ridge regression on all others, in closed form."""
    gram = z @ z.T
    gram.diagonal().add_(RIDGE)
    inverse, centred = torch.linalg.inv(gram), targets - targets.mean(dim=0)
    return centred - inverse @ centred / inverse.diagonal()[:, None]


def _noise_std(scores: Tensor, targets: Tensor) -> float:
    """Standard deviation of the scores of labels that the images do not have: the unit of ridge regression's weight."""
    negatives = scores[targets == 0]
    return (float(negatives.std(unbiased=False)) if len(negatives) else 0.0) or 1.0


def _fill_missing_text(text: Tensor) -> Tensor:
    """Class text where a class without text gets the mean of the others, which favours no label."""
    missing = text.norm(dim=1) == 0
    return torch.where(missing[:, None], text[~missing].mean(dim=0), text) if missing.any() else text
