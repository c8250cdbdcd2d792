"""How the residual ratio is chosen: by hand, by another way of computing, and what must not matter."""

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


def single(labels):
    return Loss(torch.tensor(labels))


def held_out(seed=0, n=12, c=4, gain=3.0):
    """Logits at each ratio that get better up to 0.5, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(c, size=n)
    noise = rng.standard_normal((n, c))
    layers = [noise + gain * (0.25 - (ratio - 0.5) ** 2) * np.eye(c)[labels] for ratio in CANDIDATE_RATIOS]
    return [torch.tensor(layer) for layer in layers], labels


def table(layers, loss):
    """The table of logits that are listed by ratio."""
    return held_out_loss_table(lambda ratio: layers[CANDIDATE_RATIOS.index(ratio)], loss)


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
    assert expected_ratio(torch.tensor(logits), single(labels)) == pytest.approx(
        0.3 * share ** (1.75 / (1 + 3 / 20)), rel=1e-5
    )


def test_the_null_model_of_multi_label_pictures_knows_how_frequent_each_class_is():
    targets = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    share = [0.75, 0.5]
    guess, bias = Loss(torch.full((4,), -1), targets), torch.tensor([math.log(p / (1 - p)) for p in share])
    assert expected_ratio(bias.expand(4, 2), guess) == pytest.approx(0.3 * (5 / 6) ** (1.75 / 1.2), abs=1e-6)
    assert expected_ratio(20 * (2 * targets - 1), guess) < 0.05


def test_without_a_held_out_shot_the_ratio_is_the_expected_one():
    assert choose_ratio([], 0.37) == 0.37


def test_the_ratio_is_the_posterior_mean_by_numerical_integration():
    layers, labels = held_out()
    found = choose_ratio([table(layers, single(labels))], 0.3)

    def loss(ratio):
        """Between two candidates on a line, as a fine grid of ratios would have it."""
        every = [
            min(
                sum(
                    -math.log(0.95 * math.exp(row[k] / t) / sum(np.exp(row / t)) + 0.05 / 4)
                    for row, k in zip(layer.numpy(), labels, strict=True)
                )
                for t in CANDIDATE_TEMPERATURES
            )
            for layer in layers
        ]
        return np.interp(ratio, CANDIDATE_RATIOS, every)

    fine = np.linspace(0, 1, 2001)
    posterior = np.exp(-loss(fine) - ((fine - 0.3) / RATIO_SPREAD) ** 2 / 2)
    assert found == pytest.approx(float(posterior @ fine / posterior.sum()), abs=0.01)


def test_how_confident_the_logits_are_does_not_matter():
    layers, labels = held_out()
    plain, loud = (choose_ratio([table([f * x for x in layers], single(labels))], 0.2) for f in (1.0, 4.0))
    assert loud == pytest.approx(plain, abs=0.01)


def test_one_wrong_label_among_sure_ones_hardly_moves_the_ratio():
    layers, labels = held_out(n=30, gain=30.0)
    wrong = labels.copy()
    wrong[0] = (wrong[0] + 1) % 4
    right, moved = (choose_ratio([table(layers, single(of))], 0.2) for of in (labels, wrong))
    assert moved == pytest.approx(right, abs=0.05)


def test_tables_of_folds_add_up():
    layers, labels = held_out()
    whole = table(layers, single(labels))
    parts = [table([layer[i] for layer in layers], single(labels[i])) for i in (slice(5), slice(5, None))]
    torch.testing.assert_close(parts[0] + parts[1], whole)
