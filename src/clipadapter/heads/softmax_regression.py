"""Softmax regression, and one logistic regression per class, by L-BFGS: made for few rows of many columns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.optim.lbfgs import _strong_wolfe

from clipadapter.utils.functional import ABSENT_LOGIT

HISTORY_SIZE = 10  # steps that approximate the Hessian
MIN_CURVATURE = 1e-6  # least decrease of the slope along a step, as a share of it, for the step to enter the history
MAX_LINE_SEARCH_POINTS = 25  # most evaluations of one line search


def descend(
    evaluate: Callable[[Tensor], tuple[float, Tensor]],
    point: Tensor,
    first: tuple[float, Tensor],
    step: float,
    tolerance: float,
    max_iter: int,
    *,
    max_evaluations: int | None = None,
    precondition: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, int]:
    """Minimise a smooth function until its gradient is shorter than ``tolerance``: the last point, and the iterations.

    L-BFGS with torch's line search, without ``torch.optim.LBFGS``: the first optimizer in a process imports torch's
    compiler, which takes 1.2 s. The line search is imported without it. SciPy's L-BFGS computes in float64 only.
    ``evaluate`` gives value and gradient of a point. The start is (1, ...); or (2, ...): coordinates in a basis that is
    not orthonormal, and their products with the Gram matrix of the basis, so that no length or angle needs a further
    product. ``first`` has value and gradient there, which is not zero; ``step`` is that of the first iteration along
    the gradient, preconditioned if there is a preconditioner: the product with a guess of the inverse Hessian, for a
    (1, ...) start only. No iteration is started after ``max_evaluations``.
    """
    shape, x, value, gradient = point.shape, point.flatten(1), first[0], first[1].flatten(1)
    # Below this a change of the value is rounding.
    rounding = torch.finfo(x.dtype).eps / 10
    evaluated: dict[float, tuple[Tensor, Tensor]] = {}
    n_evaluations = 0

    def scaled(vector: Tensor) -> Tensor:
        return vector if precondition is None else precondition(vector.view(shape)).flatten(1)

    def evaluate_along(start: Tensor, t: float, _: Tensor) -> tuple[float, Tensor]:
        nonlocal n_evaluations
        n_evaluations += 1
        point = torch.add(start, direction, alpha=float(t))
        value, gradient = evaluate(point.view(shape))
        gradient = gradient.flatten(1)
        evaluated[float(t)] = point, gradient
        # The line search ends where the gradient is zero, so a short one is passed to it as zeros.
        return value, gradient[0] if _dot(gradient, gradient) > tolerance**2 else torch.zeros_like(gradient[0])

    steps: list[tuple[Tensor, Tensor, Tensor]] = []
    direction, iteration = -step * scaled(gradient), 0
    while iteration < max_iter and (max_evaluations is None or n_evaluations < max_evaluations):
        iteration += 1
        slope = _dot(gradient, direction)
        if slope > -rounding:
            break
        previous, evaluated = (value, gradient), {0.0: (x, gradient)}
        min_change = 1e-6 * float(direction[-1].abs().max())
        # The line search only takes the product of the two vectors.
        value, _, t, _ = _strong_wolfe(
            evaluate_along,
            x,
            1.0,
            direction[-1],
            value,
            gradient[0],
            slope,
            tolerance_change=min_change,
            max_ls=MAX_LINE_SEARCH_POINTS,
        )
        x, gradient = evaluated[float(t)]
        step_taken = direction.mul_(float(t))
        if abs(value - previous[0]) < rounding or _dot(gradient, gradient) <= tolerance**2:
            break
        gradient_change = gradient - previous[1]
        curvature = _dot(gradient_change, step_taken)
        if curvature > -MIN_CURVATURE * float(t) * slope:
            steps = [*steps[1 - HISTORY_SIZE :], (step_taken, gradient_change, curvature)]
        direction = _newton(gradient, steps, scaled) if steps else -scaled(gradient)
    return x.view(shape), iteration


def _newton(gradient: Tensor, steps: list[tuple[Tensor, Tensor, Tensor]], scaled: Callable[[Tensor], Tensor]) -> Tensor:
    """Minus the gradient times the inverse Hessian that the steps (s, y, s'y) approximate: the two-loop recursion.

    It starts from a multiple of the preconditioner, which `scaled` multiplies by.
    """
    direction = -gradient
    alphas = []
    for step_taken, gradient_change, curvature in reversed(steps):
        alphas.append(_dot(step_taken, direction) / curvature)
        direction.add_(gradient_change, alpha=-float(alphas[-1]))
    _, gradient_change, curvature = steps[-1]
    direction = scaled(direction)
    direction.mul_(curvature / _dot(gradient_change, scaled(gradient_change)))
    for (step_taken, gradient_change, curvature), alpha in zip(steps, reversed(alphas), strict=True):
        direction.add_(step_taken, alpha=float(alpha - _dot(gradient_change, direction) / curvature))
    return direction


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Product of two vectors, each (1, w) or (2, w) as `descend` has them."""
    return one[0].dot(other[-1])


MAX_PASS_COST = 300_000_000
"""Multiplications of one pass over the shots above which hyperparameters are chosen on a subsample, see `subsample`."""
MAX_EXACT_PASS_COST = 30_000_000_000
"""Multiplications of one pass over the shots (rows x classes x columns) above which `SoftmaxRegression` stops before
the optimum. A pass is then more than a second of one core, beside which a preconditioner costs nothing."""
MAX_SOLVE_COST = 8_000_000_000_000
"""Multiplications of one call of `SoftmaxRegression.solve` above `MAX_EXACT_PASS_COST`: two to three minutes of one
core, and 18 evaluations at 10,000 classes x 4 shots x 512 columns."""
MIN_EVALUATIONS = 6  # fewest evaluations of the loss that such a call makes, whatever they cost
PRECONDITIONER_CURVATURE = 0.05
"""Mean of p (1 - p) over the rows, summed over the classes, that the preconditioner assumes. Of 0.05, 0.2 and 1, the
one with which accuracy after 8 evaluations was nearest to that of the optimum, at C of 100 and 1000."""
MAX_PRECONDITIONER_C = 100.0
"""C that the preconditioner assumes at most. With a larger one the first steps fit the shots along directions of little
variance, and lose up to 10 points of accuracy if they are the last."""
STEP_FACTORS = tuple(2.0 ** (i / 2) for i in range(-4, 17))
"""Multiples of the first step that are tried on some of the rows. The more classes, the longer the best one is."""
MAX_STEP_LOGITS = 2**22  # logits of these rows, on which the curvature along the first step is measured too
MAX_LOGITS = 2**25  # logits held at a time, 128 MB in float32; with more, a pass is made in blocks of rows
MAX_DUAL_RATIO = 1.5
"""Rows per column up to which the dual form, of one product with the Gram matrix in each pass, is faster."""
MIN_LOSS = 1e-10
"""Loss, or 1-norm of its gradient, below which the start is the optimum: the offset fits all labels already."""


@dataclass(frozen=True)
class LinearOffset:
    """Fixed logits ``constant + x weight'`` that are added block by block; all at once they are gigabytes."""

    constant: Tensor  # (c,)
    x: Tensor | None = None  # (n, d) rows; None for the constant alone
    weight: Tensor | None = None  # (c, d)


class SoftmaxRegression:
    """Softmax regression as in scikit-learn: L2 penalty on the weights, and on the intercept if ``unit_intercept``.

    Two changes of variables leave the optimum as it is and make L-BFGS need a half to a third of the iterations. The
    rows are centred, and the constant column of the intercept is as long as the rows are in a typical direction.

    At the optimum the weights are linear combinations of the rows. If there are few rows, the coefficients of these
    combinations are the variables (the dual form): a pass is one product with the Gram matrix of the rows, instead of
    one with the rows for the logits and another one for the gradient. Inner products are still those of the weights, so
    that both forms take the same path.

    `point` holds the variables: (1, c, columns) in the primal form. In the dual form it is (2, c, columns), with the
    coefficients and their product with the Gram matrix, so that inner products cost no further product.

    Where a pass costs more than `MAX_EXACT_PASS_COST`, `solve` makes as many evaluations as `MAX_SOLVE_COST` allows,
    and its result is not the optimum. L-BFGS then starts from the inverse of ``h G + penalty`` in place of a multiple
    of the identity, with the covariance G of the rows, which is the Hessian if all classes are predicted alike.

    Args:
        X: (n, d).
        labels: (n,); classes without a row are left out.
        offset: (n, c) fixed logits, one column for each class that has a row, or how to compute them; None for zero.
        unit_intercept: penalise the intercept as the weight of a feature that is one in every row.
        gram: (n, n) products of the rows, which should be centred or nearly so; None to compute it if needed.
    """

    is_bounded: ClassVar[bool] = True  # whether `solve` stops before the optimum where a pass costs much

    def __init__(
        self,
        X: Tensor,
        labels: Tensor,
        offset: Tensor | LinearOffset | None = None,
        *,
        unit_intercept: bool = False,
        gram: Tensor | None = None,
    ) -> None:
        self.offset = offset.T.contiguous() if isinstance(offset, Tensor) else offset  # (c, n)
        self.unit_intercept = unit_intercept
        self.classes, self.target = labels.unique(return_inverse=True)
        self.mean = X.mean(dim=0)
        self.centred = X - self.mean
        n, d = X.shape
        self.is_dual = n <= MAX_DUAL_RATIO * d
        n_logits = n * len(self.classes)
        self.is_exact = self.is_dual or not self.is_bounded or n * len(self.classes) * d <= MAX_EXACT_PASS_COST
        size = n if self.is_dual or n_logits <= MAX_LOGITS else max(1, MAX_LOGITS // len(self.classes))
        self.blocks = [slice(start, min(start + size, n)) for start in range(0, n, size)]
        self.step_blocks = self.blocks if self.is_exact else [slice(0, n, -(-n_logits // MAX_STEP_LOGITS))]
        stride = n // 512 + 1  # a sample of rows suffices for the length of the constant column
        if not self.is_dual:
            products = self.centred[::stride] @ self.centred[::stride].T
        elif gram is None:
            products = self.centred @ self.centred.T
        else:  # (n, n) products of the centred rows
            mean = gram.mean(dim=0)
            products = (gram - mean).sub_((mean - mean.mean())[:, None])
        sample = products[::stride, ::stride] if self.is_dual else products
        # Root of the mean eigenvalue of the covariance, where each eigenvalue is weighted by itself.
        self.constant = float(sample.norm() / (len(sample) * sample.trace()).sqrt().clamp_min(1e-30)) or 1.0
        self.intercept_column = n if self.is_dual else d
        # Columns of zeros make the width a multiple of 16, which makes products a fifth faster.
        width = self.intercept_column + 1 + -(self.intercept_column + 1) % 16
        self.rows = X.new_zeros(width if self.is_dual else n, width)
        if self.is_dual:  # the Gram matrix of rows and intercept
            self.rows[:n, :n] = products
            self.rows[n, n] = 1
        else:
            self.rows[:, :d] = self.centred
            self.rows[:, d] = self.constant
        self.point = X.new_zeros(2 if self.is_dual else 1, len(self.classes), width)
        self.start = self._value(self.point, self._penalty(1.0))  # at zero, where the penalty is zero for any C
        self.first_norm = _squared_norm(self.start[1]) ** 0.5

    def solve(self, C: float, tol: float, max_iter: int, max_cost: int = MAX_SOLVE_COST) -> int:
        """Minimise the loss, from the solution of the last call if there was one; returns the number of iterations.

        C is the inverse strength of the penalty, as in scikit-learn. Iterations stop when the norm of the gradient is
        ``tol`` times its norm at zero weights. ``max_cost`` bounds the multiplications, above `MAX_EXACT_PASS_COST`
        only.
        """
        penalty = self._penalty(C)
        first = value, gradient = self._value(self.point, penalty) if self.point[0].any() else self.start
        slope = _squared_norm(gradient)
        if not slope > 0 or min(float(gradient.abs().sum()), value) < MIN_LOSS:  # equal rows have no gradient
            return 1
        precondition = None if self.is_exact else self._preconditioner(C)
        direction = gradient
        if precondition is not None:
            direction = precondition(gradient)
            slope = float((gradient * direction).sum())
        # First step: the Newton step along the gradient, at most that to a loss of zero on the tangent.
        step = min(slope / max(self._curvature(direction, penalty), 1e-30), value / slope)
        step = step if self.is_exact else self._best_step(direction, penalty, step)
        evaluation_cost = 2 * self.rows.numel() * len(self.classes)
        self.point, iterations = descend(
            lambda point: self._value(point, penalty),
            self.point,
            first,
            step,
            tol * self.first_norm,
            max_iter,
            max_evaluations=None if self.is_exact else max(MIN_EVALUATIONS, max_cost // evaluation_cost),
            precondition=precondition,
        )
        return iterations

    def _best_step(self, direction: Tensor, penalty: Tensor, step: float) -> float:
        """The multiple of a step against a direction (1, c, w) with the lowest loss on some of the rows."""
        rows = self.step_blocks[0]
        logits, change, true_class = self._logits(self.point, rows), self._products(direction, rows), self.target[rows]
        losses = []
        for factor in STEP_FACTORS:
            moved = self.point[0] - factor * step * direction[0]
            loss = cross_entropy((logits - factor * step * change).T, true_class)
            losses.append(float(loss) + float((moved.square_() @ penalty).sum()) / 2)
        return step * STEP_FACTORS[losses.index(min(losses))]

    def _preconditioner(self, C: float) -> Callable[[Tensor], Tensor]:
        """Multiplies (1, c, w) by the inverse of the Hessian's rough form, which is the same for every class."""
        share = PRECONDITIONER_CURVATURE / (len(self.classes) * len(self.rows))
        hessian = (self.rows.T @ self.rows) * share
        hessian.diagonal().add_(self._penalty(min(C, MAX_PRECONDITIONER_C)))
        inverse = torch.linalg.inv(hessian)
        return lambda vector: vector @ inverse

    def coefficients(self, n_classes: int) -> tuple[Tensor, Tensor]:
        """Weight (c, d) and bias (c,) for rows that are not centred; `ABSENT_LOGIT` for classes without a row."""
        weight = self.centred.new_zeros(n_classes, self.centred.shape[1])
        bias = self.centred.new_full((n_classes,), ABSENT_LOGIT)
        variables = self.point[0, :, : self.intercept_column]
        fitted = variables @ self.centred if self.is_dual else variables
        weight[self.classes] = fitted
        bias[self.classes] = self.point[0, :, self.intercept_column] * self.constant - fitted @ self.mean
        return weight, bias

    def _penalty(self, C: float) -> Tensor:
        """(w,) factor of each squared column, relative to the mean log-loss."""
        penalty = self.point.new_full((self.rows.shape[1],), self._penalty_factor / (C * len(self.centred)))
        penalty[self.intercept_column] *= self.constant**2 if self.unit_intercept else 0
        return penalty

    def _value(self, point: Tensor, penalty: Tensor) -> tuple[float, Tensor]:
        """Mean log-loss with penalty, and its gradient, at variables (1 or 2, c, w)."""
        n = len(self.centred)
        gradient = torch.empty_like(point)
        torch.mul(point[0], penalty, out=gradient[0])
        half_penalty = gradient[0].flatten().dot(point[-1].flatten()) / 2
        loss = torch.zeros((), dtype=torch.float64, device=point.device)
        for rows in self.blocks:
            block_loss, residual = self._loss(self._logits(point, rows), rows)
            loss += block_loss
            if self.is_dual:  # of one block
                gradient[0, :, :n].add_(residual, alpha=1 / n)
                gradient[0, :, n].add_(residual.sum(dim=1), alpha=self.constant / n)
                torch.mm(gradient[0], self.rows, out=gradient[1])
            else:
                gradient[0].addmm_(residual, self.rows[rows], alpha=1 / n)
        return float(loss + half_penalty), gradient

    @property
    def _penalty_factor(self) -> int:
        # With two classes scikit-learn has one weight vector, the difference of these two: hence the factor 2.
        return 2 if len(self.classes) == 2 else 1

    def _loss(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """A block's part of the mean loss, and its derivative for the logits (c, b), which are overwritten."""
        true_class = self.target[None, rows]
        logits.sub_(logits.amax(dim=0))
        true_logit = logits.gather(0, true_class)
        total = logits.exp_().sum(dim=0, keepdim=True)
        loss = (total.log() - true_logit).mean(dtype=torch.float64) * (true_class.shape[1] / len(self.centred))
        return loss, logits.div_(total).scatter_add_(0, true_class, -torch.ones_like(total))

    def _variance(self, logits: Tensor, change: Tensor, n_rows: int) -> Tensor:
        """A block's part of the second derivative of the mean loss where logits (c, b) change in a direction (c, b)."""
        probability = logits.softmax(dim=0)
        mean = (probability * change).sum(dim=0)
        # The Hessian of log-loss along a direction is the variance of the logits' change under the predictions.
        variances = (probability * (change - mean).square_()).sum(dim=0)
        return variances.mean() * (len(variances) / n_rows)

    def _curvature(self, direction: Tensor, penalty: Tensor) -> float:
        """Second derivative of the loss along a direction (1 or 2, c, w)."""
        variance, n_rows = direction.new_zeros(()), sum(len(self.centred[rows]) for rows in self.step_blocks)
        for rows in self.step_blocks:
            variance += self._variance(self._logits(self.point, rows), self._products(direction, rows), n_rows)
        return float(variance + (direction[0] * direction[-1]).sum(dim=0) @ penalty)

    def _logits(self, point: Tensor, rows: slice) -> Tensor:
        """(c, b) of a block of rows as a new tensor, offset included."""
        if point[0].any():
            logits = self._products(point, rows)
        else:  # at the start, which is evaluated several times
            logits = point.new_zeros(point.shape[1], len(self.centred[rows]))
        if not isinstance(self.offset, LinearOffset):
            return logits if self.offset is None else logits.add_(self.offset[:, rows])
        logits.add_(self.offset.constant[:, None])
        if self.offset.x is not None and self.offset.weight is not None:
            logits.addmm_(self.offset.weight, self.offset.x[rows].T)
        return logits

    def _products(self, point: Tensor, rows: slice) -> Tensor:
        """(c, b) as a new tensor: products of a block of rows and these weights."""
        if not self.is_dual:  # in the dual form there is one block
            return point[0] @ self.rows[rows].T
        n = len(self.centred)
        return torch.add(point[1, :, :n], point[1, :, n : n + 1], alpha=self.constant)


class OneVsRest(SoftmaxRegression):
    """One logistic regression per class with an L2 penalty on the weights.

    The optimum is that of scikit-learn's LogisticRegression for each class by itself. A class that no row has, or that
    all have, has no optimum: it is left out, and its probability is its share of the rows, with half a row
    added to each side.
    """

    is_bounded = False  # the bounds and the preconditioner are those of a softmax
    _penalty_factor = 1

    def __init__(self, X: Tensor, targets: Tensor) -> None:
        counts = targets.sum(dim=0)
        self.learned = torch.nonzero((counts > 0) & (counts < len(targets))).flatten()
        self.share = (counts + 0.5) / (len(targets) + 1)
        self.positive = targets[:, self.learned].T.contiguous()  # (c, n)
        super().__init__(X, self.learned)  # which makes one row of weights for each label

    def solve(self, C: float, tol: float, max_iter: int, max_cost: int = MAX_SOLVE_COST) -> int:
        """As `SoftmaxRegression.solve`, always to the optimum."""
        return super().solve(C, tol, max_iter, max_cost) if len(self.learned) else 0

    def coefficients(self, n_classes: int) -> tuple[Tensor, Tensor]:
        """Weight (c, d) and bias (c,) for rows that are not centred."""
        weight, bias = super().coefficients(n_classes)
        known = torch.zeros(n_classes, dtype=torch.bool).index_fill(0, self.learned, True)
        return weight, torch.where(known, bias, (self.share / (1 - self.share)).log().to(bias.dtype))

    def _loss(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        positive = self.positive[:, rows]
        loss = binary_cross_entropy_with_logits(logits, positive, reduction="sum") / len(self.centred)
        return loss, logits.sigmoid_().sub_(positive)

    def _variance(self, logits: Tensor, change: Tensor, n_rows: int) -> Tensor:
        probability = logits.sigmoid_()
        return (probability * (1 - probability) * change.square_()).sum() / n_rows


def _squared_norm(gradient: Tensor) -> float:
    """Squared norm of (1 or 2, c, w), in the space of the weights."""
    return max(float((gradient[0] * gradient[-1]).sum()), 0.0)


def subsample(labels: Tensor, d: int, seed: int) -> Tensor:
    """Rows to choose hyperparameters on: all, or a random part of classes and shots whose pass costs `MAX_PASS_COST`.

    Returns row numbers, ascending, for labels (n,) of features of width d.
    """
    n, c = len(labels), len(labels.unique())
    if n * c * d <= MAX_PASS_COST:
        return torch.arange(n)
    generator = torch.Generator().manual_seed(seed)
    # n falls with c, hence the root; below 32 classes shots are left out instead.
    classes = max(min(32, c), int(c * math.sqrt(MAX_PASS_COST / (n * c * d))))
    drawn_classes = labels.unique()[torch.randperm(c, generator=generator)[:classes]]
    shots = max(3, MAX_PASS_COST // (d * classes**2))
    chosen = []
    for label in drawn_classes:
        rows = torch.nonzero(labels == label).flatten()
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:shots]])
    return torch.cat(chosen).sort().values
