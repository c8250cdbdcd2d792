"""Prototype: cosine to the mean feature of each class, mixed with the zero-shot logits.

Paper: Snell et al., NeurIPS 2017, https://arxiv.org/abs/1703.05175, with frozen features and cosines in place of
squared distances.
Differs from the paper: the mixture with the zero-shot logits is ours. A class without a shot has the mean of the other
classes' prototypes. Its logit is then that of an average class, and its text decides.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

import torch
from torch import Tensor

from clipadapter.heads.base import SupportSet, Within, register_head
from clipadapter.heads.nearest_mean import ClassMeansHead
from clipadapter.utils.functional import ABSENT_LOGIT, unit


@register_head("prototype", paper="https://arxiv.org/abs/1703.05175")
class Prototype(ClassMeansHead):
    """Nearest class mean by cosine, mixed with the zero-shot logits.

    Args:
        mix: weight of class text, 0 (class means alone) to 1 (zero-shot); without text it is 0.

    >>> Prototype().fit([[0.0, 1.0], [1.0, 0.0]], ["up", "right"]).predict([[0.1, 2.0]])
    array(['up'], dtype='<U5')

    Fidelity: partial: Class means are as published, compared by cosine. The mixture with class text is ours.
    """

    temperature_prior = (0.9, 0.81, 0.74, 0.74, 1.0)

    text_: Tensor | None = field(init=False, default=None)  # (c, d) class text times `mix`
    weight_: Tensor = field(init=False)  # (c, d) weighted sum of class text and prototypes

    mix: Annotated[float, Within(0, 1)] = 0.5

    def _init_sums(self, shots: SupportSet) -> None:
        super()._init_sums(shots)
        self.weight_ = shots.views.new_zeros(0)

    def _solve_from_sums(self, text: Tensor | None, scale: float) -> None:
        mix, dtype = 0.0 if text is None else self.mix, self.weight_.dtype
        present, prototypes = self.counts_ > 0, self._class_means()
        prototypes[~present] = prototypes.sum(dim=0) / present.sum()
        prototypes = (1 - mix) * prototypes.to(dtype)
        self.text_ = mix * text.to(dtype) if mix > 0 and text is not None else None
        self.weight_, self.scale_ = prototypes if self.text_ is None else self.text_ + prototypes, scale
        self.bias_ = torch.where(present | (mix > 0), 0.0, ABSENT_LOGIT).to(dtype)

    def _text_logits(self, X: Tensor) -> Tensor | None:
        if self.text_ is None:
            return X.new_zeros(len(X), len(self.weight_)) if self.mix == 0 else None
        return self.scale_ * unit(X) @ self.text_.to(X.dtype).T

    def _logits(self, X: Tensor) -> Tensor:
        return self.scale_ * unit(X) @ self.weight_.to(X.dtype).T + self.bias_.to(X.dtype)
