"""Low-rank updates of attention layers: as branches beside the weights while they are trained, merged into them after.

The library peft is not used: its LoRA of ``nn.MultiheadAttention``, which CLIP's towers are made of, has one matrix A
for queries, keys and values together, always changes the output projection too, and merges before each forward pass, so
that no dropout can stand before the branch; CLIP-LoRA needs all three otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from clipadapter.encoders import Layer
from clipadapter.tuners._layers import add, put


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

            def make(weight: Tensor, bias: Tensor | None, letters: str, own: dict[str, Branch] = branches) -> nn.Module:
                return BranchedLinear(weight, bias, [own[letter] for letter in letters], drop)

            put(layer, self.letters, make)

    def merge(self, layers: Sequence[Layer]) -> None:
        """Put weights into the layers that the update is added to."""
        with torch.no_grad():
            for i, layer in enumerate(layers):
                for j, letter in enumerate(self.letters):
                    add(layer[letter], self.scale * self.b[i, j] @ self.a[i, j])


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
