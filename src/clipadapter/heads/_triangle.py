"""Symmetric matrices without their upper half, for what is saved."""

from __future__ import annotations

import torch
from torch import Tensor


def packed(matrix: Tensor) -> Tensor:
    """The lower triangle (n (n + 1) / 2,) of a matrix (n, n), row by row.

    >>> packed(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([1., 3., 4.])
    """
    return matrix[_below(len(matrix))]


def unpacked(triangle: Tensor) -> Tensor:
    """A matrix (n, n) with this lower triangle, and zeros above it: all that a Cholesky factor is made from.

    >>> unpacked(torch.tensor([1.0, 3.0, 4.0]))
    tensor([[1., 0.],
            [3., 4.]])
    """
    n = round((8 * len(triangle) + 1) ** 0.5) // 2
    matrix = triangle.new_zeros(n, n)
    matrix[_below(n)] = triangle
    return matrix


def _below(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril_()
