"""The rejector's scores as a graph: what `clipadapter.uncertainty` computes in numpy, in float32 and with torch.

Mahalanobis distances are differences of products in numpy, in float64; float32 would lose them. With the inverse
covariance (I - V diag(g) V') / floor, the root of its numerator is I - V diag(1 - sqrt(1 - g)) V', so that the distance
is the length of a difference here. Which mean is the nearest is still seen from products.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clipadapter.functional import unit
from clipadapter.uncertainty import Rejector
from clipadapter.uncertainty.ood_scores import ClassGaussians, unit_rows


class Strangeness(nn.Module):
    """Features, logits and probabilities to how strange pictures are; see `clipadapter.uncertainty.Rejector.scores`.

    Args:
        rejector: learned.
    """

    text: Tensor
    distractors: Tensor
    background: Tensor
    shots: Tensor
    directions: Tensor
    centre: Tensor
    factor: Tensor

    def __init__(self, rejector: Rejector) -> None:
        super().__init__()
        self.names = tuple(part.name for part in rejector.parts)
        memory, self.scale = rejector.memory, rejector.memory.scale
        for name in ("text", "shots"):
            _keep(self, name, getattr(memory, name))
        _keep(self, "distractors", memory.negative_labels)
        _keep(self, "background", memory.outliers)
        spread = memory.gaussians
        self.distance = Distance(spread) if spread is not None and "mahalanobis" in self.names else None
        _keep(self, "directions", None if spread is None else unit_rows(spread.means))
        _keep(self, "centre", np.array([part.centre for part in rejector.parts]))
        _keep(self, "factor", np.array([part.weight / part.deviation for part in rejector.parts]))

    def forward(self, features: Tensor, logits: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """(n, d), (n, c) and (n, c) to the sum (n,) and its parts (n, p)."""
        rows = unit(features)
        parts = torch.stack([self._column(name, rows, logits, probabilities) for name in self.names], dim=1)
        return ((parts - self.centre) * self.factor).sum(dim=1), parts

    def _column(self, name: str, rows: Tensor, logits: Tensor, probabilities: Tensor) -> Tensor:
        """One score (n,); the formulas are those of `clipadapter.uncertainty.ood_scores`."""
        if name == "max-logit":
            return -_highest(logits)
        if name == "energy":
            return -_log_sum_exp(logits)
        if name == "msp":
            return 1 - _highest(probabilities)
        if name == "mahalanobis" and self.distance is not None:
            nearest: Tensor = self.distance(rows)
            return nearest
        if name == "knn":
            return 1 - _highest(rows @ self.shots.T)
        if name == "background":
            return _highest(rows @ self.background.T) - _highest(rows @ self.directions.T)
        return self._by_text(name, rows, rows @ self.text.T)

    def _by_text(self, name: str, rows: Tensor, cosines: Tensor) -> Tensor:
        if name == "distractors":
            return _log_sum_exp(self.scale * rows @ self.distractors.T) - _log_sum_exp(self.scale * cosines)
        if name == "mcm":
            return 1 - (_highest(cosines) - _log_sum_exp(cosines)).exp()
        assert name == "text", f"a score {name!r} that export does not know"
        return 1 - _highest(cosines)


class Distance(nn.Module):
    """Unit rows (n, d) to the squared Mahalanobis distance (n,) from the nearest of the classes' means."""

    zero: Tensor
    directions: Tensor
    shrunk: Tensor
    centres: Tensor
    lengths: Tensor

    def __init__(self, spread: ClassGaussians) -> None:
        super().__init__()
        basis = np.asarray(spread.basis, np.float64)
        _, singular, directions = np.linalg.svd(basis, full_matrices=False)  # B'B = V diag(g) V'
        shrunk = 1 - np.sqrt(1 - np.minimum(singular**2, 1.0))
        means = np.asarray(spread.means, np.float64)
        zero = means.mean(axis=0)
        centres = means - zero
        centres = (centres - (centres @ directions.T * shrunk) @ directions) / np.sqrt(spread.floor)
        _keep(self, "zero", zero)
        _keep(self, "directions", directions)
        _keep(self, "shrunk", shrunk)
        _keep(self, "centres", centres)
        _keep(self, "lengths", (centres**2).sum(axis=1))
        self.root = float(1 / np.sqrt(spread.floor))

    def forward(self, rows: Tensor) -> Tensor:
        """(n, d) to (n,)."""
        far = rows - self.zero
        if len(self.shrunk):
            far = far - (far @ self.directions.T * self.shrunk) @ self.directions
        far = far * self.root
        nearest = (self.lengths - 2 * far @ self.centres.T).argmin(dim=1)
        return (far - self.centres[nearest]).square().sum(dim=1)


def _keep(module: nn.Module, name: str, values: NDArray[np.floating] | None) -> None:
    """As a constant in float32."""
    module.register_buffer(name, None if values is None else torch.from_numpy(np.array(values, np.float32, order="C")))


def _highest(values: Tensor) -> Tensor:
    return values.amax(dim=1)


def _log_sum_exp(values: Tensor) -> Tensor:
    top = values.amax(dim=1, keepdim=True)
    return (values - top).exp().sum(dim=1).log() + top[:, 0]
