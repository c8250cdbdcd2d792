"""Base of the tuners that learn the context of a prompt: parameters, start, training, prediction.

A method overrides the loss. The image tower is never run: the shots are features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.heads import SupportSet, TextFeatures
from clipadapter.heads.parameters import POSITIVE, OneOf, at_least
from clipadapter.heads.trained_head import WarmStart, find_warm_start
from clipadapter.heads.training import Checkpoint, ScheduleParameters, TrainConfig, digest_of_fit, gather_views, train
from clipadapter.tuners.prompts import CLASS_TOKENS, PRECISIONS, Prompts, context_from_words, random_context
from clipadapter.utils.functional import cosine_logits, unit
from clipadapter.utils.towers import TextTower

GIGABYTE = 1e9
OTHER_TOKENS = 5
"""Approximate number of tokens of a prompt besides its context: start, a name of two tokens, full stop, end."""
WARM_START_SHARE = 0.75  # share of what an earlier fit learned that a warm start keeps


@dataclass(frozen=True)
class Batch:
    """What the loss of one step is computed from."""

    logits: Tensor  # (b, c) by the learned prompts
    labels: Tensor  # (b,) class positions
    weight: Tensor  # (c, d) unit class vectors of the learned prompts
    text: Tensor  # (c, d) unit class text, of hand-written prompts
    zero_shot: Tensor  # (b, c) logits by that text


@dataclass(eq=False, repr=False, kw_only=True)
class PromptTuner(ScheduleParameters):
    """Base of the methods that learn one context for all pictures.

    Args:
        n_ctx: context vectors, if ``ctx_init`` is None.
        ctx_init: words to start from, such as "a photo of a", with a vector for each of their tokens instead of
            ``n_ctx``; None draws from N(0, 0.02^2).
        class_token: where the name stands: "end", "middle" or "front".
        csc: class-specific context: each class has vectors of its own; needs more shots, and knows no new classes.
        lr: learning rate of SGD.
        weight_decay: L2, on the context.
        epochs: passes over the shots; None for 50 with one shot per class, 100 with up to 4, else 200.
        precision: of the text tower while training: "fp32", or "bf16" where class vectors stay near to those of fp32.
            Those of predictions are made in fp32.
        memory: gigabytes that the text tower may keep for its gradient; where they don't suffice for all classes, it
            runs twice over parts of them, to the same gradient.
        checkpoint: seconds between two checkpoints in the user's cache folder, from which a killed `fit` goes on when
            it is called again; None keeps none.
        seed: of the first vectors, shuffling and the choice of views.
    """

    needs_text = True
    supports_warm_start = True
    needs_tower = True
    epochs_by_shots: ClassVar[Sequence[tuple[int, int]]] = ((1, 50), (4, 100))
    """(shots of the largest class, epochs), for at most so many shots."""
    max_epochs: ClassVar[int] = 200

    n_ctx: Annotated[int, at_least(1)] = 16
    ctx_init: str | None = None
    class_token: Annotated[str, OneOf(*CLASS_TOKENS)] = "end"
    csc: bool = False
    lr: float = 2e-3
    weight_decay: float = 5e-4
    schedule: str = "cosine-epoch"
    warmup_epochs: int = 1
    epochs: Annotated[int | None, at_least(1)] = None
    batch_size: int = 32
    precision: Annotated[str, OneOf(*PRECISIONS)] = "fp32"
    memory: Annotated[float, POSITIVE] = 2.0
    checkpoint: float | None = 30.0

    def planned_tower_tokens(self, shots: int, classes: int, predictions: int) -> int:
        """How many tokens will go through the text tower and back: each step runs the prompts of all classes.

        `fit` gets so many shots per class; the fitted head makes so many predictions.
        """
        steps = -(-shots * classes // self.batch_size)
        return self._planned_epochs(shots) * steps * self._tokens_of_prompts(classes)

    def describe_training(self, counts: Sequence[int]) -> str:
        """How many steps `fit` makes, in words, for these numbers of pictures of each class."""
        return self._train_config(max(counts)).describe(sum(counts))

    def _tokens_of_prompts(self, classes: int) -> int:
        """Approximate number of tokens of one prompt of each class."""
        return classes * (OTHER_TOKENS + (self.n_ctx if self.ctx_init is None else len(self.ctx_init.split())))

    def _loss(self, batch: Batch) -> Tensor:
        """The loss of a step; a scalar, or what `_backward` takes."""
        return cross_entropy(batch.logits, batch.labels)

    def _backward(self, parameters: Sequence[Tensor], value: Tensor) -> None:
        """Put the gradient of what `_loss` gave into the parameters."""
        value.backward()

    def _fit(self, shots: SupportSet) -> None:
        prompts, context = self._initial_prompts(shots)
        text = shots.class_text.to(context)
        warm_start = find_warm_start(self, shots, WARM_START_SHARE)
        if warm_start is not None:
            context = (warm_start.shrink_rows if context.ndim == 3 else warm_start.shrink)("context_", context)

        def loss(features: Tensor, labels: Tensor) -> Tensor:
            learned = unit(prompts.class_vectors(context))
            logits, zero_shot = (shots.scale * features @ rows.T for rows in (learned, text))
            return self._loss(Batch(logits, labels, learned, text, zero_shot))

        self.loss_ = self._train([context.requires_grad_()], loss, shots, prompts, warm_start)
        self.context_, self.scale_ = context.detach().cpu(), shots.scale
        self.weight_ = self._class_vectors(prompts.tower, shots.names)

    def for_classes(self, text: TextFeatures) -> Self:
        """A copy that predicts other classes with the same context before their names; see `Head.for_classes`."""
        other = super().for_classes(text)
        if text.tower is None:
            raise InputError(f"{type(self).__name__} needs the text tower for new classes: use encode_classes(...)")
        other.weight_ = other._class_vectors(text.tower(), tuple(map(str, other.classes_)))
        return other

    def _for_text(self, text: Tensor, scale: float) -> None:
        if self.context_.ndim == 3:
            raise InputError(f"{type(self).__name__} learned a context for each of its own classes: csc must be False")
        self.scale_ = scale

    def _logits(self, X: Tensor) -> Tensor:
        return cosine_logits(X, self.weight_.to(X.dtype), self.scale_)

    def _class_vectors(self, tower: TextTower, names: Sequence[str]) -> Tensor:
        """Unit class vectors (c, d) in fp32, with the context that was learned."""
        prompts = Prompts(tower, names, self.context_.shape[-2], self.class_token, self.memory * GIGABYTE)
        with torch.no_grad():
            return unit(prompts.class_vectors(self.context_.to(tower.device))).float().cpu()

    def _initial_prompts(self, shots: SupportSet) -> tuple[Prompts, Tensor]:
        """Prompts of the classes, and the context to begin with."""
        assert shots.tower is not None  # the base class has checked it
        tower = shots.tower()
        start = None if self.ctx_init is None else context_from_words(tower, self.ctx_init)
        n_ctx = self.n_ctx if start is None else len(start)
        prompts = Prompts(tower, shots.names, n_ctx, self.class_token, self.memory * GIGABYTE, self.precision)
        if start is None:
            context = random_context(prompts, tower.width, self.seed, self.csc).to(tower.device)
        else:
            context = start.repeat(len(prompts), 1, 1) if self.csc else start
        prompts.fall_back_to_fp32(context)
        return prompts, context

    def _train(
        self,
        parameters: Sequence[Tensor],
        loss: Callable[[Tensor, Tensor], Tensor],
        shots: SupportSet,
        prompts: Prompts,
        warm_start: WarmStart | None = None,
    ) -> float:
        """Change the parameters so that a loss of unit features (b, d) and labels (b,) falls; gives the last one."""
        features = unit(shots.views).to(parameters[0])
        labels = shots.labels.to(features.device)

        def step(batch: Tensor, views: Tensor) -> Tensor:
            rows = batch.to(features.device)
            return loss(gather_views(features, rows, views.to(features.device)), labels[rows])

        config = self._train_config(int(shots.counts.max()))
        return train(
            parameters,
            step,
            len(labels),
            features.shape[1],
            config if warm_start is None else warm_start.shorten(config, len(labels)),
            checkpoint=Checkpoint(self._digest(shots, prompts.tower), self.checkpoint),
            backward=lambda value: self._backward(parameters, value),
            # One layer's work at least: a step so small is done by one thread.
            step_cost=int(prompts.lengths.sum()) * prompts.tower.width**2,
        )

    def _train_config(self, shots: int) -> TrainConfig:
        epochs = self._planned_epochs(shots)
        return TrainConfig.from_estimator(self, optimizer="sgd", epochs=epochs, view_per_epoch=False)

    def _planned_epochs(self, shots: int) -> int:
        if self.epochs is not None:
            return self.epochs
        return next((number for max_shots, number in self.epochs_by_shots if shots <= max_shots), self.max_epochs)

    def _digest(self, shots: SupportSet, tower: TextTower) -> str:
        """Of all that the result depends on."""
        facts: list[object] = [shots.names, shots.scale, tower.fingerprint]
        if self._previous is not None:
            facts += [fact for one in sorted(self._previous.state().items()) for fact in one]
        return digest_of_fit(self, [*facts, shots.views, shots.labels, shots.class_text], neutral=("memory",))
