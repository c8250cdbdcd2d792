"""SS-Text: class text moved towards the shots by the closed-form solution of a linearised loss.

Paper: Silva-Rodriguez et al., MICCAI 2025, https://arxiv.org/abs/2506.17500. With unit text t_k, unit features f and
n shots in all, of which n_k are of class k:

    w_k = t_k + s / (n lambda_k) sum of f over the shots of class k,    logits = s cos(x, w_k)

The plus variant also moves each vector away from the others: w_k - unit(2 w_k - mean of w).
Differs from the released code in the default of lambda; `SsText.official` has the one of that code.
A class without a shot keeps its text vector.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from clipadapter.heads.base import Head, SupportSet, register_head
from clipadapter.heads.parameters import ANY_NUMBER, OneOf
from clipadapter.utils.functional import cosine_logits, unit


@register_head("ss-text", paper="https://arxiv.org/abs/2506.17500")
class SsText(Head):
    """Closed-form class vectors from text and shots, for equal and unequal shots.

    Args:
        anchor: lambda_k, the strength that keeps a class near its text: "class" for 1 / n_k, "shots" for 1 / n,
            "confidence" for the mean zero-shot probability of the class for its shots, or a number.
        repel: True for the plus variant.
        floor: least lambda_k, as in the released code.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> X = [[1.0, 0.9, 0.0], [1.0, 1.1, 1.0]]
    >>> SsText().fit(X, ["cat", "dog"], text=text).predict([[1.0, 0.98, 1.0]])
    array(['dog'], dtype='<U3')

    Fidelity: verified: `SsText.official` gives the logits of the authors' code. The default sets lambda in another way.
    """

    needs_text = True
    temperature_prior = (1.5, 1.2, 1.0, 1.0, 1.0)
    recipes = {"official": {"anchor": "shots"}}
    """What the released code calls SS-Text; with ``anchor="class", repel=True`` what it calls SS-Text+."""

    anchor: Annotated[str | float, OneOf("class", "shots", "confidence"), ANY_NUMBER] = "class"
    repel: bool = False
    floor: float = 1e-3

    def _fit(self, shots: SupportSet) -> None:
        pull = self._pull(shots, shots.counts, len(shots.labels))
        weight = shots.class_text + pull[:, None] * sum_by_class(unit(shots.X), shots.labels, shots.n_classes)
        self.weight_ = weight - unit(2 * weight - weight.mean(dim=0)) if self.repel else weight
        self.scale_ = shots.scale

    def _logits(self, X: Tensor) -> Tensor:
        return self.scale_ * unit(X) @ unit(self.weight_.to(X.dtype)).T

    def _pull(self, shots: SupportSet, counts: Tensor, n: int) -> Tensor:
        """Factors s / (n lambda_k) of the sums of n shots, of which each class has a count; 0 for a count of 0."""
        if self.anchor == "class":
            lam = 1 / counts.clamp_min(1)
        elif self.anchor == "confidence":
            probabilities = cosine_logits(shots.X, shots.class_text, shots.scale).softmax(dim=1)
            own = probabilities.gather(1, shots.labels[:, None])
            lam = sum_by_class(own, shots.labels, shots.n_classes)[:, 0] / counts.clamp_min(1)
        else:
            lam = torch.full_like(counts, 1 / n if isinstance(self.anchor, str) else self.anchor)
        return torch.where(counts > 0, shots.scale / (n * lam.clamp_min(self.floor)), 0.0)


def sum_by_class(rows: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Sums (c, d) of the rows (n, d) of each class."""
    return rows.new_zeros(n_classes, rows.shape[1]).index_add_(0, labels, rows)
