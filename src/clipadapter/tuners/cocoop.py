"""CoCoOp: a context that each picture shifts, through a small net on its feature.

Paper: Zhou et al., CVPR 2022, https://arxiv.org/abs/2203.05557, equation 3.
The defaults are the paper's: context from "a photo of a", a net of width d / 16, one picture a step, 10 epochs. Differs
from it in precision (fp32), and in that pictures are augmented once, as views.

Each picture has prompts of its own: the text tower runs over all classes for each of them, in training and after it.
So a fitted head needs its tower to predict; one that was loaded gets it by `CoCoOp.attach`.
"""

from __future__ import annotations

import math
from dataclasses import field
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.heads import Head, SupportSet, TextFeatures, register_head
from clipadapter.heads.parameters import POSITIVE, at_least
from clipadapter.heads.support import Array
from clipadapter.tuners.prompt_tuner import GIGABYTE, Prompts, PromptTuner
from clipadapter.utils.functional import unit

TRAINING_COST = 3
"""How much more work a prompt is in training than in prediction: its way back takes twice that of its way through."""
SHIFT_NET = ("down", "down_bias", "up", "up_bias")


@register_head("cocoop", paper="https://arxiv.org/abs/2203.05557", compare=False)
class CoCoOp(PromptTuner):
    """CoOp whose context is shifted by each picture.

    Args:
        reduction: the net is as wide as the feature divided by this.
        weight_decay: L2, on the context and the net.
        batch_size: shots per step; each of them runs the text tower over all classes.
        seed: of the net, random vectors, shuffling and the choice of views.

    Fidelity: paper: The net and its recipe are as published. Views are made once, where the authors augment in each
    epoch.
    """

    needs_tower_to_predict = True
    _prompts: Prompts | None = field(default=None, init=False)

    reduction: Annotated[float, POSITIVE] = 16
    n_ctx: Annotated[int, at_least(1)] = 4
    ctx_init: str | None = "a photo of a"
    csc: bool = field(default=False, init=False)
    epochs: Annotated[int | None, at_least(1)] = 10
    batch_size: int = 1

    def _fit(self, shots: SupportSet) -> None:
        prompts, context = self._initial_prompts(shots)
        learned = {"context": context, **self._net(shots.views.shape[2], context)}

        def loss(features: Tensor, labels: Tensor) -> Tensor:
            return cross_entropy(shots.scale * _cosines(features, prompts, **learned), labels)

        self._train(learned, loss, shots, prompts)
        self._prompts = Prompts(prompts.tower, shots.names, prompts.n_ctx, self.class_token, self.memory * GIGABYTE)

    def planned_tower_tokens(self, shots: int, classes: int, predictions: int) -> int:
        """See `PromptTuner.planned_tower_tokens`: each picture runs the prompts of all classes."""
        trained = self._planned_epochs(shots) * shots * classes
        return (trained + predictions // TRAINING_COST) * self._tokens_of_prompts(classes)

    def attach(self, text: TextFeatures) -> Self:
        """Give a loaded head the text tower that its prompts go through, with class text by `encode_classes`."""
        if text.tower is None:
            raise InputError(f"{type(self).__name__} needs the text tower to predict: use encode_classes(...)")
        names = text.arranged(self.classes_).labels
        n_ctx = len(self.context_)
        self._prompts = Prompts(text.tower(), names, n_ctx, self.class_token, self.memory * GIGABYTE)
        return self

    def for_classes(self, text: TextFeatures) -> Self:
        """A copy that predicts other classes with the same context and net; see `Head.for_classes`."""
        return Head.for_classes(self, text).attach(text)

    def _load_state_dict(self, *arrays: Any) -> None:
        self._prompts = None
        super()._load_state_dict(*arrays)

    def _answer_to_check(self) -> Array:
        """A loaded head has no text tower to predict with: the context of one picture, of which a number per class."""
        context = _shifted(torch.ones(1, self.n_features_in_), **self._learned())
        return context.sum().expand(1, len(self.classes_)).numpy()

    def _logits(self, X: Tensor) -> Tensor:
        if self._prompts is None:
            raise InputError(
                f"{type(self).__name__} was loaded without its text tower, which each picture's prompts go through: "
                "call attach(encode_classes(encoder, prompts))"
            )
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            raise InputError(f"{type(self).__name__} is no fixed function of features: its tower is not converted")
        features = unit(X).to(self.context_.dtype).to(self._prompts.tower.device)
        learned = {name: tensor.to(features.device) for name, tensor in self._learned().items()}
        return (self.scale_ * _cosines(features, self._prompts, **learned)).cpu().to(X.dtype)

    def _numbers_per_row(self) -> int:
        """Prompts of all classes, and their vectors."""
        tokens = 0 if self._prompts is None else int(self._prompts.lengths.sum())
        return (tokens + len(self.classes_)) * max(self.n_features_in_, self.context_.shape[1])

    def _learned(self) -> dict[str, Tensor]:
        return {name: getattr(self, f"{name}_") for name in ("context", *SHIFT_NET)}

    def _net(self, d: int, context: Tensor) -> dict[str, Tensor]:
        """Two layers from a feature to the shift of every context vector, as torch starts linear layers."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        hidden, width = max(1, int(d / self.reduction)), context.shape[1]

        def draw(fan_in: int, *shape: int) -> Tensor:
            bound = 1 / math.sqrt(fan_in)
            return torch.empty(shape).uniform_(-bound, bound, generator=generator).to(context)

        shapes = ((d, hidden, d), (d, hidden), (hidden, width, hidden), (hidden, width))
        return {name: draw(*shape) for name, shape in zip(SHIFT_NET, shapes, strict=True)}


def _shifted(features: Tensor, context: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    """The context of each picture: unit features (b, d) to (b, M, w)."""
    return context + linear(linear(features, down, down_bias).relu(), up, up_bias)[:, None]


def _cosines(features: Tensor, prompts: Prompts, **learned: Tensor) -> Tensor:
    """Of each unit feature (b, d) and the vectors of its own prompts, (b, c)."""
    b, c = len(features), len(prompts)
    contexts = _shifted(features, **learned)
    if b == 1:  # one context for all prompts: the tower runs it once
        vectors = prompts.class_vectors(contexts[0])[None]
    else:
        each = contexts.repeat_interleave(c, dim=0)  # (b * c, M, w)
        vectors = prompts.class_vectors(each, torch.arange(c).repeat(b)).view(b, c, -1)
    return (unit(vectors) @ features[:, :, None]).squeeze(2)
