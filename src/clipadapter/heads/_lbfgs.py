"""L-BFGS with torch's line search, without torch's optimizer: to make one of these imports its compiler, a second."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.lbfgs import _strong_wolfe

HISTORY = 10


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
        point: where to start.
        first: value and gradient there; the gradient is not zero.
        step: of the first iteration, along the gradient.
        enough: length of the gradient at which to stop.
        max_iter: iterations at most.

    Returns:
        The last point, and the iterations.

    >>> goal = torch.tensor([1.0, -2.0])
    >>> def evaluate(x):
    ...     return float((x - goal).square().sum()), 2 * (x - goal)
    >>> descend(evaluate, torch.zeros(2), evaluate(torch.zeros(2)), 0.1, 1e-4, 9)[0].round()
    tensor([ 1., -2.])
    """
    shape, x, value, gradient = point.shape, point.flatten(), first[0], first[1].flatten()
    size = float(gradient.abs().sum())
    # Below this a change of the value is rounding.
    rounding = torch.finfo(x.dtype).eps / 10

    def along(start: Tensor, t: float, direction: Tensor) -> tuple[float, Tensor]:
        value, gradient = evaluate(torch.add(start, direction, alpha=float(t)).view(shape))
        # A gradient that is short enough is shown to the line search as nought, so that it ends there.
        return value, gradient.flatten() if gradient.norm() > enough else torch.zeros_like(x)

    steps: list[tuple[Tensor, Tensor, Tensor]] = []
    direction, iteration = -step * gradient, 0
    while iteration < max_iter:
        iteration += 1
        slope = gradient.dot(direction)
        if slope > -rounding:
            break
        before = value, gradient
        value, gradient, t, _ = _strong_wolfe(
            along, x, 1.0, direction, value, gradient, slope, tolerance_change=1e-9 * step * size, max_ls=20 * max_iter
        )
        moved = direction * t
        x = x + moved
        still = moved.abs().max() <= rounding / size or abs(value - before[0]) < rounding
        if still or not gradient.any():
            break
        turned = gradient - before[1]
        curvature = turned.dot(moved)
        if curvature > 1e-10 * step * size**2:
            steps = [*steps[1 - HISTORY :], (moved, turned, curvature)]
        direction = _newton(gradient, steps) if steps else -gradient
    return x.view(shape), iteration


def _newton(gradient: Tensor, steps: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Minus the gradient times the inverse Hessian that the steps (s, y, s'y) tell of: the two loops of L-BFGS."""
    direction = -gradient
    shares = []
    for moved, turned, curvature in reversed(steps):
        shares.append(moved.dot(direction) / curvature)
        direction.add_(turned, alpha=-float(shares[-1]))
    _, turned, curvature = steps[-1]
    direction.mul_(curvature / turned.dot(turned))
    for (moved, turned, curvature), share in zip(steps, reversed(shares), strict=True):
        direction.add_(moved, alpha=float(share - turned.dot(direction) / curvature))
    return direction
