"""Prototype: the class whose mean feature is nearest, mixed with class text if there is some.

Paper: Snell et al., NeurIPS 2017, https://arxiv.org/abs/1703.05175, with frozen features; the mean of each class is
compared by cosine.
Differs from the paper: the mixture with the text's logits is ours. A class without a shot has the mean of the other
classes' prototypes: it gains and loses nothing against the average class, and its text decides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipadapter.errors import InputError
from clipadapter.functional import ABSENT_LOGIT, unit
from clipadapter.heads._base import SupportSet
from clipadapter.heads._registry import register_head
from clipadapter.heads._streaming import Exact
from clipadapter.heads._warm import carried


@register_head(
    "prototype",
    paper="https://arxiv.org/abs/1703.05175",
    fidelity="partial: Class means are as published, compared by cosine. The mixture with class text is ours.",
)
class Prototype(Exact):
    """Nearest class mean by cosine, mixed with the zero-shot logits.

    Args:
        mix: weight of class text, 0 (class means alone) to 1 (zero-shot); without text it counts as 0.

    >>> Prototype().fit([[0.0, 1.0], [1.0, 0.0]], ["up", "right"]).predict([[0.1, 2.0]])
    array(['up'], dtype='<U5')
    """

    usual_temperatures = (0.9, 0.81, 0.74, 0.74, 1.0)

    sums_: Tensor
    """(c, d) of the shots' rows, float64."""
    weight_: Tensor

    def __init__(self, mix: float = 0.5) -> None:
        self.mix = mix

    def _clear(self, shots: SupportSet) -> None:
        self._mix(shots.text)
        self.sums_ = torch.zeros(shots.n_classes, shots.views.shape[2], dtype=torch.float64)
        self.weight_ = shots.views.new_zeros(0)

    def _gather(self, shots: SupportSet, sign: int) -> None:
        self.sums_ = self.sums_.index_add(0, shots.labels, _rows(shots).double(), alpha=sign)

    def _arrange(self, origin: Tensor) -> None:
        self.sums_ = carried(self.sums_, origin)

    def _settle(self, text: Tensor | None, scale: float) -> None:
        mix, dtype = self._mix(text), self.weight_.dtype
        present = self.counts_ > 0
        prototypes = torch.where(present[:, None], unit(self.sums_), 0.0)
        prototypes[~present] = prototypes.sum(dim=0) / present.sum()
        others = (1 - mix) * prototypes.to(dtype)
        self.text_ = mix * text.to(dtype) if mix > 0 and text is not None else None
        self.weight_, self.scale_ = others if self.text_ is None else self.text_ + others, scale
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
        mix, labels, x = self._mix(shots.text), shots.labels, unit(shots.X)
        rows = _rows(shots)
        sums = rows.new_zeros(shots.n_classes, rows.shape[1]).index_add_(0, labels, rows)
        left = shots.counts[labels] - 1
        prototypes, present = unit(sums), shots.counts > 0
        # A class that loses its only shot: the difference of equal sums is rounding, not a direction.
        own = torch.where(left[:, None] > 0, unit(sums[labels] - rows), 0.0)  # (n, d)
        n_left = present.sum() - (left == 0).to(x.dtype)
        others = (x @ prototypes.sum(dim=0) + (x * (own - prototypes[labels])).sum(dim=1)) / n_left  # (n,)
        cosine = x @ prototypes.T
        cosine[:, ~present] = others[:, None]
        at = torch.arange(len(labels))
        cosine[at, labels] = torch.where(left > 0, (x * own).sum(dim=1), others)
        found = shots.scale * (1 - mix) * cosine
        if shots.text is not None:
            found = found + shots.scale * mix * x @ shots.text.T
        if mix == 0:
            found[:, ~present] += ABSENT_LOGIT
            found[at, labels] += torch.where(left > 0, 0.0, ABSENT_LOGIT)
        return found

    def _mix(self, text: Tensor | None) -> float:
        if not 0 <= self.mix <= 1:
            raise InputError(f"mix must be 0 to 1, but is {self.mix!r}")
        return 0.0 if text is None else self.mix


def _rows(shots: SupportSet) -> Tensor:
    """(n, d), of each shot the mean of its unit-length views."""
    return unit(shots.views).mean(dim=1)
