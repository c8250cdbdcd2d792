"""Losses against the formula, and what their gradients must not be."""

import pytest
import torch

from clipadapter.heads.losses import LabelLoss, Loss, trained_cosines
from clipadapter.utils.functional import unit


def draw(n=7, c=4, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features, weight = (torch.randn(rows, d, generator=generator, dtype=torch.float64) for rows in (n, c))
    return features.requires_grad_(), weight.requires_grad_(), torch.randint(c, (n,), generator=generator)


def test_trained_cosines_are_those_of_unit_features_with_their_gradients():
    features, weight, labels = draw()
    found, expected = trained_cosines(features, weight), unit(features) @ weight.T
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    of_both = [
        torch.autograd.grad(LabelLoss()(30 * cosines, labels), (features, weight)) for cosines in (found, expected)
    ]
    torch.testing.assert_close(*of_both, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("length", [0.0, 1e-10, 1e-15, 1e-19, 1e-30, 1e-44])
def test_no_length_of_a_feature_makes_the_loss_or_a_gradient_infinite(length):
    features, weight, labels = (tensor.detach() for tensor in draw())
    features, weight = (length * features).float().requires_grad_(), unit(weight).float().requires_grad_()
    loss = LabelLoss()(100.0 * trained_cosines(features, weight), labels)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(features.grad).all() and torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("q", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["labels", "targets"])
def test_no_gradient_has_numbers_so_small_that_products_with_them_are_slow(kind, q):
    margins = torch.arange(80.0, 120.0)  # exp(-88) and less is below the smallest float32 with all its digits
    logits = torch.cat([margins[:, None], torch.zeros(40, 2)], dim=1).requires_grad_()
    labels, rows = torch.zeros(40, dtype=torch.int64), torch.arange(40)
    if kind == "labels":
        Loss(labels, label_loss=LabelLoss(q=q))(logits, rows).backward()
    else:
        Loss(labels, torch.zeros(40, 3))(-logits, rows).backward()
    gradient = logits.grad.abs()
    assert not ((gradient > 0) & (gradient < torch.finfo(torch.float32).tiny)).any()
