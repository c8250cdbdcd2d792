"""A trained change of a linear map of image features, with a penalty on its size: shared by RLA and ProLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from clipadapter.heads.base import NOT_NEGATIVE, OneOf, SupportSet
from clipadapter.heads.losses import trained_cosines
from clipadapter.heads.trained_head import TrainedHead
from clipadapter.heads.training import TrainConfig
from clipadapter.utils.functional import unit

ADAM_EPS = 1e-4  # epsilon of Adam in the released code
CLIP_SCALE = 100.0  # logit scale of the encoders that the paper's penalty was made for


@dataclass(eq=False, repr=False, kw_only=True)
class LinearAdapterHead(TrainedHead):
    """Base of the heads that train a change of a linear map: cross-entropy plus ``penalty`` times its squared norm.

    Args:
        penalty: strength of the pull to where the map was; "1/n" for one over the number of shots per class, as in the
            paper; "auto" for the same times (logit scale / 100) squared, which with CLIP is one.
        lr: highest learning rate of Adam, whose epsilon is 1e-4 as in the released code.
        schedule: "cosine", "cosine-epoch" (the rate changes once an epoch) or "constant".
        steps: optimizer steps; the last pass over the shots is completed.
        batch_size: shots per step; None for all.
        cycle_views: use view 1, 2 ... and 0 in turn for all pictures of a step, in place of a drawn one of each.
    """

    supports_warm_start = True
    # The penalty holds the map near its optimum, and Adam's first steps are as long as the rate allows.
    warm_start_rate = 0.3

    penalty: Annotated[float | str, NOT_NEGATIVE, OneOf("auto", "1/n")] = "auto"
    schedule: str = "cosine"
    steps: int = 300
    batch_size: int | None = 256  # type: ignore[assignment] # other heads have no use for None
    cycle_views: bool = False

    def _train_config(self, labels: Tensor) -> TrainConfig:
        batch_size = len(labels) if self.batch_size is None else self.batch_size
        return TrainConfig.from_estimator(self, optimizer="adam", batch_size=batch_size, min_epochs=1, eps=ADAM_EPS)

    def _fit(self, shots: SupportSet) -> None:
        self.weight_, self.scale_ = shots.class_text, shots.scale
        if isinstance(self.penalty, str):
            # "auto" is a penalty on the change of the logits, which means the same at any scale.
            ratio = shots.scale / CLIP_SCALE if self.penalty == "auto" else 1.0
            self.penalty_ = float((shots.counts > 0).sum() / shots.counts.sum()) * ratio**2
        else:
            self.penalty_ = float(self.penalty)
        # The change is trained, not the map: the penalty is its square, and it stays exact where it is small.
        width, d = shots.views.shape[2], shots.class_text.shape[1]
        shift = torch.zeros(d, width - d or d, dtype=self.weight_.dtype)  # without unprojected columns W is (d, d)
        self._learn(
            shots,
            unit(shots.views),
            {"shift_": shift},
            lambda x: shots.scale * trained_cosines(_shift(x, shift), self.weight_),
            lambda loss: loss + self.penalty_ * shift.square().sum(),
        )

    def _for_text(self, text: Tensor, scale: float) -> None:
        self.weight_, self.scale_ = text, scale

    def _logits(self, X: Tensor) -> Tensor:
        return self.scale_ * unit(_shift(unit(X), self.shift_.to(X.dtype))) @ self.weight_.T.to(X.dtype)


def _shift(x: Tensor, shift: Tensor) -> Tensor:
    """Features (..., d) after their linear map W was changed by ``shift`` (d, p).

    A feature is ``f = W b``, and ``(W + S) b = f + S b``: neither W itself nor a constant bias is needed. b stands
    behind f in x (..., d + p); without it b is f, and W the identity.
    """
    d = len(shift)
    unprojected = x[..., d:] if x.shape[-1] > d else x
    return x[..., :d] + unprojected @ shift.T
