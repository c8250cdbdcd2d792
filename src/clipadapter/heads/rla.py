"""RLA: a linear map on picture features that starts at the identity and is kept near it.

Paper: Fahes et al., https://arxiv.org/abs/2410.05270 (ProLIP), which compares with this regularised linear adapter.
Differs from the paper, whose encoders all have a logit scale of 100: by default the penalty is one on the change of the
logits, so that it means the same at any scale. Where classes have unequal shots, "shots per class" is their mean over
the classes that have any. Steps are 150 for 300, which end as well; they take 256 pictures at most where the released
code takes all, and each draws a view of each picture where that code takes the views in turn. `Rla.official` does as
that code does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from clipadapter.functional import unit
from clipadapter.heads.base import SupportSet
from clipadapter.heads.linear_adapter import apply_shift, penalty_strength, shift_config, shift_loss
from clipadapter.heads.registry import register_head
from clipadapter.heads.training import TrainedHead, train
from clipadapter.heads.warm_start import find_warm_start


@register_head(
    "rla",
    paper="https://arxiv.org/abs/2410.05270",
    fidelity="verified: `Rla.official` gives the matrix, loss and logits of the authors' code. The default has a "
    "penalty relative to the logit scale and a shorter recipe.",
)
@dataclass(eq=False, repr=False, kw_only=True)
class Rla(TrainedHead):
    """Zero-shot on features ``M f``; M is trained by cross-entropy plus ``penalty * ||M - I||_F^2``.

    Args:
        penalty: strength of the pull of M to the identity; "1/n" for one over the number of shots per class, as in the
            paper; "auto" for the same times (logit scale / 100) squared, which with CLIP is one.
        lr: highest learning rate of Adam, whose epsilon is 1e-4 as in the released code.
        schedule: "cosine", "cosine-epoch" (the rate changes once an epoch) or "constant".
        steps: optimizer steps; the last pass over the shots is completed.
        batch_size: shots per step; None for all.
        cycle_views: use view 1, 2 ... and 0 in turn for all pictures of a step, in place of a drawn one of each.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> X = [[1.0, 0.9, 0.5], [0.9, 1.0, 0.0]]
    >>> Rla().fit(X, ["cat", "dog"], text=text).predict(X)
    array(['cat', 'dog'], dtype='<U3')
    """

    needs_text = True
    supports_warm_start = True
    temperature_prior = (0.67, 0.74, 0.67, 0.81, 1.0)

    penalty: float | str = "auto"
    schedule: str = "cosine"
    steps: int = 150
    cycle_views: bool = False

    @classmethod
    def official(cls, **changes: Any) -> Self:
        """The recipe of the authors' released code: 300 full-batch steps through the views in turn.

        Args:
            changes: parameters to set otherwise.
        """
        return cls(**{"penalty": "1/n", "steps": 300, "batch_size": None, "cycle_views": True, **changes})

    def _fit(self, shots: SupportSet) -> None:
        assert shots.text is not None
        self.penalty_ = penalty_strength(self.penalty, shots)
        n, n_views, d = shots.views.shape
        # M - I: the penalty is its square, and it stays exact where M is near the identity.
        shift = torch.zeros(d, d, dtype=shots.text.dtype, requires_grad=True)
        before = find_warm_start(self, shots, shift_=shift)
        if before is not None:
            shift = before.shrink("shift_", shift.detach()).requires_grad_()
        loss = shift_loss(shots, shift, self.penalty_, self.cycle_views)
        config = shift_config(self, n, self.batch_size, before)
        self.loss_ = train([shift], loss, n, n_views, config, row_cost=shift.numel() + shots.text.numel())
        self.shift_, self.weight_, self.scale_ = shift.detach(), shots.text, shots.scale

    def _for_text(self, text: Tensor, scale: float) -> None:
        self.weight_, self.scale_ = text, scale

    def _logits(self, X: Tensor) -> Tensor:
        return self.scale_ * unit(apply_shift(X, self.shift_.to(X.dtype))) @ self.weight_.T.to(X.dtype)
