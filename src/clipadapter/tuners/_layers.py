"""Matrices of transformers' layers: which are changed, and modules or weights of one's own in their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from clipadapter.encoders import Layer
from clipadapter.encoders._tuned import Matrix

LAYERS = ("all", "bottom", "top", "ends")

Make = Callable[[Tensor, "Tensor | None", str], nn.Module]
"""From weight and bias of a linear layer, and the letters of those of its matrices that are changed, to a module."""


def chosen(layers: Sequence[Layer], which: str) -> list[Layer]:
    """Some of the layers of a tower: "all", half of them at the "bottom" or "top", or a third at both "ends".

    >>> [layer["layer"] for layer in chosen([{"layer": i} for i in range(12)], "ends")]
    [0, 1, 2, 3, 8, 9, 10, 11]
    """
    n = len(layers)
    half, third = n // 2, max(n // 3, 1)
    kept = {
        "all": range(n),
        "bottom": range(max(half, 1)),
        "top": range(half, n),
        "ends": {*range(third), *range(n - third, n)},
    }[which]
    return [layer for i, layer in enumerate(layers) if i in kept]


class OpenAttention(nn.Module):
    """``nn.MultiheadAttention`` of one sequence with itself, whose linear layers are modules of one's own.

    Args:
        base: says how many heads there are, and the order of the dimensions.
        inner: (..., w) to queries, keys and values (..., 3w).
        outer: (..., w) to (..., w).
    """

    def __init__(self, base: nn.MultiheadAttention, inner: nn.Module, outer: nn.Module) -> None:
        super().__init__()
        self.heads, self.batch_first = base.num_heads, base.batch_first
        self.inner, self.outer = inner, outer

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        """As ``nn.MultiheadAttention``, without weights of attention; all three inputs are one, a mask is added."""
        x = query if self.batch_first else query.transpose(0, 1)  # (n, l, w)
        n, length, _w = x.shape
        parts = self.inner(x).chunk(3, dim=-1)
        q, k, v = (part.reshape(n, length, self.heads, -1).transpose(1, 2) for part in parts)  # (n, h, l, w / h)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        found = self.outer(mixed.transpose(1, 2).reshape(n, length, -1))
        return (found if self.batch_first else found.transpose(0, 1)), None


def put(layer: Layer, letters: str, make: Make) -> None:
    """Put modules of one's own in the place of the linear layers that have some matrices of a layer.

    Args:
        layer: where they go.
        letters: the matrices.
        make: makes a module; that of the output projection of ``nn.MultiheadAttention`` may get no letters.
    """

    def made(owner: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
        return make(weight, bias, "".join(letter for letter in letters if layer[letter].owner is owner))

    for letter in letters:
        place = layer[letter]
        module = place.module
        if isinstance(module, nn.MultiheadAttention):
            inner = made(module, module.in_proj_weight, module.in_proj_bias)
            outer = made(module.out_proj, module.out_proj.weight, module.out_proj.bias)
            setattr(place.parent, place.child, OpenAttention(module, inner, outer))
        elif isinstance(module, nn.Linear):
            setattr(place.parent, place.child, made(module, module.weight, module.bias))


def add(place: Matrix, change: Tensor) -> None:
    """Put a weight in the place of one of which a matrix is changed; the old one stays as it is.

    Args:
        place: the matrix.
        change: (out, in), added to it.
    """
    with torch.no_grad():
        weight = place.whole.detach().clone()
        weight[place.rows] += change.to(weight)
        setattr(place.owner, place.weight, nn.Parameter(weight, requires_grad=False))
