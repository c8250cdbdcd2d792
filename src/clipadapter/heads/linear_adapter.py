"""A trained change of a linear map of image features, with a penalty on its size: shared by RLA and ProLIP."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clipadapter.errors import InputError, brief
from clipadapter.functional import unit
from clipadapter.heads.base import SupportSet
from clipadapter.heads.label_loss import LabelLossHead
from clipadapter.heads.losses import CROSS_ENTROPY, LabelLoss, cosine_loss_with_gradient
from clipadapter.heads.training import LossFunction, TrainConfig, TrainedHead, gather_views, train
from clipadapter.heads.warm_start import WarmStart, find_warm_start

WARM_START_LR_SHARE = 0.3
"""Share of the learning rate for a warm start: the penalty holds the map near its optimum, and Adam's first steps are
as long as the rate allows."""
ADAM_EPS = 1e-4
"""Epsilon of Adam in the released code."""
CLIP_SCALE = 100.0
"""Logit scale of the encoders that the paper's penalty was made for."""


@dataclass(eq=False, repr=False, kw_only=True)
class LinearAdapterHead(LabelLossHead, TrainedHead):
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

    needs_text = True
    supports_warm_start = True

    penalty: float | str = "auto"
    schedule: str = "cosine"
    steps: int = 300
    batch_size: int | None = 256  # type: ignore[assignment] # other heads have no use for None
    cycle_views: bool = False

    def check_parameters(self) -> None:
        """See `Head.check_parameters`."""
        super().check_parameters()
        check_penalty(self.penalty)

    def _shift_shape(self, shots: SupportSet) -> tuple[int, int]:
        """Rows and columns of the matrix that is trained."""
        d = shots.views.shape[2]
        return d, d

    def _fit(self, shots: SupportSet) -> None:
        assert shots.text is not None
        self.penalty_ = penalty_strength(self.penalty, shots)
        n, n_views = shots.views.shape[:2]
        # The change is trained, not the map: the penalty is its square, and it stays exact where it is small.
        shift = torch.zeros(self._shift_shape(shots), dtype=shots.text.dtype)
        warm_start = find_warm_start(self, shots, shift_=shift)
        if warm_start is not None:
            shift = warm_start.shrink("shift_", shift)
        loss = shift_loss(shots, shift, self.penalty_, self.cycle_views, self._label_loss(shots))
        config = self._train_config(n, warm_start)
        self.loss_ = train([shift], loss, n, n_views, config, row_cost=shift.numel() + shots.text.numel())
        self.shift_, self.weight_, self.scale_ = shift, shots.text, shots.scale

    def _train_config(self, n: int, warm_start: WarmStart | None) -> TrainConfig:
        """Adam with the released code's epsilon, for as many passes over n shots as make ``steps``."""
        rows = n if self.batch_size is None else self.batch_size
        config = TrainConfig.from_estimator(self, optimizer="adam", batch_size=rows, min_epochs=1, eps=ADAM_EPS)
        return config if warm_start is None else warm_start.shorten(config, n, WARM_START_LR_SHARE)

    def _for_text(self, text: Tensor, scale: float) -> None:
        self.weight_, self.scale_ = text, scale

    def _logits(self, X: Tensor) -> Tensor:
        return self.scale_ * unit(apply_shift(X, self.shift_.to(X.dtype))) @ self.weight_.T.to(X.dtype)


def apply_shift(X: Tensor, shift: Tensor) -> Tensor:
    """Features after their linear map was changed by ``shift``, up to their length.

    A feature is ``f = W b``, and ``(W + S) b = f + S b``: neither W itself nor a constant bias is needed.

    Args:
        X: (..., d) raw features f, or (..., d + p) with b behind each; without that b is f, and W the identity.
        shift: (d, p) or (d, d), S.

    Returns:
        (..., d), each divided by the length of its row of X.

    >>> apply_shift(torch.tensor([[3.0, 4.0]]), torch.eye(2))
    tensor([[1.2000, 1.6000]])
    """
    return _shift(unit(X), shift)


def _shift(x: Tensor, shift: Tensor) -> Tensor:
    return x[..., : len(shift)] + _unprojected(x, shift) @ shift.T


def _unprojected(x: Tensor, shift: Tensor) -> Tensor:
    """What the map takes: the features before the projection, or x itself where there are none behind it."""
    d = len(shift)
    return x[..., d:] if x.shape[-1] > d else x


def shift_loss(
    shots: SupportSet, shift: Tensor, penalty: float, cycle_views: bool, label_loss: LabelLoss = CROSS_ENTROPY
) -> LossFunction:
    """Cross-entropy of the shifted features plus ``penalty * ||shift||_F^2`` and its gradient, for `train`.

    Args:
        shots: labelled features, as `apply_shift` takes them.
        shift: (d, p) or (d, d).
        penalty: strength of the pull to where the map was.
        cycle_views: take view 1, 2 ... and 0 in turn, one for all rows of a step, in place of those that are drawn.
        label_loss: of labels.
    """
    assert shots.text is not None
    text, n_views, turn = shots.text, shots.views.shape[1], 0
    views = unit(shots.views)

    def loss(batch: Tensor, view: Tensor) -> tuple[Tensor, list[Tensor]]:
        nonlocal turn
        turn = (turn + 1) % n_views
        x = gather_views(views, batch, torch.full_like(batch, turn) if cycle_views else view)
        # The bound is for a picture of zeros, at whose length unit() has no gradient.
        labels = shots.labels[batch]
        error, gradient = cosine_loss_with_gradient(_shift(x, shift), text, labels, shots.scale, 1e-6, label_loss)
        flat = shift.flatten()
        shift_gradient = torch.addmm(shift, gradient.T, _unprojected(x, shift), beta=2 * penalty)
        return error + penalty * flat.dot(flat), [shift_gradient]

    return loss


def check_penalty(penalty: float | str) -> None:
    """Refuse a penalty that is neither "auto", "1/n" nor a number from 0."""
    if penalty not in ("auto", "1/n") and (isinstance(penalty, str) or not penalty >= 0):
        raise InputError(f"penalty must be 'auto', '1/n' or a number from 0, but is {brief(penalty)}")


def penalty_strength(penalty: float | str, shots: SupportSet) -> float:
    """What the penalty is multiplied by.

    Args:
        penalty: a number; "1/n" for one over the mean number of shots of the classes that have any; "auto" for the same
            times (logit scale / 100) squared: one on the change of the logits, which means the same at any scale.
        shots: what a head is fitted to.
    """
    if penalty in ("auto", "1/n"):
        reciprocal = float((shots.counts > 0).sum() / shots.counts.sum())
        return reciprocal * (shots.scale / CLIP_SCALE) ** 2 if penalty == "auto" else reciprocal
    return float(penalty)
