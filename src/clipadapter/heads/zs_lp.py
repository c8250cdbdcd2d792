"""ZS-LP: a cosine classifier that starts at the class text.

Paper: Silva-Rodriguez et al., CVPR 2024, https://arxiv.org/abs/2312.12730.
Differs from the paper, where class weights started at un-normalised text vectors: ours arrive unit-length and are
scaled to a length by ``text_norm``, because the size of a step is relative to it. A class without a shot keeps its
text.
Differs from the released code, which trains on 20 augmented views as rows: here each step draws a view of each picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from clipadapter.errors import InputError, brief
from clipadapter.heads.base import SupportSet
from clipadapter.heads.registry import register_head
from clipadapter.heads.trained_head import TrainedHead
from clipadapter.heads.training import ScheduleParameters
from clipadapter.utils.functional import cosine_logits, unit

TEXT_NORM = 0.1
"""Length that class text is scaled to, relative to the encoder's logit scale: 10 with CLIP, which is about what its
un-normalised text vectors have, and then a step or penalty means the same change of the logits at every scale."""


@dataclass(eq=False, repr=False, kw_only=True)
class TextResidualHead(TrainedHead, ScheduleParameters):
    """Base of the cosine classifiers that start at class text and move by gradient steps: ZS-LP, CLAP and TaskRes."""

    needs_text = True
    supports_warm_start = True

    weight_: Tensor = field(init=False)  # (c, d) of any length

    text_norm: float | str | Sequence[float] = "auto"

    def check_parameters(self) -> None:
        """See `Head.check_parameters`."""
        super().check_parameters()
        lengths = [*self.text_norm] if isinstance(self.text_norm, list | tuple) else [self.text_norm]
        is_auto = isinstance(self.text_norm, str) and self.text_norm == "auto"
        if not (is_auto or all(isinstance(each, int | float) and each > 0 for each in lengths)):
            raise InputError(
                "text_norm must be 'auto', a positive number or a list of one for each class, but is "
                + brief(self.text_norm)
            )

    def _scaled_text(self, shots: SupportSet) -> Tensor:
        """Class text (c, d) with the length that steps and penalties are relative to."""
        text = shots.class_text
        if isinstance(self.text_norm, str):
            return text * (TEXT_NORM * shots.scale)
        lengths = torch.as_tensor(self.text_norm, dtype=text.dtype).flatten()
        if len(lengths) not in (1, shots.n_classes):
            raise InputError(f"text_norm has {len(lengths)} numbers, but there are {shots.n_classes} classes")
        return text * lengths[:, None]

    def _logits(self, X: Tensor) -> Tensor:
        return cosine_logits(X, self.weight_.to(X.dtype), self.scale_)


@register_head(
    "zs-lp",
    version=2,
    paper="https://arxiv.org/abs/2312.12730",
    fidelity="verified: `ZsLp.official` gives the weights and logits of the authors' code. The default differs in "
    "the length of class text, draws one view of each picture per step and adjusts logits for unequal shots.",
)
@dataclass(eq=False, repr=False, kw_only=True)
class ZsLp(TextResidualHead):
    """Linear probe that starts at zero-shot: cosine logits, cross-entropy, no penalty.

    Args:
        text_norm: length of class text at the start, one number or one per class; "auto" for a tenth of the encoder's
            logit scale, about 10 with CLIP as in the paper.
        lr: highest learning rate of SGD.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> X = [[1.0, 0.9, 0.5], [1.0, 1.1, 0.0]]
    >>> ZsLp().fit(X, ["dog", "cat"], text=text).predict(X)
    array(['dog', 'cat'], dtype='<U3')
    """

    temperature_prior = (0.9, 0.81, 0.74, 0.9, 1.1)
    training = {"optimizer": "sgd"}
    recipes = {"official": {"schedule": "cosine-epoch", "warmup_epochs": 1, "epochs": 300, "logit_adjustment": 0.0}}
    """The authors' recipe: 300 epochs however many steps they are, the first at a rate of 1e-5."""
    # At the end the loss is so small that a quarter of the steps adds little.
    warm_start_share: ClassVar[float] = 0.95
    class_rows = ("moved_",)

    lr: float = 0.1
    epochs: int | None = None
    steps: int = 300

    def _fit(self, shots: SupportSet) -> None:
        base, multipliers = self._scaled_text(shots), self._multipliers(shots)
        moved = torch.zeros_like(base)
        has_shots = (shots.counts > 0)[:, None].to(base.dtype)  # a class without a shot keeps its text

        def logits(x: Tensor) -> Tensor:
            return shots.scale * x @ unit(base + has_shots * moved).T

        def penalty() -> Tensor:
            assert multipliers is not None
            return moved.square().sum(dim=1) @ multipliers / shots.n_classes  # a mean over all classes

        pull = None if multipliers is None else penalty
        self._learn(shots, unit(shots.views), {"moved_": moved}, logits, penalty=pull, row_cost=base.numel())
        self.moved_ = has_shots * moved
        self.weight_, self.scale_ = base + self.moved_, shots.scale

    def _text_logits(self, X: Tensor) -> Tensor | None:
        text = (self.weight_ - self.moved_) / self.weight_.norm(dim=1, keepdim=True)
        return self.scale_ * unit(X) @ text.to(X.dtype).T

    def _multipliers(self, shots: SupportSet) -> Tensor | None:
        """(c,) strength of the pull of each class weight to its text; None for no pull."""
        return None
