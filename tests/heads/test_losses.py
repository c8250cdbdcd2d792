"""Losses against the papers' formulas in plain loops, and what heads do with them."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from clipadapter.heads import TrainedHead, create_head, head_info, list_heads, out_of_fold
from clipadapter.heads.losses import LogitAdjustedHead, Loss, estimate_wrong_share, label_loss, trained_cosines
from clipadapter.heads.trained_head import ROBUST_Q
from clipadapter.testing import toy_features
from clipadapter.utils.functional import unit

from .estimators import create_short


def draw_logits(n=7, c=4, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features, weight = (torch.randn(rows, d, generator=generator, dtype=torch.float64) for rows in (n, c))
    return features.requires_grad_(), weight.requires_grad_(), torch.randint(c, (n,), generator=generator)


def test_trained_cosines_are_those_of_unit_features_with_their_gradients():
    features, weight, labels = draw_logits()
    found, expected = trained_cosines(features, weight), unit(features) @ weight.T
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    of_both = [
        torch.autograd.grad(label_loss(30 * cosines, labels), (features, weight)) for cosines in (found, expected)
    ]
    torch.testing.assert_close(*of_both, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("length", [0.0, 1e-10, 1e-15, 1e-19, 1e-30, 1e-44])
def test_no_length_of_a_feature_makes_the_loss_or_a_gradient_infinite(length):
    features, weight, labels = (tensor.detach() for tensor in draw_logits())
    features, weight = (length * features).float().requires_grad_(), unit(weight).float().requires_grad_()
    loss = label_loss(100.0 * trained_cosines(features, weight), labels)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(features.grad).all() and torch.isfinite(weight.grad).all()


def test_no_gradient_has_numbers_so_small_that_products_with_them_are_slow():
    margins = torch.arange(80.0, 120.0)  # exp(-88) and less is below the smallest float32 with all its digits
    labels, rows = torch.zeros(40, dtype=torch.int64), torch.arange(40)
    for loss, sign in ((Loss(labels), 1), (Loss(labels, q=0.7), 1), (Loss(labels, torch.zeros(40, 3)), -1)):
        logits = torch.cat([margins[:, None], torch.zeros(40, 2)], dim=1).requires_grad_()
        loss(sign * logits, rows).backward()
        gradient = logits.grad.abs()
        assert not ((gradient > 0) & (gradient < torch.finfo(torch.float32).tiny)).any()


ADJUSTED = [name for name in list_heads() if issubclass(head_info(name).cls, LogitAdjustedHead)]
TRAINED = [name for name in ADJUSTED if issubclass(head_info(name).cls, TrainedHead)]
CHOOSABLE = [name for name in ADJUSTED if "logit_adjustment" in create_head(name).get_params()]
"""Two heads have a fixed adjustment."""
COUNTS = (9, 3, 2)


def loss_in_loops(logits, labels, offset, q):
    """Menon et al., equation 10, and Zhang and Sabuncu, equation 6."""
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        exponentials = [math.exp(value + add) for value, add in zip(row, offset, strict=True)]
        p = exponentials[label] / sum(exponentials)
        total += -math.log(p) if q == 0 else (1 - p**q) / q
    return total / len(labels)


@pytest.mark.parametrize("q", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("tau", [0.0, 1.5])
def test_it_is_the_formula_of_both_papers(q, tau):
    features, weight, labels = draw_logits()
    offset = [tau * math.log(share) for share in (0.5, 0.3, 0.15, 0.05)]
    added = torch.tensor(offset, dtype=torch.float64) if tau else None
    logits = (3 * unit(features) @ weight.T).detach()
    assert float(label_loss(logits, labels, added, q)) == pytest.approx(
        loss_in_loops(logits, labels, offset, q), rel=1e-12
    )


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((6, 3, 1), [2 * math.log(0.6), 2 * math.log(0.3), 2 * math.log(0.1)]),
        ((6, 2, 0), [2 * math.log(6 / 8), 2 * math.log(2 / 8), 2 * math.log(2 / 8)]),
        ((4, 4, 4), None),
        ((4, 4, 0), None),
        ((0, 0, 0), None),
    ],
)
def test_the_prior_is_the_share_of_the_shots_and_without_one_that_of_the_rarest_class(counts, expected):
    prior = create_head("taskres", logit_adjustment=2.0)._log_prior(torch.tensor(counts, dtype=torch.float64))
    assert prior is None if expected is None else prior.tolist() == pytest.approx(expected)


def fitted_logits(name, counts, **params):
    X, y, text = toy_features(counts=counts, d=16, noise=2.0)
    return create_short(name).set_params(**params).fit(X, y, text=text).logits(X)


@pytest.mark.parametrize("name", CHOOSABLE)
def test_equal_shots_are_fitted_as_without_adjustment_and_else_the_class_with_most_shots_gets_less(name):
    equal, unequal = ([fitted_logits(name, n, logit_adjustment=tau) for tau in (0.0, 2.0)] for n in ((4, 4, 4), COUNTS))
    assert np.array_equal(*equal)  # the same sums in the same order
    change = unequal[1] - unequal[0]
    change -= change.mean(axis=1, keepdims=True)
    assert change[:, 0].mean() < change[:, 2].mean()


@pytest.mark.parametrize("name", TRAINED)
def test_generalised_cross_entropy_changes_what_a_trained_head_learns_and_auto_chooses_for_every_one(name):
    assert not np.array_equal(*(fitted_logits(name, (4, 4, 4), gce_q=q) for q in (0.0, 0.7)))
    X, y, text, _ = mislabelled(0.3, n=4)
    assert create_short(name).set_params(gce_q="auto").fit(X, y, text=text).gce_q_ in (0.0, ROBUST_Q)


@pytest.mark.parametrize("solver", ["torch", "sklearn"])
def test_the_adjusted_probe_is_the_fit_with_the_prior_added_to_its_logits(solver):
    X, y, _ = toy_features(counts=COUNTS, d=6, noise=0.9)
    X = np.asarray(X, np.float64)
    head = create_head("linear-probe", C=2.0, logit_adjustment=1.5, tol=1e-9, solver=solver).fit(X, y)
    rows, labels = torch.from_numpy(X), torch.from_numpy(np.unique(y, return_inverse=True)[1])
    weight, bias = (tensor.detach().clone().requires_grad_() for tensor in (head.weight_, head.bias_))
    prior = 1.5 * (torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)).log()
    loss = torch.nn.functional.cross_entropy(linear(unit(rows), weight, bias) + prior, labels, reduction="sum")
    (2.0 * loss + weight.square().sum() / 2).backward()
    assert float(weight.grad.abs().max()) < 1e-3
    assert float(bias.grad.abs().max()) < 1e-3


def test_multi_label_pictures_are_fitted_as_without_either_parameter():
    X, _, text = toy_features(counts=(4, 4, 2), d=16)
    targets = np.random.default_rng(0).integers(0, 2, (len(X), 3))
    plain, other = (
        create_head("clip-adapter", alpha=0.3, steps=3, epochs=3, **params).fit(X, targets, text=text).logits(X)
        for params in ({}, {"logit_adjustment": 1.0, "gce_q": 0.7})
    )
    assert np.array_equal(plain, other)  # the same sums in the same order


def mislabelled(share, n=12):
    """Toy features of three classes that are easy to tell apart, with a share of the labels moved to the next class."""
    X, y, text = toy_features(counts=(n, n, n), d=64, noise=0.6)
    classes, positions = np.unique(y, return_inverse=True)
    wrong = np.random.default_rng(0).permutation(len(y))[: round(share * len(y))]
    positions[wrong] = (positions[wrong] + 1) % 3
    return X, classes[positions], text, y


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0.0, 0.02), (0.2, 0.2, 0.4)])
def test_the_share_of_wrong_labels_is_estimated_from_logits_that_did_not_see_them(share, low, high):
    X, y, text, _ = mislabelled(share)
    held_out = out_of_fold(create_head("gda"), X, y, text)
    estimate = estimate_wrong_share(torch.from_numpy(held_out.logits), torch.from_numpy(held_out.labels))
    assert low <= estimate <= high


def test_auto_is_cross_entropy_bit_for_bit_where_labels_look_right_and_where_nothing_can_be_held_out():
    for X, y, text in (mislabelled(0.0, n=8)[:3], toy_features(counts=(1, 1, 1), d=16)):
        plain, chosen = (create_head("zs-lp", steps=20, gce_q=q).fit(X, y, text=text) for q in (0.0, "auto"))
        assert chosen.gce_q_ == 0
        assert np.array_equal(plain.logits(X), chosen.logits(X))  # the same sums in the same order


def test_auto_takes_the_robust_loss_where_labels_are_wrong_and_refits_to_some_shots_keep_it():
    X, y, text, truth = mislabelled(0.3)
    plain, chosen = (create_head("zs-lp", gce_q=q).fit(X, y, text=text) for q in (0.0, "auto"))
    assert chosen.gce_q_ == ROBUST_Q
    assert (chosen.predict(X) == truth).mean() > (plain.predict(X) == truth).mean()
    part = chosen.refit_without(X, y, np.arange(4), text)
    same = create_head("zs-lp", gce_q=ROBUST_Q).fit(X[4:], y[4:], text=text)
    assert np.array_equal(part.logits(X), same.logits(X))  # the same sums in the same order
