"""Low-rank updates of attention layers: as branches beside the weights while they are trained, merged into them after.

The library peft is not used: its LoRA of ``nn.MultiheadAttention``, which CLIP's towers are made of, has one matrix A
for queries, keys and values together, always changes the output projection too, and merges before each forward pass, so
that no dropout can stand before the branch; CLIP-LoRA needs all three otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from clipadapter.encoders import Layer


class Dropout:
    """Dropout whose draws are an argument.

    Args:
        rate: share of the values that become zero.
        seed: stream that gives a seed for the draws of each step; see `start_step`.
        device: where the values are.

    >>> drop = Dropout(0.5, torch.Generator().manual_seed(0), "cpu")
    >>> drop.start_step()
    >>> sorted(set(drop(torch.ones(100)).tolist()))
    [0.0, 2.0]
    """

    def __init__(self, rate: float, seed: torch.Generator, device: str) -> None:
        self.rate, self._seed = rate, seed
        self._generator = torch.Generator(device)

    def start_step(self) -> None:
        """Begin the draws of another step; one number of the stream, so that a stream that is restored is enough."""
        self._generator.manual_seed(int(torch.randint(2**62, (), generator=self._seed)))

    def __call__(self, x: Tensor) -> Tensor:
        """The values that are kept are scaled up, so that the mean stays."""
        if not self.rate:
            return x
        kept = torch.empty_like(x).bernoulli_(1 - self.rate, generator=self._generator)
        return x * kept.div_(1 - self.rate)


@dataclass(frozen=True, eq=False)
class Branch:
    """What is added to some outputs of a linear layer: ``scale * b @ a @ dropout(x)``.

    Args:
        rows: which outputs.
        update: has ``a`` and ``b``.
        layer: number of the layer in it.
        matrix: number of the matrix in it.
    """

    rows: slice
    update: Update
    layer: int
    matrix: int

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        a, b = (both[self.layer, self.matrix] for both in (self.update.a, self.update.b))
        return self.update.scale * linear(linear(x, a), b)


class BranchedLinear(nn.Module):
    """A frozen linear layer and branches beside it, each with a dropout of its own before it.

    Args:
        weight: (out, in).
        bias: (out,), or None.
        branches: of different rows.
        drop: dropout of the branches' input.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, branches: Sequence[Branch], drop: Dropout) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.branches, self.drop = branches, drop

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        found = linear(x, self.weight, self.bias)
        if not self.branches:
            return found
        pieces, done = [], 0
        for branch in sorted(self.branches, key=lambda each: each.rows.start):
            pieces += [found[..., done : branch.rows.start], found[..., branch.rows] + branch(self.drop(x))]
            done = branch.rows.stop
        return torch.cat([*pieces, found[..., done:]], dim=-1)


class BranchedAttention(nn.Module):
    """``nn.MultiheadAttention`` of one sequence with itself, with branches beside its matrices.

    Args:
        base: frozen.
        branches: by letter; "q", "k", "v" and "o" are the matrices for queries, keys, values and output.
        drop: dropout of the branches' input.
    """

    def __init__(self, base: nn.MultiheadAttention, branches: Mapping[str, Branch], drop: Dropout) -> None:
        super().__init__()
        self.heads, self.batch_first = base.num_heads, base.batch_first
        inner = [branch for letter, branch in branches.items() if letter != "o"]
        outer = [branch for letter, branch in branches.items() if letter == "o"]
        self.inner = BranchedLinear(base.in_proj_weight, base.in_proj_bias, inner, drop)
        self.outer = BranchedLinear(base.out_proj.weight, base.out_proj.bias, outer, drop)

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


@dataclass(frozen=True, eq=False)
class Update:
    """A low-rank update of the attention layers of a network.

    Args:
        a: (L, p, r, in): for each of L layers and p matrices.
        b: (L, p, out, r).
        letters: which p matrices, such as "qkv".
        alpha: the update of a weight is ``alpha / sqrt(r) * b @ a``.
    """

    a: Tensor
    b: Tensor
    letters: str
    alpha: float

    @property
    def scale(self) -> float:
        """What ``b @ a`` is multiplied by."""
        return self.alpha / math.sqrt(self.a.shape[2])

    def fits(self, layers: Sequence[Layer]) -> bool:
        """Whether these are the layers it was made for, by their number and shapes."""
        shape = (len(layers), len(self.letters))
        return shape == self.a.shape[:2] == self.b.shape[:2] and all(
            layer[letter].values.shape == (self.b.shape[2], self.a.shape[3])
            for layer in layers
            for letter in self.letters
        )

    def attach(self, layers: Sequence[Layer], drop: Dropout) -> None:
        """Put branches into the layers, to be trained there."""
        for i, layer in enumerate(layers):
            branches = {letter: Branch(layer[letter].rows, self, i, j) for j, letter in enumerate(self.letters)}
            for letter in branches:
                place = layer[letter]
                module = place.module
                if isinstance(module, nn.MultiheadAttention):
                    setattr(place.parent, place.child, BranchedAttention(module, branches, drop))
                elif isinstance(module, nn.Linear):
                    own = [branches[other] for other in branches if layer[other].owner is module]
                    setattr(place.parent, place.child, BranchedLinear(module.weight, module.bias, own, drop))

    def merge(self, layers: Sequence[Layer]) -> None:
        """Put weights into the layers that the update is added to."""
        with torch.no_grad():
            for i, layer in enumerate(layers):
                for j, letter in enumerate(self.letters):
                    place = layer[letter]
                    weight = place.whole.detach().clone()
                    weight[place.rows] += (self.scale * self.b[i, j] @ self.a[i, j]).to(weight)
                    setattr(place.owner, place.weight, nn.Parameter(weight, requires_grad=False))


def first_update(
    layers: Sequence[Layer], letters: str, rank: int, alpha: float, generator: torch.Generator, device: str
) -> Update:
    """An update that is zero: ``a`` is drawn as linear layers are at first (within 1 / sqrt(in)), ``b`` is zero."""
    shapes = {tuple(layer[letter].values.shape) for layer in layers for letter in letters}
    assert len(shapes) == 1, f"attention layers differ in width: {shapes}"
    ((out, width),) = shapes
    a = torch.rand(len(layers), len(letters), rank, width, generator=generator).mul(2).sub(1).div(math.sqrt(width))
    b = torch.zeros(len(layers), len(letters), out, rank)
    return Update(a.to(device), b.to(device), letters, alpha)
