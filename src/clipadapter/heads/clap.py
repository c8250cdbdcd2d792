"""CLAP: a cosine classifier that starts at the class text and is pulled back to it, more where zero-shot is right.

Paper: Silva-Rodriguez et al., CVPR 2024, https://arxiv.org/abs/2312.12730.
Differs from the paper, whose penalty acts on un-normalised text vectors, so that its strength depends on their length:
ours arrive unit-length and are scaled to a length by ``text_norm``. The default, a tenth of the encoder's logit scale,
is about the paper's with CLIP, and makes the penalty one on the change of the logits at any scale:
``lambda_k * (scale * ||v - u|| / 10) ** 2`` for unit text u. A class without a shot keeps its text;
the paper's formula has 0 / 0 there.
Differs from the released code, which trains on 20 augmented views as rows: here each step draws a view of each picture.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from clipadapter.heads.base import NOT_NEGATIVE, OneOf, SupportSet, register_head
from clipadapter.heads.zs_lp import ZsLp
from clipadapter.utils.functional import unit


@register_head("clap", version=2, paper="https://arxiv.org/abs/2312.12730")
class Clap(ZsLp):
    """Linear probe that starts at zero-shot and pays for leaving it, class by class.

    The loss is cross-entropy plus the mean over classes of ``lambda_k * ||w_k - t_k||^2``, lambda_k being the mean
    probability that zero-shot gives to class k on its shots.

    Args:
        strength: factor before the penalty; 0 is ZS-LP.
        multipliers: lambda_k as "class" (the paper's), "relative" (divided by their mean) or "constant" (their mean).

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> X = [[1.0, 0.9, 0.5], [1.0, 1.1, 0.0]]
    >>> Clap().fit(X, ["dog", "cat"], text=text).predict(X)
    array(['dog', 'cat'], dtype='<U3')

    Fidelity: verified: `Clap.official` gives the weights, losses and logits of the authors' code. The default differs
    in the length of class text, draws one view of each picture per step and adjusts logits for unequal shots.
    """

    temperature_prior = (0.6, 0.67, 0.55, 0.6, 0.81)
    warm_start_share = 1.0  # the penalty keeps the weights near the text

    strength: Annotated[float, NOT_NEGATIVE] = 1.0
    multipliers: Annotated[str, OneOf("class", "relative", "constant")] = "class"

    def _multipliers(self, shots: SupportSet) -> Tensor:
        # The mean zero-shot probability of the right class over all views of a class's shots; 0 without any.
        total = torch.zeros(shots.n_classes, dtype=shots.class_text.dtype)
        for view in shots.views.unbind(dim=1):  # one at a time: (n, c) is large for many classes
            probability = (shots.scale * unit(view) @ shots.class_text.T).softmax(dim=1)
            total.index_add_(0, shots.labels, probability.gather(1, shots.labels[:, None])[:, 0])
        confidence = total / (shots.counts * shots.views.shape[1]).clamp_min(1)
        mean = confidence[shots.counts > 0].mean()
        if self.multipliers == "relative":
            confidence = confidence / mean.clamp_min(1e-12)
        elif self.multipliers == "constant":
            confidence = mean.expand_as(confidence)
        self.multipliers_ = confidence.clone()
        return self.strength * self.multipliers_
