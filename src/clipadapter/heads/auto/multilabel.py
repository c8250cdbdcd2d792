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

from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipadapter.heads.auto.blocks import MIN_NOISE_STD, spread_shares, unit_blocks, unit_centred
from clipadapter.heads.auto.experts import leave_one_out_ridge, ridge_map
from clipadapter.heads.auto.stacking import fit_multilabel_stacking, mix_logits, noise_std, predict_held_out
from clipadapter.heads.multilabel import binary_losses, fit_bias
from clipadapter.heads.out_of_fold import make_folds, most_classes_repeat
from clipadapter.heads.support import SupportSet
from clipadapter.utils.blocks import column_slices
from clipadapter.utils.functional import unit
from clipadapter.utils.parallel import limit_threads

SLOPES = torch.logspace(-2, 1, 31, device="cpu")
"""Candidate slopes of zero-shot logits of unit spread; their prior is log-normal, of median 1 and sigma 1."""
TEXT_WEIGHT, RIDGE_WEIGHT = 0.5, 0.5
"""Prior medians of the weights: of the text, as a share of its slope; of ridge regression, in units of its noise."""
LOG_WEIGHT_STD = 1.25  # standard deviation of the logarithm of each of these weights
ONE_SHOT_RIDGE_WEIGHT = 0.5
"""Weight of ridge regression, beside the text at its full slope, where most classes have one shot."""
BLOCKS_RIDGE_RATIO = 0.5
"""Prior median of the weights of ridge regression on all further blocks together, divided by that on ``final``."""
MAX_REPEATS, MIN_HELD_OUT_ROWS = 3, 300
"""The folds are drawn up to three times, until this many rows are held out in total."""


def fit_multilabel(shots: SupportSet, folds: int, seed: int) -> dict[str, Any]:
    """What `Auto` learns from multi-label shots, by attribute.

    The logits are ``text_weight / spread * cosines + z W' + bias``, with z centred unit features of ``final``. Further
    blocks add ``z_b W_b'``.
    """
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
    repeats = max(1, min(MAX_REPEATS, MIN_HELD_OUT_ROWS // len(targets)))
    splits = make_folds(targets, folds, seed, repeats) if most_classes_repeat(targets) else []

    def predict(train: Tensor, rows: Tensor) -> list[Tensor]:
        maps = [fit_multilabel_ridge(each[train], targets[train]) for each in z]
        return [each[rows] @ weight.T for each, weight in zip(z, maps, strict=True)]

    with limit_threads(z[0].numel() * targets.shape[1]):
        maps = [fit_multilabel_ridge(each, targets) for each in z]
        # Where most classes have one shot, each shot is left out by itself, in closed form.
        scores = predict_held_out(splits, predict) or [leave_one_out_ridge(each @ each.T, targets) for each in z]
    rows = torch.cat([rows for _, rows in splits]) if splits else torch.arange(len(x))
    truth = targets[rows]
    noise = [max(noise_std(each, truth), MIN_NOISE_STD if i else 0.0) for i, each in enumerate(scores)]
    parts = [zero_shot[rows], *(each / std for each, std in zip(scores, noise, strict=True))]
    if splits:
        median = [TEXT_WEIGHT * slope, *(RIDGE_WEIGHT * ratio for ratio in ratios)]
        weights, bias = fit_multilabel_stacking(parts, truth, median, LOG_WEIGHT_STD, 1 / repeats)
    else:
        weights = [slope, *(ONE_SHOT_RIDGE_WEIGHT * ratio for ratio in ratios)]
        scaled = [weight / std for weight, std in zip(weights[1:], noise, strict=True)]
        bias = fit_bias(mix_logits([zero_shot, *scores], [slope, *scaled]), targets)
    factors = [weight / std for weight, std in zip(weights[1:], noise, strict=True)]
    block_weight = block_share = None
    if further:
        of_blocks = [mix_logits(parts[:2], weights[:2]), *map(torch.mul, parts[2:], weights[2:])]
        block_share = spread_shares([float(part.std(dim=0).mean()) for part in of_blocks])
        used = zip(factors[1:], maps[1:], block_share[1:].tolist(), strict=True)
        block_weight = torch.cat([(factor if share else 0.0) * each for factor, each, share in used], dim=1)
    return {
        "centre_": centre,
        "weight_": factors[0] * maps[0],
        "bias_": bias.to(x.dtype) - weights[0] / spread * mean,
        "text_": text,
        "text_weight_": weights[0],
        "spread_": spread,
        "shots_": None,
        "dual_": None,
        "block_centre_": block_centre,
        "block_weight_": block_weight,
        "block_share_": block_share,
    }


def fit_multilabel_ridge(z: Tensor, targets: Tensor) -> Tensor:
    """Ridge regression (c, d) of centred targets (n, c) on rows z (n, d)."""
    return ridge_map(z, targets - targets.mean(dim=0))


def _fit_slope(zero_shot: Tensor, targets: Tensor) -> float:
    """Posterior mean (of the logarithm) of the slope that calibrates zero-shot logits of unit spread."""
    log_posterior = []
    with limit_threads(0):
        for slope in SLOPES.tolist():
            logits = slope * zero_shot
            losses = binary_losses(logits + fit_bias(logits, targets), targets)
            log_posterior.append(-float(losses.sum()) - np.log(slope) ** 2 / 2)
    posterior = torch.tensor(log_posterior, dtype=torch.float64).softmax(dim=0)
    return float((posterior @ SLOPES.to(zero_shot.device).double().log()).exp())


def _fill_missing_text(text: Tensor) -> Tensor:
    """Class text where a class without text gets the mean of the others, which favours no label."""
    missing = text.norm(dim=1) == 0
    return torch.where(missing[:, None], text[~missing].mean(dim=0), text) if missing.any() else text
