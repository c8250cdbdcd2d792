"""kNN: a weighted vote of the nearest shots, mixed with zero-shot CLIP.

Papers: Wu et al., CVPR 2018, https://arxiv.org/abs/1805.01978, for the votes exp(cos / temperature); Khandelwal et al.,
ICLR 2020, https://arxiv.org/abs/1911.00172, for the mixture of the probabilities of neighbours and of a model.
Differs from both: the model of the mixture is zero-shot CLIP. 20 neighbours at temperature 0.07 are the values that
later work on frozen features adopted from the first paper.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from torch import Tensor

from clipadapter.heads.base import POSITIVE, Head, SupportSet, Within, register_head
from clipadapter.utils.functional import cosine_logits, unit

MIN_PROBABILITY = 1e-6  # probability of a class without a vote, which keeps its logit finite


@register_head("knn", paper="https://arxiv.org/abs/1805.01978")
class Knn(Head):
    """Weighted vote of the nearest shots by cosine; logits are the logarithm of the shares of the votes.

    Args:
        k: number of neighbours; all shots if there are fewer.
        temperature: of the weights exp(cos / temperature) of the votes.
        mix: weight of the zero-shot probabilities, 0 (neighbours alone) to 1; without text it is 0.

    >>> Knn().fit([[0.0, 1.0], [1.0, 0.0]], ["up", "right"]).predict([[0.1, 2.0]])
    array(['up'], dtype='<U5')

    Fidelity: partial: The votes of the neighbours are as published. That class text takes part through zero-shot CLIP
    is ours.
    """

    picture_features = ("keys_",)
    temperature_prior = (0.41, 0.41, 0.41, 0.41, 0.41)

    weight_: Tensor | None = field(init=False, default=None)  # (c, d) class text

    k: Annotated[int, POSITIVE] = 20
    temperature: Annotated[float, POSITIVE] = 0.07
    mix: Annotated[float, Within(0, 1)] = 0.5

    def _fit(self, shots: SupportSet) -> None:
        self.keys_ = unit(unit(shots.views).mean(dim=1))  # (n, d)
        self.labels_, self.n_classes_ = shots.labels, shots.n_classes
        self.weight_, self.scale_ = shots.text, shots.scale

    def _text_logits(self, X: Tensor) -> Tensor | None:
        return X.new_zeros(len(X), self.n_classes_) if self.mix == 0 or self.weight_ is None else None

    def _logits(self, X: Tensor) -> Tensor:
        cosines = unit(X) @ self.keys_.to(X.dtype).T
        nearest = cosines.topk(min(self.k, len(self.keys_)), dim=1)
        votes = (nearest.values / self.temperature).softmax(dim=1)
        none = cosines.new_zeros(cosines.shape[0], self.n_classes_)  # `len` would be a constant of an exported graph
        shares = none.scatter_add(1, self.labels_[nearest.indices], votes)
        if self.weight_ is not None:
            zero_shot = cosine_logits(X, self.weight_.to(X.dtype), self.scale_).softmax(dim=1)
            shares = (1 - self.mix) * shares + self.mix * zero_shot
        return shares.clamp_min(MIN_PROBABILITY).log()
