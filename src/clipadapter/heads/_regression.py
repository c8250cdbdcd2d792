"""Softmax regression on few rows of many columns, by L-BFGS."""

from __future__ import annotations

import math

import torch
from torch import Tensor

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
        value, gradient = self._value(self.point, penalty)
        size, slope = float(gradient.abs().sum()), float(gradient.square().sum())
        if min(size, value) < NOTHING:
            return 1
        # torch's first step is 1 / size along the gradient, often far too short. In these units, which change nothing
        # later, it is the Newton step, or that which would take all of the loss if it fell as steeply as here.
        step = min(slope / max(self._curvature(gradient, penalty), 1e-30), value / slope)
        length, factor = step * size, 1 / (step * size**2)
        point = (self.point / length).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [point],
            max_iter=max_iter,
            max_eval=20 * max_iter,
            history_size=10,
            tolerance_grad=0.0,
            # Below this a change of the loss is rounding.
            tolerance_change=factor * torch.finfo(point.dtype).eps / 10,
            line_search_fn="strong_wolfe",
        )

        def closure() -> float:
            value, gradient = self._value(point.detach() * length, penalty)
            # torch stops by the largest entry, which the more there are the longer stays above the others: it is shown
            # a gradient of nought when the norm has fallen enough.
            point.grad = gradient / size if gradient.norm() > tol * self.first else torch.zeros_like(point)
            return value * factor

        optimizer.step(closure)
        self.point = point.detach() * length
        return int(optimizer.state[point]["n_iter"])

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
        n = len(self.rows)
        logits = self._logits(point)
        top = logits.logsumexp(dim=1, keepdim=True)
        true = self.target[:, None]
        loss = (top - logits.gather(1, true)).mean(dtype=torch.float64)
        residual = logits.sub_(top).exp_()
        residual.scatter_add_(1, true, -torch.ones_like(top))
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
