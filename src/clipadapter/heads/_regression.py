"""Softmax regression on few rows of many columns, by L-BFGS."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipadapter.heads._lbfgs import descend

ABSENT = -1e4
"""Logit of a class without a shot: finite, so that it can be saved, and never the best."""
AFFORDABLE = 300_000_000
"""Multiplications of one pass over the shots, above which C is chosen on some of the classes and shots."""
NOTHING = 1e-10
"""Loss, or size of its gradient, below which there is nothing to learn: the offset is right and sure already."""


class Regression:
    """Softmax regression with an L2 penalty on the weights; on the intercept only if asked, as in scikit-learn.

    The rows are centred, and the constant column of the intercept is made as long as they are in a typical direction:
    both change nothing but the path, of which L-BFGS then needs a half to a third.

    Args:
        X: (n, d).
        labels: (n,); classes without a row are left out.
        offset: (n, c) logits to begin with, a column for each class that has a row; zero if not given.
        unit_intercept: penalise the intercept as the weight of a feature that is one in every row.
    """

    def __init__(
        self, X: Tensor, labels: Tensor, offset: Tensor | None = None, *, unit_intercept: bool = False
    ) -> None:
        self.offset = offset
        self.unit_intercept = unit_intercept
        self.seen, self.target = labels.unique(return_inverse=True)
        self.mean = X.mean(dim=0)
        centred = X - self.mean
        some = centred[:: len(X) // 512 + 1]
        gram = some @ some.T
        # Root of the mean eigenvalue of the covariance, each weighted by itself.
        self.constant = float(gram.norm() / (len(some) * gram.trace()).sqrt().clamp_min(1e-30)) or 1.0
        rows = torch.cat([centred, torch.full_like(centred[:, :1], self.constant)], dim=1)
        # Columns of zeros make the width a multiple of 16: products are a fifth faster.
        self.rows = torch.nn.functional.pad(rows, (0, -rows.shape[1] % 16))  # (n, w)
        self.point = X.new_zeros(len(self.seen), self.rows.shape[1])
        self.first = float(self._value(self.point, self._penalty(1.0))[1].norm())

    def solve(self, C: float, tol: float, max_iter: int) -> int:
        """Go to the optimum from where it stands; returns the iterations."""
        penalty = self._penalty(C)
        first = value, gradient = self._value(self.point, penalty)
        slope = float(gradient.square().sum())
        if min(float(gradient.abs().sum()), value) < NOTHING:
            return 1
        # The Newton step along the gradient, or that which would take all of the loss if it fell as steeply as here.
        step = min(slope / max(self._curvature(gradient, penalty), 1e-30), value / slope)
        enough = tol * self.first
        self.point, iterations = descend(
            lambda point: self._value(point, penalty), self.point, first, step, enough, max_iter
        )
        return iterations

    def answer(self, n_classes: int) -> tuple[Tensor, Tensor]:
        """Weight (c, d) and bias (c,) for rows that are not centred."""
        weight = self.point.new_zeros(n_classes, len(self.mean))
        bias = self.point.new_full((n_classes,), ABSENT)
        d = len(self.mean)
        weight[self.seen] = self.point[:, :d]
        bias[self.seen] = self.point[:, d] * self.constant - self.point[:, :d] @ self.mean
        return weight, bias

    def _penalty(self, C: float) -> Tensor:
        """(w,) weight of each squared column beside the mean log-loss."""
        # With two classes scikit-learn penalises the difference of their weights.
        penalty = self.point.new_full((self.rows.shape[1],), (2 if len(self.seen) == 2 else 1) / (C * len(self.rows)))
        penalty[len(self.mean)] *= self.constant**2 if self.unit_intercept else 0
        return penalty

    def _value(self, point: Tensor, penalty: Tensor) -> tuple[float, Tensor]:
        """Mean log-loss with penalty, and its gradient, at (c, w)."""
        n, true = len(self.rows), self.target[:, None]
        logits = self._logits(point)
        logits.sub_(logits.amax(dim=1, keepdim=True))
        right = logits.gather(1, true)
        total = logits.exp_().sum(dim=1, keepdim=True)
        loss = (total.log() - right).mean(dtype=torch.float64)
        residual = logits.div_(total)
        residual.scatter_add_(1, true, -torch.ones_like(total))
        weighted = point * penalty
        return float(loss + (weighted * point).sum() / 2), (residual.T @ self.rows).div_(n).add_(weighted)

    def _curvature(self, direction: Tensor, penalty: Tensor) -> float:
        """Second derivative along a direction (c, w)."""
        probability = self._logits(self.point).softmax(dim=1)
        change = self.rows @ direction.T
        mean = (probability * change).sum(dim=1, keepdim=True)
        spread = (probability * (change - mean).square_()).sum(dim=1).mean()
        return float(spread + (direction.square() @ penalty).sum())

    def _logits(self, point: Tensor) -> Tensor:
        """(n, c), a new tensor."""
        if not point.any():  # as at the start, which is asked for several times
            zero = point.new_zeros(len(self.rows), len(point))
            return zero if self.offset is None else zero.add_(self.offset)
        logits = self.rows @ point.T
        return logits if self.offset is None else logits.add_(self.offset)


def affordable(labels: Tensor, d: int, seed: int) -> Tensor:
    """Rows to choose on: all, or as many classes, and shots of each, as keep one pass below the bound."""
    n, c = len(labels), len(labels.unique())
    if n * c * d <= AFFORDABLE:
        return torch.arange(n)
    generator = torch.Generator().manual_seed(seed)
    # n falls with c, hence the root; below 32 classes shots are left out instead.
    classes = max(min(32, c), int(c * math.sqrt(AFFORDABLE / (n * c * d))))
    drawn = labels.unique()[torch.randperm(c, generator=generator)[:classes]]
    shots = max(3, AFFORDABLE // (d * classes**2))
    kept = []
    for label in drawn:
        rows = torch.nonzero(labels == label).flatten()
        kept.append(rows[torch.randperm(len(rows), generator=generator)[:shots]])
    return torch.cat(kept).sort().values
