"""The blend that training takes, whose length is free, points where the one of the paper does."""

import pytest
import torch

from clipadapter.functional import unit
from clipadapter.heads._bottleneck import Bottleneck, blend


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("final_relu", [False, True])
@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.99, 1.0, torch.tensor(0.4)])
def test_a_blend_of_free_length_has_the_direction_and_gradients_of_the_other(bias, final_relu, ratio):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(7, 12, generator=generator, dtype=torch.float64)
    layer = Bottleneck.initial(12, 5, bias, generator, torch.float64)
    weights = [weight.requires_grad_() for weight in layer.tensors().values()]
    found = unit(layer.blended(x, ratio, final_relu))
    expected = blend(x, layer(x, final_relu), ratio)
    torch.testing.assert_close(found, expected)
    toward = torch.randn(7, 12, generator=generator, dtype=torch.float64)
    pairs = [torch.autograd.grad((each * toward).sum(), weights) for each in (found, expected)]
    torch.testing.assert_close(*pairs)
