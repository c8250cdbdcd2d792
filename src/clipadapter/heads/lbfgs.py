"""L-BFGS with torch's line search, without torch's optimizer: to make one of these imports its compiler, a second."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.lbfgs import _strong_wolfe

HISTORY = 10
TURN = 1e-6
"""Share of the slope along a step that must be gone after it, for the step to tell of the curvature."""
MOST_TRIED = 25
"""Points that one line search tries at most."""


def descend(
    evaluate: Callable[[Tensor], tuple[float, Tensor]],
    point: Tensor,
    first: tuple[float, Tensor],
    step: float,
    enough: float,
    max_iter: int,
) -> tuple[Tensor, int]:
    """Go down a smooth function until its gradient is short.

    Args:
        evaluate: from a point to the value and the gradient, of the point's shape.
        point: (1, ...) where to start. Or (2, ...): coordinates in a basis that is not orthonormal, and their products
            with the basis' Gram matrix, which are kept so that lengths and angles need no product again.
        first: value and gradient there; the gradient is not zero.
        step: of the first iteration, along the gradient.
        enough: length of the gradient at which to stop.
        max_iter: iterations at most.

    Returns:
        The last point, and the iterations.

    >>> goal = torch.tensor([1.0, -2.0])
    >>> def evaluate(x):
    ...     return float((x - goal).square().sum()), 2 * (x - goal)
    >>> descend(evaluate, torch.zeros(1, 2), evaluate(torch.zeros(1, 2)), 0.1, 1e-4, 9)[0].round()
    tensor([[ 1., -2.]])
    """
    shape, x, value, gradient = point.shape, point.flatten(1), first[0], first[1].flatten(1)
    # Below this a change of the value is rounding.
    rounding = torch.finfo(x.dtype).eps / 10
    tried: dict[float, tuple[Tensor, Tensor]] = {}

    def along(start: Tensor, t: float, _: Tensor) -> tuple[float, Tensor]:
        point = torch.add(start, direction, alpha=float(t))
        value, gradient = evaluate(point.view(shape))
        gradient = gradient.flatten(1)
        tried[float(t)] = point, gradient
        # A gradient that is short enough is shown to the line search as nought, so that it ends there.
        return value, gradient[0] if _dot(gradient, gradient) > enough**2 else torch.zeros_like(gradient[0])

    steps: list[tuple[Tensor, Tensor, Tensor]] = []
    direction, iteration = -step * gradient, 0
    while iteration < max_iter:
        iteration += 1
        slope = _dot(gradient, direction)
        if slope > -rounding:
            break
        before, tried = (value, gradient), {0.0: (x, gradient)}
        narrow = 1e-6 * float(direction[-1].abs().max())
        # Of the vectors the line search only takes the product.
        value, _, t, _ = _strong_wolfe(
            along, x, 1.0, direction[-1], value, gradient[0], slope, tolerance_change=narrow, max_ls=MOST_TRIED
        )
        x, gradient = tried[float(t)]
        moved = direction.mul_(float(t))
        if abs(value - before[0]) < rounding or _dot(gradient, gradient) <= enough**2:
            break
        turned = gradient - before[1]
        curvature = _dot(turned, moved)
        if curvature > -TURN * float(t) * slope:
            steps = [*steps[1 - HISTORY :], (moved, turned, curvature)]
        direction = _newton(gradient, steps) if steps else -gradient
    return x.view(shape), iteration


def _newton(gradient: Tensor, steps: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Minus the gradient times the inverse Hessian that the steps (s, y, s'y) tell of: the two loops of L-BFGS."""
    direction = -gradient
    shares = []
    for moved, turned, curvature in reversed(steps):
        shares.append(_dot(moved, direction) / curvature)
        direction.add_(turned, alpha=-float(shares[-1]))
    _, turned, curvature = steps[-1]
    direction.mul_(curvature / _dot(turned, turned))
    for (moved, turned, curvature), share in zip(steps, reversed(shares), strict=True):
        direction.add_(moved, alpha=float(share - _dot(turned, direction) / curvature))
    return direction


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Product of two vectors, each (1, w) or (2, w) as `descend` has them."""
    return one[0].dot(other[-1])
