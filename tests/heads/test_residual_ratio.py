"""How the residual ratio is chosen: by hand, and by another way of computing."""

import math

import numpy as np
import pytest
import torch

from clipadapter.heads.losses import Loss
from clipadapter.heads.residual_ratio import (
    CANDIDATE_RATIOS,
    CANDIDATE_TEMPERATURES,
    RATIO_SPREAD,
    choose_ratio,
    expected_ratio,
    held_out_loss_table,
)


def test_the_expected_ratio_is_a_power_of_the_share_of_the_loss_that_zero_shot_leaves_of_a_guess():
    logits = [[2.0, 0.0], [0.5, 0.0], [0.0, 1.0]]
    labels = [0, 1, 1]

    def loss(t):
        total = 0.0
        for row, label in zip(logits, labels, strict=True):
            p = math.exp(row[label] / t) / sum(math.exp(z / t) for z in row)
            total -= math.log(0.95 * p + 0.05 / 2)
        return total

    best = min(CANDIDATE_TEMPERATURES, key=lambda t: loss(t) + math.log(t) ** 2 / 2)
    share = (3 * loss(best) / (3 * math.log(2)) + 2 * 0.5) / (3 + 2)
    assert expected_ratio(torch.tensor(logits), Loss(torch.tensor(labels))) == pytest.approx(
        0.3 * share ** (1.75 / (1 + 3 / 20)), rel=1e-5
    )


def test_the_null_model_of_multi_label_pictures_knows_how_frequent_each_class_is():
    targets = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    share = [0.75, 0.5]
    guess, bias = Loss(torch.full((4,), -1), targets), torch.tensor([math.log(p / (1 - p)) for p in share])
    assert expected_ratio(bias.expand(4, 2), guess) == pytest.approx(0.3 * (5 / 6) ** (1.75 / 1.2), abs=1e-6)
    assert expected_ratio(20 * (2 * targets - 1), guess) < 0.05


def test_the_ratio_is_the_posterior_mean_by_numerical_integration():
    """Of logits that get better up to 0.5; without a held-out shot it is the expected one."""
    rng = np.random.default_rng(0)
    labels, noise = rng.integers(4, size=12), rng.standard_normal((12, 4))
    layers = {ratio: noise + 3 * (0.25 - (ratio - 0.5) ** 2) * np.eye(4)[labels] for ratio in CANDIDATE_RATIOS}
    tables = [
        held_out_loss_table(
            lambda ratio, fold=fold: torch.tensor(layers[ratio][fold]), Loss(torch.tensor(labels[fold]))
        )
        for fold in (slice(5), slice(5, None))
    ]

    def loss(layer):
        return min(
            sum(
                -math.log(0.95 * math.exp(row[k] / t) / sum(np.exp(row / t)) + 0.05 / 4)
                for row, k in zip(layer, labels, strict=True)
            )
            for t in CANDIDATE_TEMPERATURES
        )

    fine = np.linspace(0, 1, 2001)
    losses = np.interp(fine, CANDIDATE_RATIOS, [loss(layer) for layer in layers.values()])
    posterior = np.exp(-losses - ((fine - 0.3) / RATIO_SPREAD) ** 2 / 2)
    assert choose_ratio(tables, 0.3) == pytest.approx(float(posterior @ fine / posterior.sum()), abs=0.01)
    assert choose_ratio([], 0.37) == 0.37
