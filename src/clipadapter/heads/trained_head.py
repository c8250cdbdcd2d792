"""`TrainedHead`: what methods that learn tensors by gradient steps on stored features have in common.

The file of a method has its formula: the tensors at the start, the logits of a batch, and what is stored. Here is what
stands around it: the view of each shot in a step, the schedule, the loss of labels, and the start from an earlier fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from clipadapter.heads.label_loss import LabelLossHead
from clipadapter.heads.support import SupportSet
from clipadapter.heads.training import TrainConfig, TrainingParameters, gather_views, train
from clipadapter.heads.warm_start import find_warm_start


@dataclass(eq=False, repr=False, kw_only=True)
class TrainedHead(LabelLossHead, TrainingParameters):
    """Base of the heads whose `_fit` calls `_learn`."""

    training: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Fields of `TrainConfig` that the method fixes. The others are parameters of the head under the same names."""
    warm_start_share: ClassVar[float] = 1.0
    """Share of what an earlier fit learned that a warm start keeps, for heads that support it."""
    warm_start_rate: ClassVar[float] = 1.0
    """What a warm start multiplies the learning rate by."""
    class_rows: ClassVar[tuple[str, ...]] = ()
    """Learned tensors with one row per class, which a warm start puts in the order of its own classes."""

    def planned_epochs(self, labels: Tensor, text_shape: tuple[int, int] | None = None) -> int | None:
        """See `Head.planned_epochs`."""
        return self._train_config(labels).count_epochs(len(labels))

    def _train_config(self, labels: Tensor) -> TrainConfig:
        """How shots with these class positions (n,) are trained on."""
        return TrainConfig.from_estimator(self, **self.training)

    def _learn(
        self,
        shots: SupportSet,
        inputs: Tensor,
        start: Mapping[str, Tensor],
        logits: Callable[[Tensor], Tensor],
        *,
        penalty: Callable[[], Tensor] | None = None,
        label_weight: float = 1.0,
        row_cost: int,
        can_continue: bool = True,
    ) -> None:
        """Train tensors in place, and store them and the loss of the last step (``loss_``).

        Args:
            shots: of the fit.
            inputs: (n, v, k) what `logits` gets a view of.
            start: the tensors that are trained, by the name of the attribute that they become, as they are in a fit
                from scratch.
            logits: (b, k) inputs to (b, c) logits by these tensors.
            penalty: added to the loss of a step; None for nothing.
            label_weight: what the loss of the labels is multiplied by.
            row_cost: multiplications of `logits` for one row.
            can_continue: whether a fit can start where another one ended.
        """
        label_loss, config = self._label_loss(shots), self._train_config(shots.labels)
        n, n_views = inputs.shape[:2]
        warm_start = None
        if self.supports_warm_start and can_continue:
            warm_start = find_warm_start(self, shots, self.warm_start_share, **start)
        if warm_start is not None:
            config = warm_start.shorten(config, n, self.warm_start_rate)
            for name, tensor in start.items():
                shrink = warm_start.shrink_rows if name in self.class_rows else warm_start.shrink
                tensor.copy_(shrink(name, tensor))

        def loss(rows: Tensor, views: Tensor) -> Tensor:
            value = label_weight * label_loss(logits(gather_views(inputs, rows, views)), shots.labels[rows])
            return value if penalty is None else value + penalty()

        parameters = [tensor.requires_grad_() for tensor in start.values()]
        self.loss_ = train(parameters, loss, n, n_views, config, row_cost=row_cost)
        for name, tensor in start.items():
            setattr(self, name, tensor.requires_grad_(False))


def draw_linear(*shape: int, fan_in: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """The start of a linear layer: uniform in plus or minus 1 / sqrt(fan in), torch's default.

    ``nn.Linear`` draws from torch's global generator.
    """
    return (torch.rand(*shape, generator=generator, dtype=dtype) * 2 - 1) / fan_in**0.5
