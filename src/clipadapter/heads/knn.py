"""kNN: a weighted vote of the nearest shots, mixed with zero-shot CLIP.

Papers: Wu et al., CVPR 2018, https://arxiv.org/abs/1805.01978, for the votes exp(cos / temperature); Khandelwal et al.,
ICLR 2020, https://arxiv.org/abs/1911.00172, for the mixture of the probabilities of neighbours and of a model.
Differs from both: the model of the mixture is zero-shot CLIP. 20 neighbours at temperature 0.07 are the values that
later work on frozen features adopted from the first paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from clipadapter.functional import cosine_logits, unit
from clipadapter.heads.base import Head, SupportSet
from clipadapter.heads.parameters import POSITIVE, Within
from clipadapter.heads.registry import register_head

MIN_PROBABILITY = 1e-6
"""Probability of a class without a vote, which keeps its logit finite."""
ROWS_PER_BLOCK = 1024
"""Shots that `leave_one_out` compares with all others at a time."""


@register_head(
    "knn",
    paper="https://arxiv.org/abs/1805.01978",
    fidelity="partial: The votes of the neighbours are as published. That class text takes part through zero-shot "
    "CLIP is ours.",
)
@dataclass(eq=False, repr=False, kw_only=True)
class Knn(Head):
    """Weighted vote of the nearest shots by cosine; logits are the logarithm of the shares of the votes.

    Args:
        k: number of neighbours; all shots if there are fewer.
        temperature: of the weights exp(cos / temperature) of the votes.
        mix: weight of the zero-shot probabilities, 0 (neighbours alone) to 1; without text it is 0.

    >>> Knn().fit([[0.0, 1.0], [1.0, 0.0]], ["up", "right"]).predict([[0.1, 2.0]])
    array(['up'], dtype='<U5')
    """

    picture_features = ("keys_",)
    temperature_prior = (0.41, 0.41, 0.41, 0.41, 0.41)

    k: Annotated[int, POSITIVE] = 20
    temperature: Annotated[float, POSITIVE] = 0.07
    mix: Annotated[float, Within(0, 1)] = 0.5

    def _fit(self, shots: SupportSet) -> None:
        self.keys_, self.labels_, self.n_classes_ = _keys(shots), shots.labels, shots.n_classes
        self.weight_, self.scale_ = shots.text, shots.scale

    def _text_logits(self, X: Tensor) -> Tensor | None:
        has_no_text = self.mix == 0 or getattr(self, "weight_", None) is None
        return X.new_zeros(len(X), self.n_classes_) if has_no_text else None

    def _logits(self, X: Tensor) -> Tensor:
        keys = self.keys_.to(X.dtype)
        shares = self._vote_shares(unit(X) @ keys.T, self.labels_, self.n_classes_)
        return self._mix_with_text(shares, X, getattr(self, "weight_", None), self.scale_)

    def _leave_one_out(self, shots: SupportSet) -> Tensor | None:
        n = len(shots.labels)
        if n == 1:
            return None
        keys, x, shares = _keys(shots), unit(shots.X), []
        for rows in torch.arange(n).split(ROWS_PER_BLOCK):
            cosine = x[rows] @ keys.T
            cosine[torch.arange(len(rows)), rows] = -torch.inf
            shares.append(self._vote_shares(cosine, shots.labels, shots.n_classes, n - 1))
        return self._mix_with_text(torch.cat(shares), shots.X, shots.text, shots.scale)

    def _vote_shares(self, cosine: Tensor, labels: Tensor, n_classes: int, n: int | None = None) -> Tensor:
        """Shares of the votes (b, c) from cosines (b, n), with at most n neighbours."""
        top = cosine.topk(min(self.k, cosine.shape[1] if n is None else n), dim=1)
        votes = (top.values / self.temperature).softmax(dim=1)
        return cosine.new_zeros(cosine.shape[0], n_classes).scatter_add(1, labels[top.indices], votes)

    def _mix_with_text(self, shares: Tensor, X: Tensor, text: Tensor | None, scale: float) -> Tensor:
        if text is not None:
            zero_shot = cosine_logits(X, text.to(X.dtype), scale).softmax(dim=1)
            shares = (1 - self.mix) * shares + self.mix * zero_shot
        return shares.clamp_min(MIN_PROBABILITY).log()


def _keys(shots: SupportSet) -> Tensor:
    """(n, d) unit rows, each the mean of its shot's unit-length views."""
    return unit(unit(shots.views).mean(dim=1))
