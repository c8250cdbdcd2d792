"""Prototype: cosine to the mean feature of each class, mixed with the zero-shot logits.

Paper: Snell et al., NeurIPS 2017, https://arxiv.org/abs/1703.05175, with frozen features and cosines in place of
squared distances.
Differs from the paper: the mixture with the zero-shot logits is ours. A class without a shot has the mean of the other
classes' prototypes. Its logit is then that of an average class, and its text decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from clipadapter.functional import ABSENT_LOGIT, unit
from clipadapter.heads.base import SupportSet
from clipadapter.heads.incremental import ExactIncrementalHead
from clipadapter.heads.parameters import Within
from clipadapter.heads.registry import register_head
from clipadapter.heads.warm_start import remap_rows


@register_head(
    "prototype",
    paper="https://arxiv.org/abs/1703.05175",
    fidelity="partial: Class means are as published, compared by cosine. The mixture with class text is ours.",
)
@dataclass(eq=False, repr=False, kw_only=True)
class Prototype(ExactIncrementalHead):
    """Nearest class mean by cosine, mixed with the zero-shot logits.

    Args:
        mix: weight of class text, 0 (class means alone) to 1 (zero-shot); without text it is 0.

    >>> Prototype().fit([[0.0, 1.0], [1.0, 0.0]], ["up", "right"]).predict([[0.1, 2.0]])
    array(['up'], dtype='<U5')
    """

    temperature_prior = (0.9, 0.81, 0.74, 0.74, 1.0)

    sums_: Tensor = field(init=False)
    """(c, d) sums of the shots of each class, float64."""
    weight_: Tensor = field(init=False)
    """(c, d) weighted sum of class text and prototypes."""

    mix: Annotated[float, Within(0, 1)] = 0.5

    def _init_sums(self, shots: SupportSet) -> None:
        self._text_weight(shots.text)
        self.sums_ = torch.zeros(shots.n_classes, shots.views.shape[2], dtype=torch.float64)
        self.weight_ = shots.views.new_zeros(0)

    def _update_sums(self, shots: SupportSet, sign: int) -> None:
        self.sums_ = self.sums_.index_add(0, shots.labels, _rows(shots).double(), alpha=sign)

    def _remap_sums(self, origin: Tensor) -> None:
        self.sums_ = remap_rows(self.sums_, origin)

    def _solve_from_sums(self, text: Tensor | None, scale: float) -> None:
        mix, dtype = self._text_weight(text), self.weight_.dtype
        present = self.counts_ > 0
        prototypes = torch.where(present[:, None], unit(self.sums_), 0.0)
        prototypes[~present] = prototypes.sum(dim=0) / present.sum()
        prototypes = (1 - mix) * prototypes.to(dtype)
        self.text_ = mix * text.to(dtype) if mix > 0 and text is not None else None
        self.weight_, self.scale_ = prototypes if self.text_ is None else self.text_ + prototypes, scale
        self.bias_ = torch.where(present | (mix > 0), 0.0, ABSENT_LOGIT).to(dtype)

    def _text_logits(self, X: Tensor) -> Tensor | None:
        text = getattr(self, "text_", None)
        if text is None:
            return X.new_zeros(len(X), len(self.weight_)) if self.mix == 0 else None
        return self.scale_ * unit(X) @ text.to(X.dtype).T

    def _logits(self, X: Tensor) -> Tensor:
        return self.scale_ * unit(X) @ self.weight_.to(X.dtype).T + self.bias_.to(X.dtype)

    def _leave_one_out(self, shots: SupportSet) -> Tensor | None:
        if len(shots.labels) == 1:
            return None
        mix, labels, x = self._text_weight(shots.text), shots.labels, unit(shots.X)
        rows = _rows(shots)
        sums = rows.new_zeros(shots.n_classes, rows.shape[1]).index_add_(0, labels, rows)
        remaining = shots.counts[labels] - 1
        prototypes, present = unit(sums), shots.counts > 0
        # Where a class loses its only shot, the difference of equal sums is rounding noise, not a direction.
        own = torch.where(remaining[:, None] > 0, unit(sums[labels] - rows), 0.0)  # (n, d)
        n_present = present.sum() - (remaining == 0).to(x.dtype)
        # (n,) cosine to the mean of all prototypes, the prototype of classes without shots.
        mean_cosine = (x @ prototypes.sum(dim=0) + (x * (own - prototypes[labels])).sum(dim=1)) / n_present
        cosine = x @ prototypes.T
        cosine[:, ~present] = mean_cosine[:, None]
        at = torch.arange(len(labels))
        cosine[at, labels] = torch.where(remaining > 0, (x * own).sum(dim=1), mean_cosine)
        logits = shots.scale * (1 - mix) * cosine
        if shots.text is not None:
            logits = logits + shots.scale * mix * x @ shots.text.T
        if mix == 0:
            logits[:, ~present] += ABSENT_LOGIT
            logits[at, labels] += torch.where(remaining > 0, 0.0, ABSENT_LOGIT)
        return logits

    def _text_weight(self, text: Tensor | None) -> float:
        return 0.0 if text is None else self.mix


def _rows(shots: SupportSet) -> Tensor:
    """(n, d) mean of the unit-length views of each shot."""
    return unit(shots.views).mean(dim=1)
