"""Matrices as U diag(s) V', of which the singular values s change: as factors while they are trained, merged after.

Only the product enters a tower. It does not hang on the signs of U and V; but where singular values are equal, U and V
may be turned, and another machine may turn them otherwise. So equal ones change together, by their mean change, and
those that are zero, whose U and V have nothing to do with each other, stay. Decomposed is in fp64: in fp32 neighbours
in a trained tower are equal to rounding, and the product would differ by 1e-4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from clipadapter.encoders import Layer
from clipadapter.heads.training import side_by_side
from clipadapter.tuners._layers import add, put

EQUAL = 1e-9
"""Difference of neighbouring singular values, as a share of the largest, below which they are taken as equal."""
WORK = 10**9
"""Multiplications of a decomposition, or more."""


@dataclass(frozen=True, eq=False)
class Factors:
    """A matrix as ``u @ diag(s) @ vt``, with k = min(out, in) singular values, the largest first.

    Args:
        u: (out, k), orthonormal columns.
        s: (k,).
        vt: (k, in), orthonormal rows.
        group: (k,) a number that equal singular values share.
        share: (k,) one over their number; zero for those that stay.
    """

    u: Tensor
    s: Tensor
    vt: Tensor
    group: Tensor
    share: Tensor

    def tied(self, change: Tensor) -> Tensor:
        """Changes (k,) of the singular values, as they may be."""
        return torch.zeros_like(change).index_add(0, self.group, change * self.share)[self.group]

    def product(self, change: Tensor) -> Tensor:
        """What changes of the singular values (k,) add to the matrix, (out, in)."""
        return (self.u * self.tied(change)) @ self.vt

    def like(self, weight: Tensor) -> Factors:
        """The same of the type and on the device of a weight."""
        u, s, vt, share = (each.to(weight).contiguous() for each in (self.u, self.s, self.vt, self.share))
        return Factors(u, s, vt, self.group.to(weight.device), share)


def decompose(weight: Tensor) -> Factors:
    """The singular value decomposition of a matrix (out, in), in fp64 on the CPU.

    >>> parts = decompose(torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
    >>> parts.s, parts.tied(torch.tensor([1.0, 0.0], dtype=torch.float64))
    (tensor([2., 2.], dtype=torch.float64), tensor([0.5000, 0.5000], dtype=torch.float64))
    """
    matrix = weight.detach().to("cpu", torch.float64)
    wide = matrix.shape[0] < matrix.shape[1]
    u, s, vt = torch.linalg.svd(matrix.T if wide else matrix, full_matrices=False)  # tall ones take half the time
    if wide:
        u, vt = vt.T, u.T
    apart = s[:-1] - s[1:] > EQUAL * s[0]
    group = torch.cat([torch.zeros(1, dtype=torch.int64), apart.cumsum(0)])
    share = (1 / torch.bincount(group).to(s))[group].where(s > EQUAL * s[0], 0.0)
    return Factors(u, s, vt, group, share)


@dataclass(frozen=True, eq=False)
class Piece:
    """Some outputs of a linear layer, whose matrix has changed singular values.

    Args:
        rows: which outputs.
        factors: their matrix.
        values: has the changes.
        part: which of them are its own.
    """

    rows: slice
    factors: Factors
    values: SingularValues
    part: slice

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(..., in) to (..., out)."""
        own = self.factors
        return linear(linear(x, own.vt) * (own.s + own.tied(self.values.change[self.part])), own.u, bias)


class FactoredLinear(nn.Module):
    """A linear layer of which some matrices are factors.

    Args:
        weight: (out, in), for the outputs of no piece.
        bias: (out,), or None.
        pieces: of different rows.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, pieces: Sequence[Piece]) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.pieces = sorted(pieces, key=lambda each: each.rows.start)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        found, done = [], 0
        for piece in self.pieces:
            found += [self._plain(x, slice(done, piece.rows.start)), piece(x, self._bias(piece.rows))]
            done = piece.rows.stop
        found.append(self._plain(x, slice(done, len(self.weight))))
        kept = [each for each in found if each.shape[-1]]
        return kept[0] if len(kept) == 1 else torch.cat(kept, dim=-1)

    def _plain(self, x: Tensor, rows: slice) -> Tensor:
        return linear(x, self.weight[rows], self._bias(rows)) if rows.start < rows.stop else x[..., :0]

    def _bias(self, rows: slice) -> Tensor | None:
        return None if self.bias is None else self.bias[rows]


@dataclass(frozen=True, eq=False)
class SingularValues:
    """Changes of the singular values of all matrices of some layers.

    Args:
        change: (n,) layer by layer, in a layer matrix by matrix in its order.
    """

    change: Tensor

    def fits(self, layers: Sequence[Layer]) -> bool:
        """Whether these are layers with as many singular values."""
        return self.change.shape == (count(layers),)

    def attach(self, layers: Sequence[Layer]) -> None:
        """Put factors into the layers, to be trained there."""
        parts = _parts(layers)
        weights = [place.values for layer in layers for place in layer.values()]
        factors = iter(side_by_side([partial(_of_its_own, weight) for weight in weights], WORK))
        for layer, own in zip(layers, parts, strict=True):
            pieces = {letter: Piece(layer[letter].rows, next(factors), self, own[letter]) for letter in layer}

            def make(weight: Tensor, bias: Tensor | None, letters: str, all_: dict[str, Piece] = pieces) -> nn.Module:
                return FactoredLinear(weight, bias, [all_[letter] for letter in letters])

            put(layer, "".join(layer), make)

    def merge(self, layers: Sequence[Layer]) -> None:
        """Put weights into the layers that have the changed singular values."""
        change = self.change.detach().to("cpu", torch.float64)
        places = [
            (layer[letter], own[letter]) for layer, own in zip(layers, _parts(layers), strict=True) for letter in layer
        ]
        tasks = [partial(_product, place.values, change[part]) for place, part in places]
        for (place, _), found in zip(places, side_by_side(tasks, WORK), strict=True):
            add(place, found)


def count(layers: Sequence[Layer]) -> int:
    """How many singular values all matrices of some layers have."""
    return sum(min(place.values.shape) for layer in layers for place in layer.values())


def _parts(layers: Sequence[Layer]) -> list[dict[str, slice]]:
    """Which of the singular values belong to each matrix."""
    found, done = [], 0
    for layer in layers:
        own = {}
        for letter, place in layer.items():
            own[letter] = slice(done, done + min(place.values.shape))
            done = own[letter].stop
        found.append(own)
    return found


def _of_its_own(weight: Tensor) -> Factors:
    return decompose(weight).like(weight.detach())


def _product(weight: Tensor, change: Tensor) -> Tensor:
    return decompose(weight).product(change).to(weight.dtype)
