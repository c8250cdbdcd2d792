"""The scores of "none of these" as a graph: what `clipadapter.uncertainty.Rejector` computes in numpy, here in torch.

In numpy, in float64, Mahalanobis distances are differences of products, which would lose their digits in float32. Here
the whitening matrix is applied to a difference, and the distance is the squared length of the result. The inverse
covariance is (I - V diag(g) V') / floor; the whitening matrix is its root
(I - V diag(1 - sqrt(1 - g)) V') / sqrt(floor).
The nearest mean is still found by products: there a rounding error only decides between two nearly equal distances.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clipadapter.uncertainty import Rejector
from clipadapter.uncertainty.class_gaussians import ClassGaussians
from clipadapter.utils.functional import unit
from clipadapter.utils.prediction import unit_rows


class OodScores(nn.Module):
    """Features and logits to scores of "none of these"; see `uncertainty.Rejector.scores`."""

    text: Tensor
    negative_labels: Tensor
    outliers: Tensor
    mean_directions: Tensor
    centre: Tensor
    factor: Tensor

    def __init__(self, rejector: Rejector) -> None:
        super().__init__()
        self.names = tuple(part.name for part in rejector.parts)
        memory, self.scale = rejector.memory, rejector.memory.scale
        for name in ("text", "negative_labels", "outliers"):
            _register_constant(self, name, getattr(memory, name))
        gaussians = memory.gaussians
        self.distance = (
            MahalanobisDistance(gaussians) if gaussians is not None and "mahalanobis" in self.names else None
        )
        _register_constant(self, "mean_directions", None if gaussians is None else unit_rows(gaussians.means))
        _register_constant(self, "centre", np.array([part.centre for part in rejector.parts]))
        _register_constant(self, "factor", np.array([part.weight / part.deviation for part in rejector.parts]))

    def forward(self, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(n, d) and (n, c) to the total score (n,) and its parts (n, p)."""
        rows = unit(features)
        parts = torch.stack([self._score(name, rows, logits) for name in self.names], dim=1)
        return ((parts - self.centre) * self.factor).sum(dim=1), parts

    def _score(self, name: str, rows: Tensor, logits: Tensor) -> Tensor:
        """One score (n,); the formulas are those of `clipadapter.uncertainty.ood_scores`."""
        if name == "max-logit":
            return -_row_max(logits)
        if name == "mahalanobis" and self.distance is not None:
            distances: Tensor = self.distance(rows)
            return distances
        if name == "outliers":
            return _row_max(rows @ self.outliers.T) - _row_max(rows @ self.mean_directions.T)
        cosines = rows @ self.text.T
        if name == "negative-labels":
            return _log_sum_exp(self.scale * rows @ self.negative_labels.T) - _log_sum_exp(self.scale * cosines)
        assert name == "text", f"export has no graph for the score {name!r}"
        return 1 - _row_max(cosines)


class MahalanobisDistance(nn.Module):
    """Unit rows (n, d) to the squared Mahalanobis distance (n,) from the nearest class mean."""

    origin: Tensor
    directions: Tensor
    shrinkage: Tensor
    centres: Tensor
    squared_lengths: Tensor

    def __init__(self, gaussians: ClassGaussians) -> None:
        super().__init__()
        basis = np.asarray(gaussians.basis, np.float64)
        _, singular, directions = np.linalg.svd(basis, full_matrices=False)  # B'B = V diag(g) V'
        shrinkage = 1 - np.sqrt(1 - np.minimum(singular**2, 1.0))
        means = np.asarray(gaussians.means, np.float64)
        origin = means.mean(axis=0)  # rows are far from zero and close to each other: float32 is finest near zero
        centres = means - origin
        centres = (centres - (centres @ directions.T * shrinkage) @ directions) / np.sqrt(gaussians.floor)
        _register_constant(self, "origin", origin)
        _register_constant(self, "directions", directions)
        _register_constant(self, "shrinkage", shrinkage)
        _register_constant(self, "centres", centres)
        _register_constant(self, "squared_lengths", (centres**2).sum(axis=1))
        self.scale = float(1 / np.sqrt(gaussians.floor))

    def forward(self, rows: Tensor) -> Tensor:
        """(n, d) to (n,)."""
        whitened = rows - self.origin
        if len(self.shrinkage):
            whitened = whitened - (whitened @ self.directions.T * self.shrinkage) @ self.directions
        whitened = whitened * self.scale
        nearest = (self.squared_lengths - 2 * whitened @ self.centres.T).argmin(dim=1)
        return (whitened - self.centres[nearest]).square().sum(dim=1)


def _register_constant(module: nn.Module, name: str, values: NDArray[np.floating] | None) -> None:
    """Register a buffer in float32."""
    module.register_buffer(name, None if values is None else torch.from_numpy(np.array(values, np.float32, order="C")))


def _row_max(values: Tensor) -> Tensor:
    return values.amax(dim=1)


def _log_sum_exp(values: Tensor) -> Tensor:
    maximum = values.amax(dim=1, keepdim=True)
    return (values - maximum).exp().sum(dim=1).log() + maximum[:, 0]
