"""`TrainedHead`: what methods that learn tensors by gradient steps on stored features have in common.

The file of a method has its formula: the tensors at the start, the logits of a batch, and what is stored. Here is what
stands around it: the view of each shot in a step, the schedule, the loss of labels, and the start from an earlier fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from clipadapter.errors import InputError, brief
from clipadapter.heads.base import Head
from clipadapter.heads.estimator import clone
from clipadapter.heads.losses import LogitAdjustedHead, Loss, class_counts, estimate_wrong_share, held_out_gce
from clipadapter.heads.out_of_fold import hyperparameter_folds
from clipadapter.heads.parameters import POSITIVE, OneOf, Within
from clipadapter.heads.support import SupportSet, class_origins, remap_rows
from clipadapter.heads.training import (
    LossFunction,
    ScheduleParameters,
    TrainConfig,
    TrainingParameters,
    gather_views,
    train,
    training_bar,
)
from clipadapter.utils.functional import cosine_logits, unit
from clipadapter.utils.parallel import parallel_map

MAX_CHANGED_SHARE = 0.1
"""Share of the shots that may have changed since the last fit from scratch; above it a fit starts from scratch."""
STEPS_SHARE = 0.25  # number of steps of a warm start, as a share of those from scratch
IGNORED_PARAMETERS = frozenset({"progress", "checkpoint", "memory"})
"""Parameters that do not change what is learned, so that they may differ between the two fits."""
ROBUST_Q = 0.7  # q that "auto" chooses if labels are wrong; the paper's
MIN_WRONG_SHARE = 0.05  # estimated share of wrong labels from which "auto" compares losses
GCE_FOLDS = 4
TEXT_NORM = 0.1
"""Length that class text is scaled to, relative to the encoder's logit scale: 10 with CLIP, which is about what its
un-normalised text vectors have, and then a step or penalty means the same change of the logits at every scale."""


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

    def shorten(self, config: TrainConfig, n: int, rate: float = 1.0) -> TrainConfig:
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
class TrainedHead(LogitAdjustedHead, TrainingParameters, _CommonParameters):
    """Base of the heads whose `_fit` calls `_learn`, or `_train_on_each` if they train on folds too.

    Args:
        gce_q: q of generalised cross-entropy (Zhang and Sabuncu, NeurIPS 2018), for wrong labels: above 0 and up to 1,
            where 0.7 is the paper's. 0 is cross-entropy. "auto" fits in four folds, and takes cross-entropy if the held
            out shots do not look as if 5 % of the labels or more were wrong; else it fits in the folds with 0.7 as
            well, and takes what predicts held-out shots better. Not used for multi-label pictures.
    """

    needs_text = True
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

    gce_q: Annotated[float | str, Within(0, 1), OneOf("auto")] = 0.0

    def planned_epochs(self, labels: Tensor, text_shape: tuple[int, int] | None = None) -> int | None:
        """See `Head.planned_epochs`."""
        return self._config_of(labels, text_shape, None).count_epochs(len(labels))

    def _train_config(self, labels: Tensor) -> TrainConfig:
        """How shots with these class positions (n,) are trained on."""
        epochs: Any = getattr(self, "epochs", None)
        epochs = self.named_epochs[epochs](labels) if epochs in self.named_epochs else epochs
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

    def _loss_of(self, shots: SupportSet, rows: Tensor) -> Loss:
        """The loss of some of the shots, labels or targets, after `_choose_gce_q`."""
        q = float(self.gce_q_ if self.gce_q == "auto" else self.gce_q)
        return Loss.of_support_set(shots, rows, self._log_prior(class_counts(shots, rows)), q)

    def _choose_gce_q(self, shots: SupportSet) -> None:
        """If q is "auto", choose it and store it as ``gce_q_``."""
        self.__dict__.pop("gce_q_", None)
        if self.gce_q != "auto":
            return
        # The q of the fit to all shots, of which this one leaves some out, or of the fit that this one starts from.
        source = self._full_fit if self._full_fit is not None else self._previous
        known = getattr(source, "gce_q_", None)
        self.gce_q_: float = self._search_gce_q(shots) if known is None else known

    def _search_gce_q(self, shots: SupportSet) -> float:
        splits = [] if shots.targets is not None else hyperparameter_folds(shots, GCE_FOLDS, 0)
        if not splits:
            return 0.0

        def out_of_fold_logits(q: float) -> Tensor:
            """(r, c) of the held-out shots of all folds."""
            logits = []
            for train_rows, held_out in splits:
                head: Any = clone(self)
                head.gce_q, head.progress = q, False
                head.classes_, head.n_features_in_, head.blocks_ = self.classes_, self.n_features_in_, self.blocks_
                head._fit(shots.take(train_rows))
                with torch.inference_mode():
                    logits.append(head._logits(shots.X[held_out]))
            return torch.cat(logits)

        labels, plain = shots.labels[torch.cat([held_out for _, held_out in splits])], out_of_fold_logits(0.0)
        if estimate_wrong_share(plain, labels) < MIN_WRONG_SHARE:
            return 0.0
        robust = out_of_fold_logits(ROBUST_Q)
        return ROBUST_Q if held_out_gce(robust, labels, ROBUST_Q) < held_out_gce(plain, labels, ROBUST_Q) else 0.0

    def _learn(
        self,
        shots: SupportSet,
        inputs: Tensor,
        start: Mapping[str, Tensor],
        logits: Callable[[Tensor], Tensor],
        total: Callable[[Tensor], Tensor] = lambda loss: loss,
        *,
        can_continue: bool = True,
    ) -> None:
        """Train tensors in place, and store them and the loss of the last step (``loss_``).

        The inputs (n, v, k) are what ``logits`` gets a view of, (b, k) to (b, c). ``start`` has the tensors that are
        trained, by the name of the attribute that they become, as they are in a fit from scratch. ``total`` gets
        the loss of the labels and returns that of the step. ``can_continue`` says whether a fit can start where another
        one ended.
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
            return total(loss_of(logits(gather_views(inputs, rows, views)), rows))

        config = self._config_of(shots.labels, shots.class_text.shape, warm_start)
        row_cost = shots.class_text.numel() + sum(tensor.numel() for tensor in start.values())
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


