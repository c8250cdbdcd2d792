"""Softmax regression on few rows of many columns, by L-BFGS."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipadapter.heads.lbfgs import descend

ABSENT = -1e4
"""Logit of a class without a shot: finite, so that it can be saved, and never the best."""
AFFORDABLE = 300_000_000
"""Multiplications of one pass over the shots, above which C is chosen on some of the classes and shots."""
FEW = 1.5
"""Rows a column, up to which one product with the Gram matrix is less work than two with the rows."""
NOTHING = 1e-10
"""Loss, or size of its gradient, below which there is nothing to learn: the offset is right and sure already."""


class Regression:
    """Softmax regression with an L2 penalty on the weights; on the intercept only if asked, as in scikit-learn.

    The rows are centred, and the constant column of the intercept is made as long as they are in a typical direction:
    both change nothing but the path, of which L-BFGS then needs a half to a third.

    The weights are sums of rows. Where rows are few, what is looked for are the coefficients of these sums: a pass is
    then one product with the Gram matrix of the rows, not one with the rows for the logits and another for the
    gradient. Lengths and angles are still those of the weights, so that the path is the same.

    Args:
        X: (n, d).
        labels: (n,); classes without a row are left out.
        offset: (n, c) logits to begin with, a column for each class that has a row; zero if not given.
        unit_intercept: penalise the intercept as the weight of a feature that is one in every row.
        gram: (n, n) products of the rows, which should be centred or nearly so; made where it is of use if not given.
    """

    def __init__(
        self,
        X: Tensor,
        labels: Tensor,
        offset: Tensor | None = None,
        *,
        unit_intercept: bool = False,
        gram: Tensor | None = None,
    ) -> None:
        self.offset = None if offset is None else offset.T.contiguous()  # (c, n)
        self.unit_intercept = unit_intercept
        self.seen, self.target = labels.unique(return_inverse=True)
        self.mean = X.mean(dim=0)
        self.centred = X - self.mean
        n, d = X.shape
        self.few = n <= FEW * d
        every = n // 512 + 1
        products = self._gram(gram) if self.few else self.centred[::every] @ self.centred[::every].T
        some = products[::every, ::every] if self.few else products
        # Root of the mean eigenvalue of the covariance, each weighted by itself.
        self.constant = float(some.norm() / (len(some) * some.trace()).sqrt().clamp_min(1e-30)) or 1.0
        self.last = n if self.few else d  # the column of the intercept
        # Columns of zeros make the width a multiple of 16: products are a fifth faster.
        width = self.last + 1 + -(self.last + 1) % 16
        self.rows = X.new_zeros(width if self.few else n, width)
        if self.few:  # products of the rows with each other, and of the intercept with itself
            self.rows[:n, :n] = products
            self.rows[n, n] = 1
        else:
            self.rows[:, :d] = self.centred
            self.rows[:, d] = self.constant
        self.point = X.new_zeros(2 if self.few else 1, len(self.seen), width)
        self.start = self._value(self.point, self._penalty(1.0))  # whatever the penalty
        self.first = _squared(self.start[1]) ** 0.5

    def solve(self, C: float, tol: float, max_iter: int) -> int:
        """Go to the optimum from where it stands; returns the iterations."""
        penalty = self._penalty(C)
        first = value, gradient = self._value(self.point, penalty) if self.point[0].any() else self.start
        slope = _squared(gradient)
        if not slope > 0 or min(float(gradient.abs().sum()), value) < NOTHING:  # alike rows teach nothing
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
        weight = self.centred.new_zeros(n_classes, self.centred.shape[1])
        bias = self.centred.new_full((n_classes,), ABSENT)
        found = self.point[0, :, : self.last]
        found = found @ self.centred if self.few else found
        weight[self.seen] = found
        bias[self.seen] = self.point[0, :, self.last] * self.constant - found @ self.mean
        return weight, bias

    def _gram(self, gram: Tensor | None) -> Tensor:
        """(n, n) products of the centred rows."""
        if gram is None:
            return self.centred @ self.centred.T
        mean = gram.mean(dim=0)
        return (gram - mean).sub_((mean - mean.mean())[:, None])

    def _penalty(self, C: float) -> Tensor:
        """(w,) weight of each squared column beside the mean log-loss."""
        # With two classes scikit-learn penalises the difference of their weights.
        penalty = self.point.new_full(
            (self.rows.shape[1],), (2 if len(self.seen) == 2 else 1) / (C * len(self.centred))
        )
        penalty[self.last] *= self.constant**2 if self.unit_intercept else 0
        return penalty

    def _value(self, point: Tensor, penalty: Tensor) -> tuple[float, Tensor]:
        """Mean log-loss with penalty, and its gradient, at (k, c, w)."""
        n, true = len(self.centred), self.target[None]
        logits = self._logits(point)
        logits.sub_(logits.amax(dim=0))
        right = logits.gather(0, true)
        total = logits.exp_().sum(dim=0, keepdim=True)
        loss = (total.log() - right).mean(dtype=torch.float64)
        residual = logits.div_(total)
        residual.scatter_add_(0, true, -torch.ones_like(total))
        gradient = torch.empty_like(point)
        torch.mul(point[0], penalty, out=gradient[0])
        value = float(loss + gradient[0].flatten().dot(point[-1].flatten()) / 2)
        if self.few:
            gradient[0, :, :n].add_(residual, alpha=1 / n)
            gradient[0, :, n].add_(residual.sum(dim=1), alpha=self.constant / n)
            torch.mm(gradient[0], self.rows, out=gradient[1])
        else:
            gradient[0].addmm_(residual, self.rows, alpha=1 / n)
        return value, gradient

    def _curvature(self, direction: Tensor, penalty: Tensor) -> float:
        """Second derivative along a direction (k, c, w)."""
        probability = self._logits(self.point).softmax(dim=0)
        change = self._products(direction)
        mean = (probability * change).sum(dim=0)
        spread = (probability * (change - mean).square_()).sum(dim=0).mean()
        return float(spread + (direction[0] * direction[-1]).sum(dim=0) @ penalty)

    def _logits(self, point: Tensor) -> Tensor:
        """(c, n), a new tensor."""
        if not point[0].any():  # as at the start, which is asked for several times
            zero = point.new_zeros(point.shape[1], len(self.centred))
            return zero if self.offset is None else zero.add_(self.offset)
        logits = self._products(point)
        return logits if self.offset is None else logits.add_(self.offset)

    def _products(self, point: Tensor) -> Tensor:
        """(c, n), a new tensor."""
        if not self.few:
            return point[0] @ self.rows.T
        n = len(self.centred)
        return torch.add(point[1, :, :n], point[1, :, n : n + 1], alpha=self.constant)


def _squared(gradient: Tensor) -> float:
    """Squared length of (k, c, w)."""
    return max(float((gradient[0] * gradient[-1]).sum()), 0.0)


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
