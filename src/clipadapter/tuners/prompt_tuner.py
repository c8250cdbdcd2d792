"""Base of the tuners that learn the context of a prompt: parameters, start, training, prediction.

A method overrides the loss. The image tower is never run: the shots are features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from typing_extensions import Self

from clipadapter.data import clean_name
from clipadapter.errors import InputError
from clipadapter.heads import SupportSet, TextFeatures
from clipadapter.heads.parameters import POSITIVE, OneOf, at_least
from clipadapter.heads.trained_head import find_warm_start
from clipadapter.heads.training import (
    Checkpoint,
    ScheduleParameters,
    TrainConfig,
    coop_epochs,
    digest_of_fit,
    gather_views,
    train,
)
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
        epochs: passes over the shots; None for 50 with one shot in the largest class, 100 with up to 5,
            else 200.
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
        """Tokens through the text tower and back in a fit to so many shots per class, and in predictions after it."""
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
        learned, text = {"context": context}, shots.class_text.to(context)

        def loss(features: Tensor, labels: Tensor) -> Tensor:
            weight = unit(prompts.class_vectors(learned["context"]))
            logits, zero_shot = (shots.scale * features @ rows.T for rows in (weight, text))
            return self._loss(Batch(logits, labels, weight, text, zero_shot))

        self._train(learned, loss, shots, prompts)
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
        self, learned: dict[str, Tensor], loss: Callable[[Tensor, Tensor], Tensor], shots: SupportSet, prompts: Prompts
    ) -> None:
        """Train tensors so that a loss of unit features (b, d) and labels (b,) falls, and store them by their names.

        They are replaced in ``learned``, which the loss reads them from.
        """
        warm_start = find_warm_start(self, shots, WARM_START_SHARE)
        for name, tensor in learned.items():
            if warm_start is not None:  # a context of each class has three axes
                tensor = warm_start.shrink(f"{name}_", tensor, by_class=tensor.ndim == 3)
            learned[name] = tensor.requires_grad_()
        parameters = list(learned.values())
        features = unit(shots.views).to(parameters[0])
        labels = shots.labels.to(features.device)

        def step(batch: Tensor, views: Tensor) -> Tensor:
            rows = batch.to(features.device)
            return loss(gather_views(features, rows, views.to(features.device)), labels[rows])

        config = self._train_config(int(shots.counts.max()))
        self.loss_ = train(
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
        vars(self).update({f"{name}_": tensor.detach().cpu() for name, tensor in learned.items()})
        self.scale_ = shots.scale

    def _train_config(self, shots: int) -> TrainConfig:
        epochs = self._planned_epochs(shots)
        return TrainConfig.from_estimator(self, optimizer="sgd", epochs=epochs, view_per_epoch=False)

    def _planned_epochs(self, shots: int) -> int:
        return coop_epochs(shots) if self.epochs is None else self.epochs

    def _digest(self, shots: SupportSet, tower: TextTower) -> str:
        """Of all that the result depends on."""
        facts: list[object] = [shots.names, shots.scale, tower.fingerprint]
        if self._previous is not None:
            facts += [fact for one in sorted(self._previous.state().items()) for fact in one]
        return digest_of_fit(self, [*facts, shots.views, shots.labels, shots.class_text], neutral=("memory",))


CLASS_TOKENS = ("end", "middle", "front")
PRECISIONS = ("fp32", "bf16")
MIN_BF16_COSINE = 0.999  # least cosine of class vectors in bf16 to those in fp32


class Prompts:
    """The prompts of some classes (c), with places left open for M context vectors.

    The name stands at the "end", in the "middle" (after the first half of the context) or in "front". ``memory`` is the
    bytes that the tower may keep for its gradient. A prompt that is longer than the tower's context is refused.
    """

    def __init__(
        self,
        tower: TextTower,
        names: Sequence[str],
        n_ctx: int,
        class_token: str = "end",
        memory: float = 2e9,
        precision: str = "fp32",
    ) -> None:
        self.tower = tower
        self.n_ctx = n_ctx
        self._memory = memory
        self._uses_bf16 = precision == "bf16"
        self._n_before_name = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[class_token]  # context before the name
        rows, positions = zip(*(self._tokenize(name) for name in names), strict=True)
        self.lengths = torch.tensor([len(row) for row in rows])
        longest = int(self.lengths.max())
        ids = torch.tensor([row + row[:1] * (longest - len(row)) for row in rows])
        with torch.no_grad():
            self._fixed = tower.embed(ids).detach()  # (c, l, w), rows of any token where the context goes
        self._context_positions = torch.tensor(positions, device=self._fixed.device)  # (c, M)
        self._bytes: dict[bool, int] = {}

    def _tokenize(self, name: str) -> tuple[list[int], list[int]]:
        """Tokens of one prompt, any token standing for the context; and the positions of the context."""
        text = clean_name(name)
        sentence, name_tokens = self.tower.tokenize([f"{text}.", text])
        n_prefix, n_suffix = self.tower.special_token_counts
        body = sentence[n_prefix : len(sentence) - n_suffix]
        # As in CoOp: the name's tokens are counted by themselves, since the full stop may join its last token.
        count = min(len(name_tokens) - n_prefix - n_suffix, len(body))
        n_before, n_after = self._n_before_name, self.n_ctx - self._n_before_name
        row = sentence[:n_prefix] + sentence[:1] * n_before + body[:count] + sentence[:1] * n_after
        row += body[count:] + sentence[len(sentence) - n_suffix :]
        if len(row) > self.tower.context_length:
            raise InputError(
                f"the prompt of class {name!r} has {len(row)} tokens or more with {self.n_ctx} context vectors, but "
                f"the text tower takes {self.tower.context_length}: shorten the name, or learn fewer vectors"
            )
        after_name = n_prefix + n_before + count
        return row, [*range(n_prefix, n_prefix + n_before), *range(after_name, after_name + n_after)]

    def __len__(self) -> int:
        return len(self.lengths)

    def class_vectors(self, context: Tensor, classes: Tensor | None = None) -> Tensor:
        """Raw class vectors (k, d), with a gradient in the context; exact however many passes are made.

        The context is (M, w) for all prompts, or (k, M, w) one for each; by default all classes are taken in order.
        Where one pass would store more activations than the memory allows, each part stores none and is run again in
        the backward pass.
        """
        classes = torch.arange(len(self)) if classes is None else classes
        shared = context.ndim == 2
        encode_rest = self._after_prefix(context) if shared else None
        order = self.lengths[classes].argsort(stable=True)
        parts = order.split(self.batch_size(shared))
        encode: Callable[..., Tensor] = self._encode
        if len(parts) > 1 and torch.is_grad_enabled() and context.requires_grad:
            encode = partial(checkpoint, encode, use_reentrant=False, preserve_rng_state=False)
        outputs = [encode(context if shared else context[part], classes[part], encode_rest) for part in parts]
        vectors = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return vectors.index_select(0, order.argsort().to(vectors.device))

    def fall_back_to_fp32(self, context: Tensor) -> None:
        """Run in fp32 from now on if bf16 gives class vectors of this context that are too far from those of fp32."""
        if self._uses_bf16:
            with torch.no_grad():
                low = self.class_vectors(context)
                self._uses_bf16 = False
                cosines = torch.cosine_similarity(low, self.class_vectors(context), dim=1)
            self._uses_bf16 = bool((cosines >= MIN_BF16_COSINE).all())

    def batch_size(self, shared: bool) -> int:
        """Prompts of a pass; `shared` says whether they have one context."""
        return max(1, int(self._memory / self.bytes_per_prompt(shared)))

    def bytes_per_prompt(self, shared: bool) -> int:
        """Bytes of the activations that a pass stores for one of the longest prompts: measured, since towers differ."""
        if shared in self._bytes:
            return self._bytes[shared]
        longest = self.lengths.argmax()[None]
        context = self._fixed.new_zeros(self.n_ctx, self._fixed.shape[2]).requires_grad_()
        saved_bytes = []
        with torch.enable_grad():
            encode_rest = self._after_prefix(context) if shared else None
            for k in (1, 2):  # the difference leaves out the weights and the beginning, which are stored anyway
                storages: dict[int, int] = {}

                def pack(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                    return tensor

                with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                    self._encode(context, longest.expand(k), encode_rest)
                saved_bytes.append(sum(storages.values()))
        self._bytes[shared] = max(1, saved_bytes[1] - saved_bytes[0])
        return self._bytes[shared]

    def _after_prefix(self, context: Tensor) -> Callable[..., Tensor]:
        """What encodes the rest of the prompts after what all begin with, if they share the context (M, w)."""
        marks = self._fixed[0, : self.tower.special_token_counts[0]]
        with self._precision():
            return self.tower.after_prefix(torch.cat([marks, context[: self._n_before_name].to(marks.dtype)]))

    def _encode(self, context: Tensor, classes: Tensor, encode_rest: Callable[..., Tensor] | None) -> Tensor:
        lengths, positions = self.lengths[classes], self._context_positions[classes]
        embeddings = self._fixed[classes, : int(lengths.max())]
        if encode_rest is not None:
            n_prefix = self.tower.special_token_counts[0] + self._n_before_name
            lengths, embeddings = lengths - n_prefix, embeddings[:, n_prefix:]
            context, positions = context[self._n_before_name :], positions[:, self._n_before_name :] - n_prefix
        if positions.numel():
            k, _, width = embeddings.shape
            index = positions[:, :, None].expand(-1, -1, width)
            embeddings = embeddings.scatter(1, index, context.to(embeddings.dtype).expand(k, -1, width))
        with self._precision():
            return (encode_rest or self.tower.encode)(embeddings, lengths).to(embeddings.dtype)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._fixed.device.type, torch.bfloat16, enabled=self._uses_bf16)


def random_context(prompts: Prompts, width: int, seed: int, class_specific: bool) -> Tensor:
    """Context vectors drawn from N(0, 0.02^2): (M, w), or (c, M, w) if each class has its own."""
    shape = (len(prompts), prompts.n_ctx, width) if class_specific else (prompts.n_ctx, width)
    return 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def context_from_words(tower: TextTower, text: str) -> Tensor:
    """The embeddings (M, w) of the tokens of some words, which must have one."""
    n_prefix, n_suffix = tower.special_token_counts
    (tokens,) = tower.tokenize([text])
    inner = tokens[n_prefix : len(tokens) - n_suffix]
    if not inner:
        raise InputError(f"ctx_init must be words, but {text!r} has no token; say None for random vectors")
    with torch.no_grad():
        return tower.embed(torch.tensor(inner)).detach().clone()
