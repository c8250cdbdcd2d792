"""The closed-form gradient against automatic differentiation of the formula, and against differences."""

import pytest
import torch

from clipadapter.functional import unit
from clipadapter.heads.losses import LabelLoss, Loss, cosine_cross_entropy


def draw(n=7, c=4, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features, weight = (torch.randn(rows, d, generator=generator, dtype=torch.float64) for rows in (n, c))
    return features.requires_grad_(), weight.requires_grad_(), torch.randint(c, (n,), generator=generator)


def test_it_is_the_cross_entropy_of_scaled_cosines_and_has_its_gradient():
    features, weight, labels = draw()
    plain = torch.nn.functional.cross_entropy(30 * unit(features) @ weight.T, labels)
    found = cosine_cross_entropy(features, weight, labels, 30.0)
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=0)
    for ours, expected in zip(
        torch.autograd.grad(3 * found, (features, weight)),
        torch.autograd.grad(3 * plain, (features, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("min_length", [0.0, 2.0])
def test_its_gradient_is_that_of_differences_on_both_sides_of_the_min_length_length(min_length):
    features, weight, labels = draw()
    assert 0 < (features.norm(dim=1) < 2).sum() < len(features)
    assert torch.autograd.gradcheck(
        lambda f, w: cosine_cross_entropy(f, w, labels, 3.0, min_length), (features, weight)
    )


def test_what_needs_no_gradient_gets_none():
    features, weight, labels = draw()
    cosine_cross_entropy(features, weight.detach(), labels, 3.0).backward()
    assert features.grad is not None
    assert weight.grad is None


def test_a_feature_of_zeros_is_no_trap():
    features, weight, labels = draw()
    zeros = torch.zeros_like(features, requires_grad=True)
    loss = cosine_cross_entropy(zeros, weight, labels, 3.0, 1e-6)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(torch.tensor(4.0).log())
    assert torch.isfinite(zeros.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_of_zeros_among_others_has_logits_of_zero_and_moves_nothing(dtype):
    features, weight, labels = (tensor.detach().to(dtype) for tensor in draw(n=4))
    features = torch.cat([features, torch.zeros(1, 5, dtype=dtype)]).requires_grad_()
    weight, labels = weight.requires_grad_(), torch.cat([labels.long(), torch.tensor([1])])
    loss = cosine_cross_entropy(features, weight, labels, 100.0)
    loss.backward()
    others = features.detach()[:4].requires_grad_()
    same = weight.detach().requires_grad_()
    of_others = torch.nn.functional.cross_entropy(100 * unit(others) @ same.T, labels[:4], reduction="sum") / 5
    of_others.backward()
    torch.testing.assert_close(loss, of_others + torch.tensor(4.0, dtype=dtype).log() / 5)
    torch.testing.assert_close(features.grad, torch.cat([others.grad, torch.zeros(1, 5, dtype=dtype)]))
    torch.testing.assert_close(weight.grad, same.grad)


@pytest.mark.parametrize("length", [1e-10, 1e-15, 1e-17, 1e-19, 1e-30, 1e-44])
def test_no_length_of_a_feature_makes_the_loss_or_a_gradient_infinite(length):
    features, weight, labels = (tensor.detach() for tensor in draw())
    features, weight = (length * features).float().requires_grad_(), unit(weight).float().requires_grad_()
    loss = cosine_cross_entropy(features, weight, labels, 100.0)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(features.grad).all() and torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("q", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["cosines", "logits", "targets"])
def test_no_gradient_has_numbers_so_small_that_products_with_them_are_slow(kind, q):
    margins = torch.arange(80.0, 120.0)  # exp(-88) and less is below the smallest float32 with all its digits
    logits = torch.cat([margins[:, None], torch.zeros(40, 2)], dim=1).requires_grad_()
    labels, loss = torch.zeros(40, dtype=torch.int64), LabelLoss(q=q)
    if kind == "cosines":
        features, weight = logits, torch.eye(3)
        cosine_cross_entropy(features, weight, labels, 100.0, label_loss=loss).backward()
    elif kind == "logits":
        loss(logits, labels).backward()
    else:
        Loss(1.0, labels, torch.zeros(40, 3), None).from_features(
            -logits, torch.eye(3), torch.arange(40), normalise=False
        ).backward()
    gradient = logits.grad.abs()
    assert not ((gradient > 0) & (gradient < torch.finfo(torch.float32).tiny)).any()
