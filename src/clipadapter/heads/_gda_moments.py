"""Sums over shots that a Gaussian a class with one shared covariance is made from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import Self

BLOCK = 1024


@dataclass
class Moments:
    """Float64 sums over unit features.

    Args:
        scatter: (d, d) about the class means.
        total: (d,) sum of all rows.
        square: summed squared length of all rows.
        means: (c, d), those of classes without a shot the mean of the others.
        counts: (c,) rows, views included.
    """

    scatter: Tensor
    total: Tensor
    square: float
    means: Tensor
    counts: Tensor

    @classmethod
    def of(cls, products: Tensor, sums: Tensor, counts: Tensor) -> Self:
        """From products of all rows x, x' x summed (d, d), sums (c, d) and counts (c,) of each class's rows.

        The upper half of the products may be anything: that of the scatter then is, too.
        """
        there = counts > 0
        means = sums / counts.clamp_min(1)[:, None]
        scatter = products - sums.T @ means
        means[~there] = means[there].mean(dim=0)
        return cls(scatter, sums.sum(dim=0), float(products.trace()), means, counts.double())


def add_up(products: Tensor, sums: Tensor, rows: Tensor, labels: Tensor, sign: int = 1) -> None:
    """Add unit features (n, v, d) to products and sums, or take them out, in place and a block at a time."""
    for block, own in zip(rows.split(BLOCK), labels.split(BLOCK), strict=True):
        exact = block.double()
        sums.index_add_(0, own, exact.sum(dim=1), alpha=sign)
        flat = exact.flatten(0, 1)
        products.addmm_(flat.T, flat, alpha=sign)


def moments_of(rows: Tensor, labels: Tensor, n_classes: int) -> Moments:
    """Of unit features (n, v, d)."""
    d = rows.shape[2]
    products, sums = torch.zeros(d, d, dtype=torch.float64), torch.zeros(n_classes, d, dtype=torch.float64)
    add_up(products, sums, rows, labels)
    return Moments.of(products, sums, torch.bincount(labels, minlength=n_classes) * rows.shape[1])


def mean_covariance(rows: Tensor, labels: Tensor, moments: Moments) -> Tensor:
    """(d, d) of the covariances of the classes, each by its own rows less one; classes with one row are left out."""
    d, spread = rows.shape[2], moments.counts > 1
    share = torch.where(spread, 1 / (moments.counts - 1).clamp_min(1), 0.0) / spread.sum().clamp_min(1)
    covariance = torch.zeros(d, d, dtype=torch.float64)
    for block, own in zip(rows.split(BLOCK), labels.split(BLOCK), strict=True):
        # About the means row by row: a difference of sums would leave noise where the covariance is zero.
        out = (block.double() - moments.means[own][:, None]) * share[own].sqrt()[:, None, None]
        covariance.addmm_(out.flatten(0, 1).T, out.flatten(0, 1))
    return covariance
