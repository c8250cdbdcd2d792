"""Nearest mean: the class with the nearest mean feature; zero-shot for the classes that have no shots.

Papers: Mensink et al., PAMI 2013, https://doi.org/10.1109/TPAMI.2013.83; as the classifier of iCaRL, Rebuffi et al.,
CVPR 2017, https://arxiv.org/abs/1611.07725 (eq. 2): means of unit features, at unit length, so that the nearest mean
has the largest cosine. The features are frozen, so an update changes a sum and nothing is forgotten.
Where every class has a shot it is `Prototype` with ``mix=0``. The difference is the use of text: prototype mixes it
into every class, here it is used for classes without a shot alone. Let p be the zero-shot probabilities. A class
without a shot has its p, and the classes with shots share the sum of their p by the softmax of their cosines: that is
ours. Without text a class without a shot is never predicted.
"""

from __future__ import annotations

from dataclasses import field

import torch
from torch import Tensor

from clipadapter.heads.base import SupportSet, register_head
from clipadapter.heads.incremental import ExactIncrementalHead
from clipadapter.utils.functional import ABSENT_LOGIT, unit


class ClassMeansHead(ExactIncrementalHead):
    """Base of the heads that compare a picture with the mean of each class; one sum per class is stored."""

    sums_: Tensor  # (c, d) of the unit features of the shots, views averaged; float64

    def _init_sums(self, shots: SupportSet) -> None:
        self.sums_ = torch.zeros(shots.n_classes, shots.views.shape[2], dtype=torch.float64)

    def _update_sums(self, shots: SupportSet, sign: int) -> None:
        rows = unit(shots.views.double()).mean(dim=1)
        self.sums_ = self.sums_.index_add(0, shots.labels, rows, alpha=sign)

    def _class_means(self) -> Tensor:
        """(c, d) unit means, float64; zeros for classes without a shot."""
        return torch.where(self.counts_[:, None] > 0, unit(self.sums_), 0.0)


@register_head("nearest-mean", paper="https://arxiv.org/abs/1611.07725", compare=False)
class NearestMean(ClassMeansHead):
    """Nearest class mean by cosine; keeps one sum per class, whatever the number of shots.

    >>> head = NearestMean().fit([[0.0, 1.0], [1.0, 0.0]], ["up", "right"])
    >>> head.partial_fit([[-1.0, 0.0]], ["left"]).predict([[0.1, 2.0], [-3.0, 1.0]])
    array(['up', 'left'], dtype='<U5')

    Fidelity: paper: The nearest mean of unit features, as in iCaRL. What class text says of classes without a shot is
    ours.
    """

    temperature_prior = (1.7, 1.2, 1.1, 0.96, 0.96)

    means_: Tensor = field(init=False)  # (c, d) unit means; zeros for classes without a shot
    text_: Tensor | None = field(init=False, default=None)

    def _init_sums(self, shots: SupportSet) -> None:
        super()._init_sums(shots)
        self.means_ = shots.views.new_zeros(0)

    def _solve_from_sums(self, text: Tensor | None, scale: float) -> None:
        self.means_ = self._class_means().to(self.means_.dtype)
        self.text_, self.scale_ = text, scale

    def _logits(self, X: Tensor) -> Tensor:
        x, learned = unit(X), self.counts_ > 0
        logits = self.scale_ * x @ self.means_.to(X.dtype).T
        text = self.text_
        has_text = torch.zeros_like(learned) if text is None else text.any(dim=1)
        with_both = torch.nonzero(learned & has_text).flatten()
        if text is None or learned.all() or not len(with_both):
            return torch.where(learned, logits, ABSENT_LOGIT)
        zero_shot = self.scale_ * x @ text.to(X.dtype).T
        # Shift zero-shot so that, up to a constant of each row, logits are log p of classes without a shot, and
        # log sum p + log share of the others.
        shift = logits[:, learned].logsumexp(dim=1) - zero_shot[:, with_both].logsumexp(dim=1)
        without_shots = torch.where(has_text, zero_shot + shift[:, None], ABSENT_LOGIT)
        return torch.where(learned, logits, without_shots)
