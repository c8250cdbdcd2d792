"""Gaussians of classes with one covariance that all share, as in linear discriminant analysis; for `gda` and `timo`.

`GaussianMoments` are the sums it is made of. `gaussians_from_text` makes it for classes that have text and no images.

Letters: n shots, v views of each, c classes, d feature width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import Self

SHOTS_PER_BLOCK = 1024  # shots whose features are converted to float64 at a time
MIN_TRACE = 1e-12
"""Trace of a covariance below which there is no variance; the pseudo-inverse of the released code is then zero."""
TEXT_COPIES = 16  # how many images the text of a class without images counts as, as published


@dataclass
class GaussianMoments:
    """Sums over unit features that a shared covariance is made of, in float64."""

    scatter: Tensor  # (d, d) about the class means
    total: Tensor  # (d,) sum of all rows
    squared_norms: float  # sum of the squared lengths of all rows
    means: Tensor  # (c, d); a class without a shot has the mean of the other classes' means
    counts: Tensor  # (c,) rows of each class, views included

    @classmethod
    def from_sums(cls, products: Tensor, sums: Tensor, counts: Tensor) -> Self:
        """From the sums that `accumulate` adds to, and the number (c,) of rows of each class.

        Of the products only the lower triangle need be valid: then so is that of the scatter.
        """
        present = counts > 0
        means = sums / counts.clamp_min(1)[:, None]
        scatter = products - sums.T @ means
        means[~present] = means[present].mean(dim=0)
        return cls(scatter, sums.sum(dim=0), float(products.trace()), means, counts.double())

    @classmethod
    def from_rows(cls, rows: Tensor, labels: Tensor, n_classes: int) -> Self:
        """From unit features (n, v, d) and their class positions (n,)."""
        d = rows.shape[2]
        products, sums = torch.zeros(d, d, dtype=torch.float64), torch.zeros(n_classes, d, dtype=torch.float64)
        accumulate(products, sums, rows, labels)
        return cls.from_sums(products, sums, torch.bincount(labels, minlength=n_classes) * rows.shape[1])

    @property
    def published_trace(self) -> float:
        """Trace of C / (n - 1): what the released code adds to the diagonal of the scatter C."""
        return float(self.scatter.trace()) / max(float(self.counts.sum()) - 1, 1)

    def shrunk_weight(self, trace: float, factor: float) -> Tensor:
        """(c, d) factor (C + trace I)^-1 mu of each class; zeros without variance. Overwrites the scatter C."""
        if trace <= MIN_TRACE:
            return torch.zeros_like(self.means)
        self.scatter.diagonal().add_(trace)
        return factor * torch.cholesky_solve(self.means.T, torch.linalg.cholesky(self.scatter)).T


def gaussian_bias(weight: Tensor, means: Tensor) -> Tensor:
    """(c,) bias beside weights P mu (c, d) of equally frequent classes with means mu (c, d)."""
    return -0.5 * (weight * means).sum(dim=1) - math.log(len(means))


def accumulate(products: Tensor, sums: Tensor, rows: Tensor, labels: Tensor, sign: int = 1) -> None:
    """Add unit features (n, v, d) to products x' x (d, d) and sums by class (c, d) in place; sign -1 subtracts them."""
    for block, block_labels in zip(rows.split(SHOTS_PER_BLOCK), labels.split(SHOTS_PER_BLOCK), strict=True):
        exact = block.double()
        sums.index_add_(0, block_labels, exact.sum(dim=1), alpha=sign)
        flat = exact.flatten(0, 1)
        products.addmm_(flat.T, flat, alpha=sign)


def average_class_covariance(rows: Tensor, labels: Tensor, moments: GaussianMoments) -> Tensor:
    """(d, d) mean of the unbiased covariances of the classes; classes with a single row are left out."""
    d, has_covariance = rows.shape[2], moments.counts > 1
    weights = torch.where(has_covariance, 1 / (moments.counts - 1).clamp_min(1), 0.0)
    weights = weights / has_covariance.sum().clamp_min(1)  # (c,)
    covariance = torch.zeros(d, d, dtype=torch.float64)
    for block, block_labels in zip(rows.split(SHOTS_PER_BLOCK), labels.split(SHOTS_PER_BLOCK), strict=True):
        # Subtract the mean from each row: a difference of sums would leave rounding noise where the covariance is zero.
        centred = (block.double() - moments.means[block_labels][:, None]) * weights[block_labels].sqrt()[:, None, None]
        covariance.addmm_(centred.flatten(0, 1).T, centred.flatten(0, 1))
    return covariance


def gaussians_from_text(views: Tensor, text: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Means and shared precision of classes that have text and no images (GDA's base-to-new mode).

    The mean of a class is that of the views (r, d) nearest to its text (c, d), at most ``neighbours`` of them, and of
    copies of the text. Its covariance is that of these views about the text. The precision is the mean of the classes'
    precisions, each shrunk as by `Gda.official`.
    """
    (c, d), k = text.shape, min(neighbours, len(views))
    means, precision = torch.empty_like(text), torch.zeros(d, d, dtype=text.dtype)
    for i, class_text in enumerate(text):
        nearest = views[(views @ class_text.to(views.dtype)).topk(k).indices].double()  # (k, d)
        means[i] = (nearest.sum(dim=0) + TEXT_COPIES * class_text) / (k + TEXT_COPIES)
        centred = nearest - class_text
        trace = float(centred.square().sum()) / max(k - 1, 1)
        if trace > MIN_TRACE:
            # Woodbury's identity: k is usually far smaller than d, so the (k, k) form is cheaper.
            inner = centred @ centred.T
            inner.diagonal().add_(trace)
            correction = centred.T @ torch.linalg.solve(inner, centred)
            precision += (torch.eye(d, dtype=text.dtype) - correction) * (d / (c * trace))
    return means, precision