def draw_linear(shape: Sequence[int], fan_in: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """The start of weights or biases of a linear layer: uniform in plus or minus 1 / sqrt(fan in), torch's default.

    ``nn.Linear`` draws from torch's global generator.
    """
    return (torch.rand(*shape, generator=generator, dtype=dtype) * 2 - 1) / math.sqrt(fan_in)


@dataclass(eq=False, repr=False, kw_only=True)
class TextResidualHead(TrainedHead, ScheduleParameters):
    """Base of the cosine classifiers that start at class text and move by gradient steps: ZS-LP, CLAP and TaskRes."""

    supports_warm_start = True

    weight_: Tensor = field(init=False)  # (c, d) of any length

    text_norm: float | str | Sequence[float] = "auto"

    def check_parameters(self) -> None:
        """See `Head.check_parameters`."""
        super().check_parameters()
        norm = self.text_norm
        lengths = norm if isinstance(norm, list | tuple) else [norm]
        if norm != "auto" and not all(POSITIVE.accepts(each) for each in lengths):
            raise InputError(
                f"text_norm must be 'auto', a positive number or a list of one for each class, but is {brief(norm)}"
            )

    def _train_residual(self, shots: SupportSet, factor: float = 1.0) -> Tensor:
        """Train ``factor`` times a residual (c, d), stored under the name in ``class_rows``; returns the text (c, d).

        The text has the length that steps and the penalty are relative to.
        """
        if isinstance(self.text_norm, str):
            text = shots.class_text * (TEXT_NORM * shots.scale)
        else:
            lengths = torch.as_tensor(self.text_norm, dtype=shots.class_text.dtype).flatten()
            if len(lengths) not in (1, shots.n_classes):
                raise InputError(f"text_norm has {len(lengths)} numbers, but there are {shots.n_classes} classes")
            text = shots.class_text * lengths[:, None]
        (name,) = self.class_rows
        residual, multipliers = torch.zeros_like(text), self._multipliers(shots)
        # Cross-entropy could only push a class without a shot away from the other classes' pictures: it keeps its text.
        factors = factor * (shots.counts > 0)[:, None].to(text.dtype)

        def logits(x: Tensor) -> Tensor:
            return shots.scale * x @ unit(text + factors * residual).T

        def total(loss: Tensor) -> Tensor:
            if multipliers is None:
                return loss
            return loss + residual.square().sum(dim=1) @ multipliers / shots.n_classes  # a mean over all classes

        self._learn(shots, unit(shots.views), {name: residual}, logits, total)
        vars(self)[name] = residual * (factors != 0)
        self.scale_ = shots.scale
        return text

    def _multipliers(self, shots: SupportSet) -> Tensor | None:
        """(c,) strength of the pull of each class weight to its text; None for no pull."""
        return None

    def _logits(self, X: Tensor) -> Tensor:
        return cosine_logits(X, self.weight_.to(X.dtype), self.scale_)
