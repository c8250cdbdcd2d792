"""Logistic regressions, one a class, on few rows of many columns, by L-BFGS: all at once, on the same rows."""

from __future__ import annotations

import torch
from torch import Tensor

from clipadapter.heads.softmax_regression import MAX_PASS_COST, MAX_SOLVE_COST, SoftmaxRegression


class OneVsRest(SoftmaxRegression):
    """One logistic regression per class with an L2 penalty on the weights; on the intercept if ``unit_intercept``.

    The optimum is that of scikit-learn's LogisticRegression for each class by itself. A class that no row has, or that
    all have, has no optimum: it is left out, and its probability is its share of the rows, with half a row
    added to each side.

    Args:
        X: (n, d).
        targets: (n, c) ones and zeros.
        offset: (n, c) fixed logits; None for zero.
        unit_intercept: penalise the intercept as the weight of a feature that is one in every row.
        gram: (n, n) products of the rows, which should be centred or nearly so; None: computed if needed.
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
        # The base class expects one row of weights for each label in its second argument.
        super().__init__(X, self.learned, offset, unit_intercept=unit_intercept, gram=gram)
        self.is_exact = True  # the bounds and the preconditioner are those of a softmax

    def solve(self, C: float, tol: float, max_iter: int, max_cost: int = MAX_SOLVE_COST) -> int:
        """Go to the optimum from where it stands; returns the iterations."""
        return super().solve(C, tol, max_iter, max_cost) if len(self.learned) else 0

    def coefficients(self, n_classes: int) -> tuple[Tensor, Tensor]:
        """Weight (c, d) and bias (c,) for rows that are not centred."""
        weight, bias = super().coefficients(n_classes)
        known = torch.zeros(n_classes, dtype=torch.bool).index_fill(0, self.learned, True)
        return weight, torch.where(known, bias, (self.share / (1 - self.share)).log().to(bias.dtype))

    def _penalty(self, C: float) -> Tensor:
        penalty = self.point.new_full((self.rows.shape[1],), 1 / (C * len(self.centred)))
        penalty[self.intercept_column] *= self.constant**2 if self.unit_intercept else 0
        return penalty

    def _value(self, point: Tensor, penalty: Tensor) -> tuple[float, Tensor]:
        """Log-loss with penalty, summed over classes and a mean over rows, and its gradient, at (k, c, w)."""
        n = len(self.centred)
        logits = self._logits(point)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, self.positive, reduction="sum") / n
        residual = logits.sigmoid_().sub_(self.positive)
        gradient = torch.empty_like(point)
        torch.mul(point[0], penalty, out=gradient[0])
        value = float(loss) + float(gradient[0].flatten().dot(point[-1].flatten())) / 2
        if self.is_dual:
            gradient[0, :, :n].add_(residual, alpha=1 / n)
            gradient[0, :, n].add_(residual.sum(dim=1), alpha=self.constant / n)
            torch.mm(gradient[0], self.rows, out=gradient[1])
        else:
            gradient[0].addmm_(residual, self.rows, alpha=1 / n)
        return value, gradient

    def _curvature(self, direction: Tensor, penalty: Tensor) -> float:
        """Second derivative along a direction (k, c, w)."""
        probability = self._logits(self.point).sigmoid_()
        spread = (probability * (1 - probability) * self._products(direction).square_()).sum() / len(self.centred)
        return float(spread + (direction[0] * direction[-1]).sum(dim=0) @ penalty)


def some_classes(targets: Tensor, d: int, seed: int) -> Tensor:
    """Targets (n, c') of all classes, or of as many, drawn by seed, as keep one pass over the shots affordable."""
    n, c = targets.shape
    if n * c * d <= MAX_PASS_COST:
        return targets
    order = torch.randperm(c, generator=torch.Generator().manual_seed(seed))
    return targets[:, order[: max(8, MAX_PASS_COST // (n * d))].sort().values]
