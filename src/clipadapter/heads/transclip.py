"""TransCLIP: a Gaussian mixture over the unlabelled images, regularised by class text and by a neighbour graph.

Paper: Zanella et al., NeurIPS 2024, https://arxiv.org/abs/2406.01837. Written from its formulas, without reading the
released code. `TransClip.official` is the zero-shot mode, which uses no labels.
Differs from the paper in the few-shot mode: a shot counts as ``support_weight`` unlabelled images, whatever their
numbers, where the paper chooses that weight on a validation set. Predictions for images that were not passed to `fit`
are ours too.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from clipadapter.heads.base import SupportSet, at_least, register_head
from clipadapter.heads.ss_text_u import warn_if_few_classes
from clipadapter.heads.transductive import MIN_VARIANCE_RATIO, MixtureHead
from clipadapter.utils.functional import unit


@register_head("transclip", paper="https://arxiv.org/abs/2406.01837")
class TransClip(MixtureHead):
    """Transductive: one Gaussian per class over the unlabelled images, with a zero-shot prior and a neighbour graph.

    The logarithm of an assignment is, up to a constant, ``prior * log zero_shot + likelihood * log density +
    smoothness * neighbours``. The last term is the mean assignment of the image's nearest neighbours and of the images
    whose nearest neighbour it is, weighted by their cosines. Assignments, centres and the variance that all classes
    share are updated in turn.

    An image that was among the unlabelled ones gets its final assignment. Any other image gets one update of its own,
    with neighbours among the unlabelled images and the shots; the mixture stays as it is.

    Args:
        prior: exponent of the zero-shot probabilities; the paper's is 0.5 with shots and 1 without.
        confident: number of images with the highest zero-shot probability from which a class without shots starts.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.9], [0.9, 1.0]], logit_scale=10.0)
    >>> pictures = [[9.0, 1.0], [8.0, 2.0], [7.0, 6.0], [1.0, 9.0], [2.0, 8.0]]
    >>> head = TransClip().fit([[9.0, 0.0], [0.0, 9.0]], ["cat", "dog"], text=text, unlabelled=pictures)
    >>> head.predict(pictures)
    array(['cat', 'cat', 'cat', 'dog', 'dog'], dtype='<U3')

    Fidelity: partial: The zero-shot mode, `TransClip.official`, gives the outputs of the authors' code. In the few-shot
    mode the weight of a shot is ours, and so are the answers for new pictures.
    """

    recipes = {"official": {"prior": 1.0, "support_weight": 0.0}}
    """The zero-shot mode of the released code: the shots are not used."""

    prior: float = 0.5
    confident: Annotated[int, at_least(1)] = 8

    def _fit(self, shots: SupportSet) -> None:
        warn_if_few_classes(shots, "transclip")
        pictures, self.weight_, used = self._store_rows(shots)
        self.scale_, self.labels_ = shots.scale, used.labels
        rows = self.rows_[len(pictures) :]
        sums = rows.new_zeros(shots.n_classes, rows.shape[1]).index_add(0, used.labels, rows)  # (c, d)
        start = self._zero_shot(pictures).softmax(dim=1)
        # The mean of the shots of a class; without shots, that of its most confident zero-shot pictures.
        probabilities, indices = start.topk(min(self.confident, len(pictures)), dim=0)  # (s, c)
        from_zero_shot = torch.einsum("sc,scd->cd", probabilities, pictures[indices])
        self.centres_ = unit(torch.where(used.counts[:, None] > 0, sums, from_zero_shot))  # (c, d)
        self.variance_ = torch.full_like(pictures[0], 1 / pictures.shape[1])

        def update(assigned: Tensor) -> None:
            """Set centres (c, d) and variance (d,) from assignments (u, c) and labels."""
            weighted_sums = assigned.T @ pictures + self.support_weight * sums
            counts = assigned.sum(dim=0) + self.support_weight * used.counts
            self.centres_ = unit(weighted_sums)
            # sum of z (x - mu)^2, multiplied out, so that no (u, c, d) tensor is needed
            squares = pictures.square().sum(dim=0) + self.support_weight * rows.square().sum(dim=0)
            spread = squares - 2 * (self.centres_ * weighted_sums).sum(dim=0) + counts @ self.centres_.square()
            self.variance_ = (spread / counts.sum()).clamp_min(MIN_VARIANCE_RATIO / pictures.shape[1])

        self.answers_ = self._assign(pictures, used, self._prior(pictures), start, update)

    def _zero_shot(self, x: Tensor) -> Tensor:
        return self.scale_ * x @ self.weight_.to(x.dtype).T

    def _prior(self, x: Tensor) -> Tensor:
        return self.prior * self._zero_shot(x).log_softmax(dim=1)

    def _log_density(self, x: Tensor) -> Tensor:
        centres, variance = self.centres_.to(x.dtype), self.variance_.to(x.dtype)
        scaled = centres / variance
        return x @ scaled.T - 0.5 * (scaled * centres).sum(dim=1)
