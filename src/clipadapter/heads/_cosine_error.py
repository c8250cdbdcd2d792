"""Cross-entropy of scaled cosines with its gradient in closed form: the end of every step that moves features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def cosine_error(features: Tensor, weight: Tensor, labels: Tensor, scale: float, shortest: float = 0.0) -> Tensor:
    """Mean cross-entropy of ``scale * unit(features) @ weight.T``.

    The unit features are never made, and the gradient takes one product and one pass over (n, d) where automatic
    differentiation of the same formula takes six passes, as long as the product at a few hundred classes.

    Args:
        features: (n, d), any length; a gradient is given if it is asked for.
        weight: (c, d), likewise.
        labels: (n,) class positions.
        scale: CLIP's ``exp(logit_scale)``.
        shortest: length below which features are divided by it and no longer by their own. Without it a feature of
            zeros has logits of zero, as by `functional.unit`, and a gradient of zero: it has no direction.

    Returns:
        A scalar.

    >>> features, weight = torch.tensor([[3.0, 4.0]]), torch.eye(2)
    >>> expected = torch.nn.functional.cross_entropy(torch.tensor([[6.0, 8.0]]), torch.tensor([1]))
    >>> bool(torch.isclose(cosine_error(features, weight, torch.tensor([1]), 10.0), expected))
    True
    """
    return _CosineError.apply(features, weight, labels, scale, shortest)


class _CosineError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, labels: Tensor, scale: float, shortest: float) -> Tensor:
        # The gradient divides by squares of lengths: below this bound it overflows, and squares lose their digits.
        least = (8 * max(scale, 1.0) * torch.finfo(features.dtype).tiny) ** 0.5
        length = features.norm(dim=1, keepdim=True)
        bounded = length.clamp_min(max(shortest, least))
        factor = scale / bounded
        if shortest < least:
            factor = torch.where(length < least, 0, factor)
        logits = (features @ weight.T).mul_(factor)  # (n, c)
        logs = logits.log_softmax(dim=1)
        ctx.free = length >= max(shortest, least)
        ctx.save_for_backward(features, weight, labels, bounded, factor, logits, logs)
        return -logs.gather(1, labels[:, None]).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, labels, length, factor, logits, logs = ctx.saved_tensors
        residual = logs.exp()
        residual.scatter_add_(1, labels[:, None], residual.new_full((len(labels), 1), -1.0))
        residual.mul_(grads[0] / len(labels))
        # A longer feature has smaller logits, unless its length is at the bound.
        along = (residual * logits).sum(dim=1, keepdim=True) * ctx.free
        residual.mul_(factor)
        by_features = by_weight = None
        if ctx.needs_input_grad[0]:
            by_features = (features * (-along / length / length)).addmm_(residual, weight)
        if ctx.needs_input_grad[1]:
            by_weight = residual.T @ features
        return by_features, by_weight, None, None, None
