"""Adam, AdamW and SGD as functions, without torch's optimizers: to make one of these imports its compiler, a second.

Each returns a function that takes a learning rate, makes one step along the gradients that are there, and forgets them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

BETAS = 0.9, 0.999


def adam(parameters: Sequence[Tensor], *, weight_decay: float, eps: float, decoupled: bool) -> Callable[[float], None]:
    """Adam with a penalty, or AdamW, where the decay is decoupled from the gradient.

    By torch's fused kernel: one pass over the weights a step instead of ten, which is much of the time at few shots.

    Args:
        parameters: leaves that require a gradient.
        weight_decay: see `Recipe`.
        eps: likewise.
        decoupled: AdamW.

    >>> x = torch.tensor([3.0], requires_grad=True)
    >>> step = adam([x], weight_decay=0.0, eps=1e-8, decoupled=True)
    >>> x.square().sum().backward()
    >>> step(0.5)
    >>> x.tolist(), x.grad
    ([2.5], None)
    """
    first, second = ([torch.zeros_like(parameter) for parameter in parameters] for _ in range(2))
    count = torch.zeros(())
    kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_

    def step(rate: float) -> None:
        moved = _moved(parameters)
        with torch.no_grad():
            kernel(
                [parameters[i] for i in moved],
                list(moved.values()),
                [first[i] for i in moved],
                [second[i] for i in moved],
                [],
                [count.add_(1)] * len(moved),
                lr=rate,
                beta1=BETAS[0],
                beta2=BETAS[1],
                weight_decay=weight_decay,
                eps=eps,
                amsgrad=False,
                maximize=False,
            )

    return step


def sgd(parameters: Sequence[Tensor], *, weight_decay: float, momentum: float) -> Callable[[float], None]:
    """Gradient descent with momentum; the first step has none.

    Args:
        parameters: leaves that require a gradient.
        weight_decay: see `Recipe`.
        momentum: likewise.

    >>> x = torch.tensor([3.0], requires_grad=True)
    >>> step = sgd([x], weight_decay=0.0, momentum=0.0)
    >>> x.square().sum().backward()
    >>> step(0.5)
    >>> x.tolist(), x.grad
    ([0.0], None)
    """
    velocity: dict[int, Tensor] = {}

    def step(rate: float) -> None:
        with torch.no_grad():
            for i, gradient in _moved(parameters).items():
                if weight_decay:
                    gradient = gradient.add(parameters[i], alpha=weight_decay)
                if momentum and i in velocity:
                    gradient = velocity[i].mul_(momentum).add_(gradient)
                elif momentum:
                    velocity[i] = gradient = gradient.clone()
                parameters[i].add_(gradient, alpha=-rate)

    return step


def _moved(parameters: Sequence[Tensor]) -> dict[int, Tensor]:
    """Gradients by the parameter's place, which then has none; a parameter that the loss does not know stays."""
    found = {}
    for i, parameter in enumerate(parameters):
        if parameter.grad is not None:
            found[i], parameter.grad = parameter.grad, None
    return found
