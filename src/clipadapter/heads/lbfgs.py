"""L-BFGS with torch's strong Wolfe line search, without ``torch.optim.LBFGS``.

The first optimizer of ``torch.optim`` in a process imports torch's compiler: 828 modules, 1.2 s of processor time with
torch 2.13. SciPy's L-BFGS computes in float64 only. The line search is private in torch; it is a function of the module
that ``torch.optim.LBFGS`` is in, and is imported without the compiler.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.lbfgs import _strong_wolfe

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
