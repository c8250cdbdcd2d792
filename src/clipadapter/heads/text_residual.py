"""Cosine classifiers that start at class text and move by gradient steps: shared by TaskRes, ZS-LP and CLAP."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipadapter.errors import InputError, brief
from clipadapter.functional import unit
from clipadapter.heads.base import SupportSet
from clipadapter.heads.losses import CROSS_ENTROPY, LabelLoss, class_loss_with_gradient
from clipadapter.heads.training import TrainConfig, gather_views, train

TEXT_NORM = 0.1
"""Length that class text is scaled to, relative to the encoder's logit scale: 10 with CLIP, which is about what its
un-normalised text vectors have, and then a step or penalty means the same change of the logits at every scale."""


def check_text_norm(text_norm: float | str | Sequence[float]) -> None:
    """Refuse lengths of class text that are neither positive numbers nor "auto"."""
    if isinstance(text_norm, str) or text_norm is None:
        if text_norm != "auto":
            raise InputError(f"text_norm must be 'auto', a number or one number per class, but is {brief(text_norm)}")
    elif not (torch.as_tensor(text_norm, dtype=torch.float64) > 0).all():
        raise InputError(f"text_norm must be positive, but is {brief(text_norm)}")


def scale_text(shots: SupportSet, text_norm: float | str | Sequence[float]) -> Tensor:
    """Class text (c, d) with the length that steps and penalties are relative to.

    Args:
        shots: of the fit.
        text_norm: one length, one per class, or "auto" for a tenth of the encoder's logit scale.

    Raises:
        InputError: if there is another number of lengths than of classes.
    """
    assert shots.text is not None
    if isinstance(text_norm, str):
        return shots.text * (TEXT_NORM * shots.scale)
    lengths = torch.as_tensor(text_norm, dtype=shots.text.dtype).flatten()
    if len(lengths) not in (1, shots.n_classes):
        raise InputError(f"text_norm has {len(lengths)} numbers, but there are {shots.n_classes} classes")
    return shots.text * lengths[:, None]


def train_residual(
    shots: SupportSet,
    base: Tensor,
    gain: float,
    config: TrainConfig,
    penalties: Tensor | None = None,
    start: Tensor | None = None,
    label_loss: LabelLoss = CROSS_ENTROPY,
) -> tuple[Tensor, float]:
    """Residuals x of the classifier ``scale * cos(f, base + gain * x)``, by cross-entropy.

    A class without a shot keeps its text: cross-entropy could only push it away from the other classes' pictures.

    Args:
        shots: labelled features.
        base: (c, d) class weights at the start.
        gain: factor before the residual.
        config: how steps are made.
        penalties: (c,) strength of a penalty on the squared length of each class's residual; None for no penalty.
        start: initial residuals (c, d); zeros by default.
        label_loss: of labels.

    Returns:
        Residuals (c, d), and the loss of the last step.
    """
    with_shots = (shots.counts > 0)[:, None].to(base.dtype)
    residual = with_shots * (torch.zeros_like(base) if start is None else start)
    # Classes without shots get no gradient: their residual stays zero, by any optimizer.
    gains = gain * with_shots
    views = unit(shots.views)

    def loss(batch: Tensor, view: Tensor) -> tuple[Tensor, list[Tensor]]:
        weight = torch.add(base, residual, alpha=gain)
        x = gather_views(views, batch, view)
        value, gradient = class_loss_with_gradient(x, weight, shots.labels[batch], shots.scale, label_loss)
        gradient.mul_(gains)
        if penalties is not None:
            value = value + residual.square().sum(dim=1) @ penalties
            gradient.addcmul_(residual, penalties[:, None], value=2)
        return value, [gradient]

    n, n_views = shots.views.shape[:2]
    last_loss = train([residual], loss, n, n_views, config, row_cost=base.numel())
    return residual, last_loss


def text_confidence(shots: SupportSet) -> Tensor:
    """(c,) mean zero-shot probability of the right class over all views of a class's shots; 0 without any."""
    assert shots.text is not None
    total = torch.zeros(shots.n_classes, dtype=shots.text.dtype)
    for view in shots.views.unbind(dim=1):  # one at a time: (n, c) is large for many classes
        probability = (shots.scale * unit(view) @ shots.text.T).softmax(dim=1)
        total.index_add_(0, shots.labels, probability.gather(1, shots.labels[:, None])[:, 0])
    return total / (shots.counts * shots.views.shape[1]).clamp_min(1)
