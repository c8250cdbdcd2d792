"""ProLIP: the projection at the end of the image tower, trained from where it was and kept near it.

Paper: Fahes et al., https://arxiv.org/abs/2410.05270.
What is learned is the change of the projection: pictures' features from before and after it are all that this takes,
and the bias of CLIP's ResNets stays as it is, as in the released code.
Differs from the paper as `clipadapter.heads.rla` does: by default the penalty is one on the change of the logits, steps
take 256 pictures at most, and each draws a view of each picture; `ProLip.official` does as the released code does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from clipadapter.functional import unit
from clipadapter.heads import SupportSet, register_head
from clipadapter.heads.linear_adapter import apply_shift, penalty_strength, shift_config, shift_loss
from clipadapter.heads.training import TrainedHead, train
from clipadapter.heads.warm_start import find_warm_start


@register_head(
    "prolip",
    paper="https://arxiv.org/abs/2410.05270",
    compare=False,
    fidelity="verified: `ProLip.official` gives the projection, loss and logits of the authors' code. The default "
    "has a penalty relative to the logit scale and a shorter recipe.",
)
@dataclass(eq=False, repr=False, kw_only=True)
class ProLip(TrainedHead):
    """Zero-shot with the image tower's projection W trained by cross-entropy plus ``penalty * ||W - W0||_F^2``.

    The first columns of X, as many as class text has, are the features; the others are what these were projected from,
    as ``unprojected:ENCODER`` gives them. Without others the features are taken for both and W0 for the identity, which
    is RLA with this recipe.

    Args:
        penalty: strength of the pull of W to what it was; "1/n" for one over the number of shots per class, as in the
            paper; "auto" for the same times (logit scale / 100) squared, which with CLIP is one.
        lr: highest learning rate of Adam, whose epsilon is 1e-4 as in the released code; with the penalty of the paper
            1e-5 to 1e-2 did there.
        schedule: "cosine", "cosine-epoch" (the rate changes once an epoch) or "constant".
        steps: optimizer steps; the last pass over the shots is completed.
        batch_size: shots per step; None for all.
        cycle_views: use view 1, 2 ... and 0 in turn for all pictures of a step, in place of a drawn one of each.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0], [0.0, 1.0]])
    >>> X = [[1.0, 0.9, 0.0, 1.0, 2.0], [0.9, 1.0, 2.0, 1.0, 0.0]]
    >>> ProLip().fit(X, ["cat", "dog"], text=text).predict(X)
    array(['cat', 'dog'], dtype='<U3')
    """

    needs_text = True
    supports_warm_start = True
    reads_unprojected = True

    penalty: float | str = "auto"
    schedule: str = "cosine"
    steps: int = 300
    cycle_views: bool = False

    @classmethod
    def official(cls, **changes: Any) -> Self:
        """The recipe of the authors' released code: 300 full-batch steps through the views in turn.

        Args:
            changes: parameters to set otherwise.
        """
        return cls(**{"penalty": "1/n", "batch_size": None, "cycle_views": True, **changes})

    def _fit(self, shots: SupportSet) -> None:
        assert shots.text is not None
        self.penalty_ = penalty_strength(self.penalty, shots)
        n, n_views, width = shots.views.shape
        d = shots.text.shape[1]
        shift = torch.zeros(d, width - d or d, dtype=shots.text.dtype, requires_grad=True)  # W - W0
        before = find_warm_start(self, shots, shift_=shift)
        if before is not None:
            shift = before.shrink("shift_", shift.detach()).requires_grad_()
        loss = shift_loss(shots, shift, self.penalty_, self.cycle_views)
        config = shift_config(self, n, self.batch_size, before)
        self.loss_ = train([shift], loss, n, n_views, config, row_cost=shift.numel() + shots.text.numel())
        self.shift_, self.weight_, self.scale_ = shift.detach(), shots.text, shots.scale

    def _text_width(self) -> int:
        return len(self.shift_)

    def _for_text(self, text: Tensor, scale: float) -> None:
        self.weight_, self.scale_ = text, scale

    def _logits(self, X: Tensor) -> Tensor:
        return self.scale_ * unit(apply_shift(X, self.shift_.to(X.dtype))) @ self.weight_.T.to(X.dtype)
