"""Tip-Adapter: the shots, kept in a cache, vote beside zero-shot CLIP.

Paper: Zhang et al., ECCV 2022, https://arxiv.org/abs/2207.09519, equations 1 to 5.
Differs from the paper, where alpha and beta were set per data set and then searched on validation or test pictures: one
alpha and beta for all data sets, the best of the paper's ablation on ImageNet with 16 shots. `search_grid` has the
values that the released code searched, for a search on held-out shots. The logits themselves are the released code's.
With several labels a picture (ours): a shot votes for each class that it has, and a bias for each class is learned from
what the other shots say of each shot.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor

from clipadapter.functional import cosine_logits, unit
from clipadapter.heads._base import Head, Preset, SupportSet
from clipadapter.heads._registry import register_head
from clipadapter.heads._several import fitted_bias, votes_for_several, with_bias
from clipadapter.heads.cache import (
    INITIAL_ALPHA,
    INITIAL_BETA,
    cache_keys,
    cache_logits,
    check_not_negative,
    grid_values,
    votes_of_others,
)

SEARCH_SCALE: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "caltech101": (12.0, 5.0),
        "oxford_pets": (7.0, 3.0),
        "stanford_cars": (20.0, 10.0),
        "oxford_flowers": (50.0, 50.0),
        "food101": (10.0, 10.0),
        "fgvc_aircraft": (30.0, 30.0),
        "sun397": (12.0, 10.0),
        "dtd": (13.0, 13.0),
        "eurosat": (12.0, 10.0),
        "ucf101": (7.0, 3.0),
        "imagenet": (7.0, 3.0),
    }
)
"""Bounds (beta, alpha) of the released code's search by data set, to be given to `search_grid`."""


def search_grid(
    beta_max: float, alpha_max: float, beta_steps: int = 200, alpha_steps: int = 20
) -> dict[str, tuple[float, ...]]:
    """The values of beta and alpha that the released code tries, in its order: beta is the outer loop.

    Args:
        beta_max: bound of beta, itself not tried.
        alpha_max: bound of alpha, itself not tried.
        beta_steps: number of values of beta, from 0.1 up.
        alpha_steps: number of values of alpha, from 0.1 up.

    Returns:
        The values by parameter.

    >>> search_grid(*SEARCH_SCALE["imagenet"])["alpha"][:3]
    (0.1, 0.245, 0.39)
    """
    return {"beta": grid_values(0.1, beta_max, beta_steps), "alpha": grid_values(0.1, alpha_max, alpha_steps)}


@register_head(
    "tip-adapter",
    paper="https://arxiv.org/abs/2207.09519",
    fidelity="verified: The cache and the logits are those of the authors' code, and `search_grid` has the values "
    "that it tries. The default alpha and beta are one pair for all data sets.",
)
class TipAdapter(Head):
    """Training-free: affinity to the cached shots, summed by class, beside the zero-shot logits.

    The cache's part is a sum over shots, as published: it grows with the number of shots, and a class with more shots
    weighs more.

    Args:
        alpha: weight of the cache; 0 is zero-shot CLIP.
        beta: sharpness of the affinity: high values let only the nearest shots vote.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0], [0.0, 1.0]], logit_scale=1.0)
    >>> head = TipAdapter(alpha=2.0).fit([[0.6, 0.8]], ["cat"], text=text)
    >>> head.logits([[0.6, 0.8]]).round(2)
    array([[2.6, 0.8]])
    """

    needs_text = True
    multilabel = True
    presets: ClassVar[Mapping[str, Preset]] = {
        name: {"alpha": alpha, "beta": INITIAL_BETA} for name, alpha in INITIAL_ALPHA.items()
    }
    preset_note = (
        "Start values of the authors' search, not the values behind their figures: they searched alpha and beta anew "
        "for each data set on its validation pictures, for ImageNet on its test pictures. `search_grid` has the values "
        "that they tried."
    )
    usual_temperatures = (0.9, 0.9, 0.81, 0.81, 0.9)

    def __init__(self, alpha: float = 1.0, beta: float = 5.5) -> None:
        self.alpha = alpha
        self.beta = beta

    def _fit(self, shots: SupportSet) -> None:
        assert shots.text is not None
        check_not_negative(alpha=self.alpha, beta=self.beta)
        several = shots.targets is not None
        self.keys_, self.labels_ = cache_keys(shots.views), None if several else shots.labels
        self.targets_ = shots.targets
        self.weight_, self.scale_ = shots.text, shots.scale
        self.alpha_, self.beta_ = float(self.alpha), float(self.beta)
        self.bias_ = None
        if shots.targets is not None:
            votes = votes_for_several(shots.X, self.keys_, shots.targets, self.beta_, without_own=True)
            self.bias_ = fitted_bias(
                cosine_logits(shots.X, shots.text, shots.scale) + self.alpha_ * votes, shots.targets
            )

    def _text_logits(self, X: Tensor) -> Tensor:
        return cosine_logits(X, self.weight_.to(X.dtype), self.scale_)

    def _logits(self, X: Tensor) -> Tensor:
        weight, keys = self.weight_.to(X.dtype), self.keys_.to(X.dtype)
        if self.task_ == "multilabel":
            assert self.targets_ is not None
            votes = votes_for_several(X, keys, self.targets_.to(X.dtype), self.beta_)
        else:
            assert self.labels_ is not None
            votes = cache_logits(unit(X), keys, self.labels_, len(weight), self.beta_)
        return with_bias(self, cosine_logits(X, weight, self.scale_) + self.alpha_ * votes)

    def _leave_one_out(self, shots: SupportSet) -> Tensor:
        assert shots.text is not None
        check_not_negative(alpha=self.alpha, beta=self.beta)
        zero_shot = cosine_logits(shots.X, shots.text, shots.scale)
        return zero_shot + self.alpha * votes_of_others(shots, self.beta)
