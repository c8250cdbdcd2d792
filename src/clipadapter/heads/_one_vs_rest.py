"""One-vs-rest logistic regression for multi-label targets: all classes at once, on the same rows, by L-BFGS."""

from __future__ import annotations

import torch
from torch import Tensor

from clipadapter.heads._regression import AFFORDABLE, Regression


class OneVsRest(Regression):
    """One logistic regression per class with an L2 penalty on the weights, and on the intercept if ``unit_intercept``.

    The optimum of each class is that of scikit-learn's LogisticRegression. A class that no row has, or that all rows
    have, has no finite optimum: it is left out, and gets a zero weight and the log-odds of its share of the rows, with
    half a positive and half a negative row added.

    Args:
        X: (n, d).
        targets: (n, c) zeros and ones.
        offset: (n, c) fixed part of the logits; by default zero.
        unit_intercept: penalise the intercept like the weight of a feature that is one in every row.
        gram: (n, n) products of the rows, which should be centred or nearly so; by default computed where it is used.
    """

    def __init__(
        self,
        X: Tensor,
        targets: Tensor,
        offset: Tensor | None = None,
        *,
        unit_intercept: bool = False,
        gram: Tensor | None = None,
    ) -> None:
        counts = targets.sum(dim=0)
        self.learned = torch.nonzero((counts > 0) & (counts < len(targets))).flatten()
        self.share = (counts + 0.5) / (len(targets) + 1)
        self.positive = targets[:, self.learned].T.contiguous()  # (c, n)
        offset = None if offset is None else offset[:, self.learned]
        # The base class makes one row of weights for each distinct value of its second argument.
        super().__init__(X, self.learned, offset, unit_intercept=unit_intercept, gram=gram)

    def solve(self, C: float, tol: float, max_iter: int) -> int:
        """Optimise from the current weights; returns the number of iterations."""
        return super().solve(C, tol, max_iter) if len(self.learned) else 0

    def answer(self, n_classes: int) -> tuple[Tensor, Tensor]:
        """Weight (c, d) and bias (c,) for rows that are not centred."""
        weight, bias = super().answer(n_classes)
        known = torch.zeros(n_classes, dtype=torch.bool).index_fill(0, self.learned, True)
        return weight, torch.where(known, bias, (self.share / (1 - self.share)).log().to(bias.dtype))

    def _penalty(self, C: float) -> Tensor:
        penalty = self.point.new_full((self.rows.shape[1],), 1 / (C * len(self.centred)))
        penalty[self.last] *= self.constant**2 if self.unit_intercept else 0
        return penalty

    def _value(self, point: Tensor, penalty: Tensor) -> tuple[float, Tensor]:
        """Penalised log-loss, summed over classes and averaged over rows, and its gradient, at a point (k, c, w)."""
        n = len(self.centred)
        logits = self._logits(point)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, self.positive, reduction="sum") / n
        residual = logits.sigmoid_().sub_(self.positive)
        gradient = torch.empty_like(point)
        torch.mul(point[0], penalty, out=gradient[0])
        value = float(loss) + float(gradient[0].flatten().dot(point[-1].flatten())) / 2
        if self.few:
            gradient[0, :, :n].add_(residual, alpha=1 / n)
            gradient[0, :, n].add_(residual.sum(dim=1), alpha=self.constant / n)
            torch.mm(gradient[0], self.rows, out=gradient[1])
        else:
            gradient[0].addmm_(residual, self.rows, alpha=1 / n)
        return value, gradient

    def _curvature(self, direction: Tensor, penalty: Tensor) -> float:
        """Second derivative of the penalised log-loss along a direction (k, c, w)."""
        probability = self._logits(self.point).sigmoid_()
        spread = (probability * (1 - probability) * self._products(direction).square_()).sum() / len(self.centred)
        return float(spread + (direction[0] * direction[-1]).sum(dim=0) @ penalty)


def some_classes(targets: Tensor, d: int, seed: int) -> Tensor:
    """Targets (n, c') of all classes, or of a random sample of them that keeps one pass over the shots affordable."""
    n, c = targets.shape
    if n * c * d <= AFFORDABLE:
        return targets
    shuffled = torch.randperm(c, generator=torch.Generator().manual_seed(seed))
    return targets[:, shuffled[: max(8, AFFORDABLE // (n * d))].sort().values]
