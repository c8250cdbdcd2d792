"""Tip-Adapter: a key-value cache of the shots, added to zero-shot CLIP.

Paper: Zhang et al., ECCV 2022, https://arxiv.org/abs/2207.09519, equations 1 to 5. With unit features x of a query and
F of the shots, one-hot labels L, class text W and logit scale s:

    logits = s x W' + alpha exp(-beta (1 - x F')) L

Differs from the paper, where alpha and beta are set per data set and then searched on validation or test images: there
is one alpha and beta for all data sets, the best of the paper's ablation on ImageNet with 16 shots. The logits are
those of the released code.
With multi-label images (ours): a shot counts for each class that it has, and a bias of each class is fitted to the
leave-one-out logits of the shots.
"""

from __future__ import annotations

from dataclasses import field

from torch import Tensor

from clipadapter.heads.base import SupportSet, register_head
from clipadapter.heads.cache import INITIAL_ALPHA, INITIAL_BETA, CacheHead, affinity_, cache_keys
from clipadapter.heads.losses import add_bias, fit_bias
from clipadapter.utils.functional import cosine_logits, unit


@register_head("tip-adapter", paper="https://arxiv.org/abs/2207.09519")
class TipAdapter(CacheHead):
    """Training-free: affinities to the cached shots, summed by class, added to the zero-shot logits.

    The cache logits are sums over shots, as published: they grow with the number of shots, and a class with more shots
    has larger ones.

    Args:
        alpha: weight of the cache logits; 0 is zero-shot CLIP.
        beta: sharpness of the affinity: with high values only the nearest shots count.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0], [0.0, 1.0]], logit_scale=1.0)
    >>> head = TipAdapter(alpha=2.0).fit([[0.6, 0.8]], ["cat"], text=text)
    >>> head.logits([[0.6, 0.8]]).round(2)
    array([[2.6, 0.8]])

    Fidelity: verified: The cache and the logits are those of the authors' code. The default alpha and beta are one pair
    for all data sets.
    """

    multilabel = True
    presets = {name: {"alpha": alpha, "beta": INITIAL_BETA} for name, alpha in INITIAL_ALPHA.items()}
    preset_note = (
        "Start values of the authors' search, not the values behind their figures: they searched alpha and beta anew "
        "for each data set on its validation pictures, for ImageNet on its test pictures."
    )
    temperature_prior = (0.9, 0.9, 0.81, 0.81, 0.9)

    bias_: Tensor | None = field(init=False)  # (c,) of a multi-label head
    targets_: Tensor | None = field(init=False)  # (n, c) zeros and ones of a multi-label head, in place of ``labels_``

    def _fit(self, shots: SupportSet) -> None:
        text = self._set_text(shots)
        self.keys_, self.bias_, self.targets_ = cache_keys(shots.views), None, shots.targets
        if shots.targets is None:
            self.labels_ = shots.labels
            return
        self.__dict__.pop("labels_", None)  # of an earlier fit
        votes = self._multilabel_votes(shots.X, own=True)
        self.bias_ = fit_bias(cosine_logits(shots.X, text, shots.scale) + self.alpha_ * votes, shots.targets)

    def _votes(self, X: Tensor) -> Tensor:
        return self._multilabel_votes(X) if self.task_ == "multilabel" else super()._votes(X)

    def _multilabel_votes(self, X: Tensor, own: bool = False) -> Tensor:
        """Cache logits (m, c) where a shot counts for each of its labels; ``own``: picture i is shot i, left out."""
        assert self.targets_ is not None
        affinities = affinity_(unit(X) @ self.keys_.to(X.dtype).T, self.beta_)  # (m, n)
        if own:
            affinities.fill_diagonal_(0)
        return affinities @ self.targets_.to(X.dtype)

    def _logits(self, X: Tensor) -> Tensor:
        return add_bias(self, super()._logits(X))
