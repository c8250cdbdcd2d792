"""Adam, AdamW and SGD by the functions of ``torch.optim``, without its classes.

The first object of such a class in a process imports torch's compiler: 828 modules, 1.2 s of processor time with torch
2.13, where a fit of few shots takes 0.2 s. Nothing else in a fit needs that import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

MOMENTUM = 0.9  # momentum of SGD, that of all published recipes here


class Optimizer:
    """Steps of "adamw", "adam" or "sgd" along the gradients of parameters; a parameter without a gradient stays."""

    def __init__(
        self, kind: str, parameters: Sequence[Tensor], *, weight_decay: float = 0.0, eps: float = 1e-8
    ) -> None:
        self.kind, self.parameters, self.weight_decay, self.eps = kind, parameters, weight_decay, eps
        # What is kept of each parameter from step to step, under torch's names.
        self._names = ("momentum_buffer",) if kind == "sgd" else ("exp_avg", "exp_avg_sq", "step")
        # Adam's moments begin as zeros. SGD has no velocity before its first step.
        self._state: list[list[Any]] = [
            [None] if kind == "sgd" else [torch.zeros_like(each), torch.zeros_like(each), each.new_zeros(())]
            for each in parameters
        ]

    def step(self, lr: float) -> None:
        """Change the parameters along their gradients, and clear the gradients."""
        rows = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        parameters, gradients = [self.parameters[i] for i in rows], [self.parameters[i].grad for i in rows]
        options: Any = {"lr": lr, "weight_decay": self.weight_decay, "maximize": False}
        moments: list[list[Any]] = [list(each) for each in zip(*(self._state[i] for i in rows), strict=True)]
        with torch.no_grad():
            if self.kind == "sgd":
                options |= {"momentum": MOMENTUM, "dampening": 0.0, "nesterov": False, "foreach": False}
                sgd(parameters, gradients, *moments, **options)  # type: ignore[arg-type]
            else:
                # The fused kernel makes one pass over the weights per step instead of ten.
                options |= {"beta1": 0.9, "beta2": 0.999, "eps": self.eps, "amsgrad": False, "fused": True}
                first, second, steps = moments
                function = adamw if self.kind == "adamw" else adam
                function(parameters, gradients, first, second, [], steps, **options)  # type: ignore[arg-type]
        for i, *values in zip(rows, *moments, strict=True):
            self._state[i], self.parameters[i].grad = values, None

    def state(self) -> dict[str, Tensor]:
        """Everything that changes from step to step, by name."""
        return {
            f"{i}.{name}": tensor
            for i, of_parameter in enumerate(self._state)
            for name, tensor in zip(self._names, of_parameter, strict=True)
            if tensor is not None
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        for i, parameter in enumerate(self.parameters):
            stored = [state.get(f"{i}.{name}") for name in self._names]
            self._state[i] = [None if each is None else each.to(parameter.device, copy=True) for each in stored]
