"""`TrainedHead`: what methods that learn tensors by gradient steps on stored features have in common.

The file of a method has its formula: the tensors at the start, the logits of a batch, and what is stored. Here is what
stands around it: the view of each shot in a step, the schedule, the loss of labels, and the start from an earlier fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from clipadapter.heads.label_loss import LabelLossHead
from clipadapter.heads.support import SupportSet
from clipadapter.heads.training import (
    LossFunction,
    TrainConfig,
    TrainingParameters,
    gather_views,
    train,
    training_bar,
)
from clipadapter.heads.warm_start import WarmStart, find_warm_start
from clipadapter.utils.parallel import parallel_map


class _CommonParameters:
    """Describes parameters that several trained heads declare, each with its own default.

    Args:
        optimizer: "adamw", "adam" or "sgd".
        weight_decay: decoupled for AdamW, L2 for Adam and SGD.
        epochs: passes over the shots; None for as many as make ``steps`` steps, and at least 20.
        steps: fewest optimizer steps if ``epochs`` is None.
    """


@dataclass(eq=False, repr=False, kw_only=True)
class TrainedHead(LabelLossHead, TrainingParameters, _CommonParameters):
    """Base of the heads whose `_fit` calls `_learn`, or `_train_on_each` if they train on folds too."""

    training: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Fields of `TrainConfig` that the method fixes. The others are parameters of the head under the same names."""
    warm_start_share: ClassVar[float] = 1.0
    """Share of what an earlier fit learned that a warm start keeps, for heads that support it."""
    warm_start_rate: ClassVar[float] = 1.0
    """What a warm start multiplies the learning rate by."""
    class_rows: ClassVar[tuple[str, ...]] = ()
    """Learned tensors with one row per class, which a warm start puts in the order of its own classes."""

    named_epochs: ClassVar[Mapping[str, Callable[[Tensor], int]]] = MappingProxyType({})
    """Numbers of epochs that have a name, from the class positions (n,) of the shots."""
    max_cost: ClassVar[float] = math.inf
    """Multiplications of the forward passes of a training if ``epochs`` is None; with more, it has fewer epochs at a
    higher rate (`TrainConfig.with_max_epochs`)."""

    def planned_epochs(self, labels: Tensor, text_shape: tuple[int, int] | None = None) -> int | None:
        """See `Head.planned_epochs`."""
        return self._limited_config(labels, text_shape).count_epochs(len(labels))

    def _train_config(self, labels: Tensor) -> TrainConfig:
        """How shots with these class positions (n,) are trained on."""
        epochs = getattr(self, "epochs", None)
        epochs = self.named_epochs[epochs](labels) if isinstance(epochs, str) else epochs
        return TrainConfig.from_estimator(self, **{"epochs": epochs, **self.training})

    def _row_cost(self, c: int, d: int) -> int:
        """Multiplications of a forward pass of one row, with c class weights of width d."""
        return c * d

    def _limited_config(self, labels: Tensor, text_shape: tuple[int, int] | None) -> TrainConfig:
        config, n = self._train_config(labels), len(labels)
        if text_shape is None or config.epochs is not None or self.max_cost == math.inf:
            return config
        return config.with_max_epochs(n, int(self.max_cost // (n * self._row_cost(*text_shape))))

    def _config_of(self, shots: SupportSet, rows: Tensor, warm_start: WarmStart | None) -> TrainConfig:
        """How some of the shots are trained on."""
        c, d = shots.class_text.shape
        config = self._limited_config(shots.labels[rows], (c, d))
        return config if warm_start is None else warm_start.shorten(config, len(rows), self.warm_start_rate)

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

        The inputs (n, v, k) are what ``logits`` gets a view of, (b, k) to (b, c). ``start`` has the tensors that are
        trained, by the name of the attribute that they become, as they are in a fit from scratch. The loss is
        ``label_weight`` times that of the labels, plus ``penalty``. ``can_continue`` says whether a fit can start where
        another one ended.
        """
        self._choose_gce_q(shots)
        every = torch.arange(len(inputs))
        loss_of, warm_start = self._loss_of(shots, every), None
        if self.supports_warm_start and can_continue:
            warm_start = find_warm_start(self, shots, self.warm_start_share, **start)
        if warm_start is not None:
            for name, tensor in start.items():
                shrink = warm_start.shrink_rows if name in self.class_rows else warm_start.shrink
                tensor.copy_(shrink(name, tensor))

        def loss(rows: Tensor, views: Tensor) -> Tensor:
            value = label_weight * loss_of(logits(gather_views(inputs, rows, views)), rows)
            return value if penalty is None else value + penalty()

        part = TrainingPart(every, warm_start, self._config_of(shots, every, warm_start), None)
        self.loss_ = minimise([*start.values()], loss, inputs, part, row_cost)
        vars(self).update(start)

    def _train_on_each(self, shots: SupportSet, parts: Sequence[Tensor], warm_start: WarmStart | None) -> list[Any]:
        """`_train` of each of some sets of shots (n_i,), in parallel under one progress bar.

        The first set is that of the fit itself, which may have a warm start; the others are of folds.
        """
        self._choose_gce_q(shots)
        starts = [warm_start, *[None] * (len(parts) - 1)]
        configs = [self._config_of(shots, rows, start) for rows, start in zip(parts, starts, strict=True)]
        steps = sum(config.count_steps(len(rows)) for config, rows in zip(configs, parts, strict=True))
        work = min(configs[0].batch_size, len(parts[0])) * self._row_cost(*shots.class_text.shape)
        with training_bar(steps, shown=configs[0].progress) as bar:
            trainings = [TrainingPart(*of_part, bar) for of_part in zip(parts, starts, configs, strict=True)]
            return parallel_map([partial(self._train, shots, part) for part in trainings], work=work)

    def _train(self, shots: SupportSet, part: TrainingPart) -> Any:
        """What `_train_on_each` trains; for heads that train on folds."""
        raise NotImplementedError


class TrainingPart(NamedTuple):
    """One of the trainings of a fit."""

    rows: Tensor  # (n,) of the shots
    warm_start: WarmStart | None
    config: TrainConfig
    bar: Any  # progress


def minimise(tensors: Sequence[Tensor], loss: LossFunction, inputs: Tensor, part: TrainingPart, row_cost: int) -> float:
    """`train`, with inputs (n, v, k), for tensors that require no gradient before and after."""
    for tensor in tensors:
        tensor.requires_grad_()
    n, n_views = inputs.shape[:2]
    last_loss = train(tensors, loss, n, n_views, part.config, row_cost=row_cost, bar=part.bar)
    for tensor in tensors:
        tensor.requires_grad_(False)
    return last_loss


def draw_linear(rows: int, columns: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """The start of the weights of a linear layer: uniform in plus or minus 1 / sqrt(columns), torch's default.

    ``nn.Linear`` draws from torch's global generator.
    """
    return (torch.rand(rows, columns, generator=generator, dtype=dtype) * 2 - 1) / math.sqrt(columns)
