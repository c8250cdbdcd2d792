"""Softmax regression on few rows of many columns, by L-BFGS."""

from __future__ import annotations

import torch
from torch import Tensor

ABSENT = -1e4
"""Logit of a class without a shot: finite, so that it can be saved, and never the best."""


class Regression:
    """Softmax regression with an L2 penalty on the weights, not on the intercept, as scikit-learn has it.

    The rows are centred and the constant column of the intercept is made half as long as a row: both change nothing but
    the path, of which L-BFGS then needs a half to a third.

    Args:
        X: (n, d).
        labels: (n,); classes without a row are left out.
        offset: (n, c) logits to begin with, a column for each class that has a row; zero if not given.
    """

    def __init__(self, X: Tensor, labels: Tensor, offset: Tensor | None = None) -> None:
        self.offset = offset
        self.seen, self.target = labels.unique(return_inverse=True)
        self.mean = X.mean(dim=0)
        centred = X - self.mean
        self.constant = float(centred.square().sum(dim=1).mean().sqrt()) / 2 or 1.0
        self.rows = torch.cat([centred, torch.full_like(centred[:, :1], self.constant)], dim=1)  # (n, d + 1)
        self.point = X.new_zeros(len(self.seen), self.rows.shape[1])
        self.first = float(self._value(self.point, self._penalty(1.0))[1].abs().max())

    def solve(self, C: float, tol: float, max_iter: int) -> int:
        """Go to the optimum from where it stands; returns the iterations."""
        penalty = self._penalty(C)
        _, gradient = self._value(self.point, penalty)
        size = float(gradient.abs().sum())
        step = float(gradient.square().sum()) / max(self._curvature(gradient, penalty), 1e-30)
        if size == 0:
            return 1
        # torch's first step is 1 / size along the gradient, often far too short. In these units, which change nothing
        # later, it is the Newton step along it.
        length, factor = step * size, 1 / (step * size**2)
        point = (self.point / length).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [point],
            max_iter=max_iter,
            max_eval=20 * max_iter,
            history_size=10,
            tolerance_grad=tol * self.first / size,
            # Below this a change of the loss is rounding.
            tolerance_change=factor * torch.finfo(point.dtype).eps / 10,
            line_search_fn="strong_wolfe",
        )

        def closure() -> float:
            value, gradient = self._value(point.detach() * length, penalty)
            point.grad = gradient / size
            return value * factor

        optimizer.step(closure)
        self.point = point.detach() * length
        return int(optimizer.state[point]["n_iter"])

    def answer(self, n_classes: int) -> tuple[Tensor, Tensor]:
        """Weight (c, d) and bias (c,) for rows that are not centred."""
        weight = self.point.new_zeros(n_classes, len(self.mean))
        bias = self.point.new_full((n_classes,), ABSENT)
        weight[self.seen] = self.point[:, :-1]
        bias[self.seen] = self.point[:, -1] * self.constant - self.point[:, :-1] @ self.mean
        return weight, bias

    def _penalty(self, C: float) -> Tensor:
        """(d + 1,) weight of each squared column beside the mean log-loss."""
        # With two classes scikit-learn penalises the difference of their weights.
        penalty = self.point.new_full((self.rows.shape[1],), (2 if len(self.seen) == 2 else 1) / (C * len(self.rows)))
        penalty[-1] = 0
        return penalty

    def _value(self, point: Tensor, penalty: Tensor) -> tuple[float, Tensor]:
        """Mean log-loss with penalty, and its gradient, at (c, d + 1)."""
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
        """Second derivative along a direction (c, d + 1)."""
        probability = self._logits(self.point).softmax(dim=1)
        change = self.rows @ direction.T
        mean = (probability * change).sum(dim=1, keepdim=True)
        spread = (probability * (change - mean).square_()).sum(dim=1).mean()
        return float(spread + (direction.square() @ penalty).sum())

    def _logits(self, point: Tensor) -> Tensor:
        """(n, c), a new tensor."""
        logits = self.rows @ point.T
        return logits if self.offset is None else logits.add_(self.offset)
