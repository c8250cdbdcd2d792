"""kNN: the shots most like the picture vote, each by how like it is; class text may vote with them.

Papers: Wu et al., CVPR 2018, https://arxiv.org/abs/1805.01978, for the votes exp(cos / temperature); Khandelwal et al.,
ICLR 2020, https://arxiv.org/abs/1911.00172, for the mixture of neighbours' and model's probabilities.
Differs from both: the model of the mixture is zero-shot CLIP. 20 neighbours at 0.07 are what later work on frozen
features took over from the first paper.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipadapter.errors import InputError
from clipadapter.functional import cosine_logits, unit
from clipadapter.heads.base import Head, SupportSet
from clipadapter.heads.registry import register_head

LEAST = 1e-6
"""Probability of a class that gets no vote: its logit stays finite."""
BLOCK = 1024


@register_head(
    "knn",
    paper="https://arxiv.org/abs/1805.01978",
    fidelity="partial: The votes of the neighbours are as published. That class text takes part through zero-shot "
    "CLIP is ours.",
)
class Knn(Head):
    """Weighted vote of the nearest shots by cosine; logits are the logarithm of the shares of the votes.

    Args:
        k: neighbours that vote, all if there are fewer shots.
        temperature: of the votes' weights exp(cos / temperature).
        mix: share of zero-shot in the probabilities, 0 (neighbours alone) to 1; without text it counts as 0.

    >>> Knn().fit([[0.0, 1.0], [1.0, 0.0]], ["up", "right"]).predict([[0.1, 2.0]])
    array(['up'], dtype='<U5')
    """

    temperature_prior = (0.41, 0.41, 0.41, 0.41, 0.41)

    def __init__(self, k: int = 20, temperature: float = 0.07, mix: float = 0.5) -> None:
        self.k = k
        self.temperature = temperature
        self.mix = mix

    def _fit(self, shots: SupportSet) -> None:
        self._check()
        self.keys_, self.labels_, self.n_classes_ = _keys(shots), shots.labels, shots.n_classes
        self.weight_, self.scale_ = shots.text, shots.scale

    def _text_logits(self, X: Tensor) -> Tensor | None:
        without = self.mix == 0 or getattr(self, "weight_", None) is None
        return X.new_zeros(len(X), self.n_classes_) if without else None

    def _logits(self, X: Tensor) -> Tensor:
        keys = self.keys_.to(X.dtype)
        shares = self._shares(unit(X) @ keys.T, self.labels_, self.n_classes_)
        return self._mixed(shares, X, getattr(self, "weight_", None), self.scale_)

    def _leave_one_out(self, shots: SupportSet) -> Tensor | None:
        self._check()
        n = len(shots.labels)
        if n == 1:
            return None
        keys, x, shares = _keys(shots), unit(shots.X), []
        for rows in torch.arange(n).split(BLOCK):
            cosine = x[rows] @ keys.T
            cosine[torch.arange(len(rows)), rows] = -torch.inf
            shares.append(self._shares(cosine, shots.labels, shots.n_classes, n - 1))
        return self._mixed(torch.cat(shares), shots.X, shots.text, shots.scale)

    def _shares(self, cosine: Tensor, labels: Tensor, n_classes: int, n: int | None = None) -> Tensor:
        """Cosines (b, n) to shares of the votes (b, c)."""
        top = cosine.topk(min(self.k, cosine.shape[1] if n is None else n), dim=1)
        votes = (top.values / self.temperature).softmax(dim=1)
        return cosine.new_zeros(cosine.shape[0], n_classes).scatter_add(1, labels[top.indices], votes)

    def _mixed(self, shares: Tensor, X: Tensor, text: Tensor | None, scale: float) -> Tensor:
        if text is not None:
            zero_shot = cosine_logits(X, text.to(X.dtype), scale).softmax(dim=1)
            shares = (1 - self.mix) * shares + self.mix * zero_shot
        return shares.clamp_min(LEAST).log()

    def _check(self) -> None:
        for name in ("k", "temperature"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, but is {getattr(self, name)}")
        if not 0 <= self.mix <= 1:
            raise InputError(f"mix must be 0 to 1, but is {self.mix!r}")


def _keys(shots: SupportSet) -> Tensor:
    """(n, d) unit rows, each the mean of its shot's unit-length views."""
    return unit(unit(shots.views).mean(dim=1))
