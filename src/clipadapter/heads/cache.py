"""The key-value cache of Tip-Adapter, which APE and the trained variants share.

Paper: Zhang et al., ECCV 2022, https://arxiv.org/abs/2207.09519. Keys are the features of the shots, values their
labels. The cache logits of a query x of unit length, its term beside the zero-shot logits (eq. 5), are

    A(x) L,    A(x) = exp(-beta (1 - x F'))

with keys F and one-hot labels L. A is written once, in `affinity_`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from clipadapter.heads.base import Head, SupportSet
from clipadapter.heads.parameters import NOT_NEGATIVE, Within
from clipadapter.utils.functional import cosine_logits, unit

INITIAL_ALPHA: Mapping[str, float] = {
    "caltech101": 3.0,
    "oxford_pets": 1.17,
    "stanford_cars": 3.0,
    "oxford_flowers": 10.0,
    "food101": 1.17,
    "fgvc_aircraft": 5.0,
    "sun397": 1.17,
    "dtd": 2.0,
    "eurosat": 2.0,
    "ucf101": 3.0,
    "imagenet": 1.17,
}
"""Tip-Adapter's alpha before its search, by data set."""

INITIAL_BETA = 1.0  # Tip-Adapter's beta before its search, on every data set


@dataclass(eq=False, repr=False, kw_only=True)
class CacheHead(Head):
    """Base of the heads whose logits are those of class text plus ``alpha`` times the votes of the shots.

    Args:
        alpha: weight of the cache logits; 0 is zero-shot CLIP.
        beta: sharpness of the affinity: with high values only the nearest shots count.
    """

    needs_text = True
    picture_features = ("keys_",)

    keys_: Tensor = field(init=False)  # (n, q) key of each shot
    labels_: Tensor = field(init=False)  # (n,) its class position
    weight_: Tensor = field(init=False)  # (c, d) class text
    share_: Tensor | None = field(init=False, default=None)  # (n,) weight of each shot; None for 1

    alpha: Annotated[float, NOT_NEGATIVE] = 1.0
    beta: Annotated[float, NOT_NEGATIVE] = 5.5

    def _set_text(self, shots: SupportSet) -> Tensor:
        """Store all but keys, labels and weights of the shots; returns the class text (c, d)."""
        self.weight_, self.scale_ = shots.class_text, shots.scale
        self.alpha_, self.beta_ = float(self.alpha), float(self.beta)
        return shots.class_text

    def _queries(self, X: Tensor) -> Tensor:
        """(m, d) raw features to the unit rows (m, q) that are compared with the keys."""
        return unit(X)

    def _votes(self, X: Tensor) -> Tensor:
        """(m, d) raw features to cache logits (m, c)."""
        share = None if self.share_ is None else self.share_.to(X.dtype)
        cosines = self.keys_.to(X.dtype) @ self._queries(X).T
        return cache_logits(cosines, self.labels_, len(self.weight_), self.beta_, share)

    def _text_logits(self, X: Tensor) -> Tensor | None:
        return cosine_logits(X, self.weight_.to(X.dtype), self.scale_)

    def _logits(self, X: Tensor) -> Tensor:
        return cosine_logits(X, self.weight_.to(X.dtype), self.scale_) + self.alpha_ * self._votes(X)


@dataclass(eq=False, repr=False, kw_only=True)
class ChannelCacheHead(CacheHead):
    """Base of APE and APE-T, whose keys have some of the channels (Zhu et al., ICCV 2023, section 3)."""

    channels_: Tensor = field(init=False)  # (q,) numbers of the channels, the best first

    channels: Annotated[float, Within(0, 1, closed="right")] = 0.5
    similarity_weight: Annotated[float, NOT_NEGATIVE] = 0.7
    variance_weight: Annotated[float, NOT_NEGATIVE] = 0.3

    def _select_channels(self, text: Tensor, keys: Tensor, labels: Tensor) -> None:
        """Store those with a low similarity of different classes and a high variance of class text.

        The similarity in a channel is the mean product of a vector of one class and one of another, where the vectors
        of a class are its text (c, d) and its keys (n, d). All pairs of classes have the same weight, whatever their
        numbers of shots.
        """
        c = len(text)
        counts = 1 + torch.bincount(labels, minlength=c).to(text.dtype)
        means = text.index_add(0, labels, keys) / counts[:, None]  # (c, d)
        # The sum over pairs of different classes is the square of the sum minus the squares: no loop over pairs.
        similarity = (means.sum(dim=0).square() - means.square().sum(dim=0)) / (c * (c - 1))
        criterion = self.variance_weight * text.var(dim=0) - self.similarity_weight * similarity  # unbiased variance
        count = max(1, round(self.channels * text.shape[1]))
        self.channels_ = criterion.argsort(descending=True, stable=True)[:count]

    def _queries(self, X: Tensor) -> Tensor:
        return unit(X.index_select(1, self.channels_))


def cache_keys(views: Tensor) -> Tensor:
    """The key (n, d) of each shot: the mean of its raw views (n, v, d), scaled to unit length."""
    return unit(views.mean(dim=1))


def affinity_(cosines: Tensor, beta: float) -> Tensor:
    """Affinities ``exp(-beta * (1 - cos))``; overwrites the cosines, since these matrices are large."""
    return cosines.sub_(1).mul_(beta).exp_()


def cache_logits(
    cosines: Tensor, labels: Tensor, n_classes: int, beta: float, shot_weights: Tensor | None = None
) -> Tensor:
    """Cache logits (m, c) from cosines (n, m) of keys and queries, which are overwritten.

    The keys have class positions (n,); ``shot_weights`` (n,) are factors of the affinities, None for 1. Gradients flow
    to cosines and weights.
    """
    affinities = affinity_(cosines, beta)
    if shot_weights is not None:
        affinities = affinities * shot_weights[:, None]  # not in place: exp's gradient needs its result
    # The sums are the product with the one-hot labels, without that matrix of mostly zeros.
    if torch.compiler.is_compiling():  # LiteRT has no sum by index
        one_hot = labels[:, None] == torch.arange(n_classes, device=labels.device)
        return affinities.T @ one_hot.to(affinities.dtype)
    sums = affinities.new_zeros(n_classes, affinities.shape[1])
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        # The ONNX graph that torch writes for index_add keeps only one of the rows of a class.
        return sums.scatter_add(0, labels[:, None].expand_as(affinities), affinities).T
    return sums.index_add(0, labels, affinities).T
