"""`TrainedHead`: what methods that learn tensors by gradient steps on stored features have in common.

The file of a method has its formula: the tensors at the start, the logits of a batch, and what is stored. Here is what
stands around it: the view of each shot in a step, the schedule, the loss of labels, and the start from an earlier fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from clipadapter.heads.base import Head
from clipadapter.heads.losses import LabelLossHead
from clipadapter.heads.support import SupportSet, class_origins, remap_rows
from clipadapter.heads.training import LossFunction, TrainConfig, TrainingParameters, gather_views, train, training_bar
from clipadapter.utils.parallel import parallel_map

MAX_CHANGED_SHARE = 0.1
"""Share of the shots that may have changed since the last fit from scratch; above it a fit starts from scratch."""
STEPS_SHARE = 0.25  # number of steps of a warm start, as a share of those from scratch
IGNORED_PARAMETERS = frozenset({"progress", "checkpoint", "memory"})
"""Parameters that do not change what is learned, so that they may differ between the two fits."""

R = TypeVar("R", bound=TrainConfig)


@dataclass(frozen=True)
class WarmStart:
    """What a fit starts from.

    Gradient steps that stop before an optimum learn more with each further step. So that many warm starts in a row do
    not overfit the shots, each first shrinks the learned weights towards the initial ones ("shrink and perturb", Ash
    and Adams, NeurIPS 2020, https://arxiv.org/abs/1910.08475, without the noise): a quarter of the steps, from three
    quarters of what was learned, add up to one fit. The shrink factor of a head is a constant in its file. It was
    chosen on the training pictures of Caltech-101 under the encoder `lite`, by adding 20 classes one by one.
    """

    head: Any  # the earlier head, fitted with the same parameters
    origin: Tensor  # (c,) position of each class in the earlier head, -1 for a new class
    shrink_factor: float  # weight of the earlier solution; the rest is that of the initial weights

    def shrink(self, learned: str | Tensor, initial: Tensor, *, by_class: bool = False) -> Tensor:
        """A new tensor between the initial one (0) and the learned one, or that of this name (1), at the shrink factor.

        Of tensors (c, ...) with one row per class, a new class gets its initial row.
        """
        tensor = getattr(self.head, learned) if isinstance(learned, str) else learned
        if not by_class:
            return torch.lerp(initial, tensor.to(initial), self.shrink_factor)
        shrunk = torch.lerp(initial, remap_rows(tensor, self.origin).to(initial), self.shrink_factor)
        is_known = (self.origin >= 0).view(-1, *[1] * (initial.ndim - 1)).to(initial.device)
        return torch.where(is_known, shrunk, initial)

    def shorten(self, config: R, n: int, rate: float = 1.0) -> R:
        """A training configuration with fewer passes over n rows, and the learning rate times ``rate``."""
        epochs, warmup_steps = max(1, round(STEPS_SHARE * config.count_epochs(n))), config.warmup_steps
        return replace(config, epochs=epochs, warmup_steps=round(STEPS_SHARE * warmup_steps), lr=rate * config.lr)


def find_warm_start(head: Head, shots: SupportSet, shrink_factor: float = 1.0, **initial: Tensor) -> WarmStart | None:
    """The start from the head that `Head.fit_from` got, or None if this fit must start from scratch.

    A fit starts from scratch if the earlier head has other parameters or widths, or if more than a tenth of the shots
    changed since the last fit from scratch. Changes of warm starts in a row are added up. ``initial`` has the weights
    of a fit from scratch, by the name of the learned attribute. The head gets the attributes

    - ``seen_``: (c,) shots per class of this fit, as ``counts_`` of incremental heads;
    - ``changed_``: number of shots that changed since the last fit from scratch, only if this is a warm start.
    """
    counts = (shots.counts if shots.targets is None else shots.targets.sum(dim=0)).long()
    previous: Any = head._previous
    state: Any = head
    state.seen_ = counts
    state.__dict__.pop("changed_", None)
    if previous is None or not _is_compatible(head, previous, shots, initial):
        return None
    origin = class_origins(previous.classes_, head.classes_)
    previous_counts = remap_rows(previous.seen_, origin)
    n_removed = previous.seen_.sum() - previous_counts.sum()  # shots of classes that were removed
    n_changed = getattr(previous, "changed_", 0) + int((counts - previous_counts).abs().sum() + n_removed)
    if n_changed > MAX_CHANGED_SHARE * len(shots.views):
        return None
    state.changed_ = n_changed
    return WarmStart(previous, origin, shrink_factor)


def _is_compatible(head: Head, previous: Any, shots: SupportSet, initial: dict[str, Tensor]) -> bool:
    """Whether the earlier head has the same parameters, task and scale, and features and weights of the same widths."""
    own, other = (
        {name: value for name, value in one.get_params(deep=False).items() if name not in IGNORED_PARAMETERS}
        for one in (head, previous)
    )
    learned: dict[str, Any] = {name: getattr(previous, name, None) for name in ("seen_", *initial)}
    return (
        repr(own) == repr(other)
        and all(tensor is not None for tensor in learned.values())
        and all(learned[name].shape[1:] == tensor.shape[1:] for name, tensor in initial.items())
        and len(previous.seen_) == len(previous.classes_)
        and previous.n_features_in_ == head.n_features_in_
        and previous.task_ == head.task_
        and getattr(previous, "scale_", shots.scale) == shots.scale
    )


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
        return self._config_of(labels, text_shape, None).count_epochs(len(labels))

    def _train_config(self, labels: Tensor) -> TrainConfig:
        """How shots with these class positions (n,) are trained on."""
        epochs = getattr(self, "epochs", None)
        epochs = self.named_epochs[epochs](labels) if isinstance(epochs, str) else epochs
        return TrainConfig.from_estimator(self, **{"epochs": epochs, **self.training})

    def _row_cost(self, c: int, d: int) -> int:
        """Multiplications of a forward pass of one row, with c class weights of width d."""
        return c * d

    def _config_of(self, labels: Tensor, text_shape: Sequence[int] | None, warm_start: WarmStart | None) -> TrainConfig:
        """`_train_config` with fewer epochs, where they would cost too much or a warm start needs fewer."""
        config, n = self._train_config(labels), len(labels)
        if text_shape is not None and config.epochs is None and self.max_cost < math.inf:
            config = config.with_max_epochs(n, int(self.max_cost // (n * self._row_cost(*text_shape))))
        return config if warm_start is None else warm_start.shorten(config, n, self.warm_start_rate)

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
                tensor.copy_(warm_start.shrink(name, tensor, by_class=name in self.class_rows))

        def loss(rows: Tensor, views: Tensor) -> Tensor:
            value = label_weight * loss_of(logits(gather_views(inputs, rows, views)), rows)
            return value if penalty is None else value + penalty()

        config = self._config_of(shots.labels, shots.class_text.shape, warm_start)
        self.loss_ = minimise([*start.values()], loss, inputs, TrainingPart(every, warm_start, config, None), row_cost)
        vars(self).update(start)

    def _train_on_each(self, shots: SupportSet, parts: Sequence[Tensor], warm_start: WarmStart | None) -> list[Any]:
        """`_train` of each of some sets of shots (n_i,), in parallel under one progress bar.

        The first set is that of the fit itself, which may have a warm start; the others are of folds.
        """
        self._choose_gce_q(shots)
        starts = [warm_start, *[None] * (len(parts) - 1)]
        shape = shots.class_text.shape
        configs = [self._config_of(shots.labels[rows], shape, start) for rows, start in zip(parts, starts, strict=True)]
        steps = sum(config.count_steps(len(rows)) for config, rows in zip(configs, parts, strict=True))
        work = min(configs[0].batch_size, len(parts[0])) * self._row_cost(*shape)
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
