"""A linear map to picture features that starts where it was and is kept near it: shared by RLA and ProLIP."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clipadapter.errors import InputError
from clipadapter.functional import unit
from clipadapter.heads._base import SupportSet
from clipadapter.heads._cosine_error import cosine_error
from clipadapter.heads.training import Recipe, drawn

RATE = 0.3
"""Share of the learning rate for a map that begins where an earlier one ended: the penalty holds it near its optimum,
and Adam's first steps are as long as the rate allows."""
CLIP_SCALE = 100.0
"""Logit scale of the encoders that the paper's penalty was made for."""


def moved(X: Tensor, shift: Tensor) -> Tensor:
    """What features are after their map was changed by ``shift``, but for their length.

    A feature is ``f = W b``, and ``(W + S) b = f + S b``: so W itself is not asked for, nor a bias that stays.

    Args:
        X: (..., d) raw features f, or (..., d + p) with b behind each; without that b is f, and W the identity.
        shift: (d, p) or (d, d), S.

    Returns:
        (..., d), each divided by the length of its row of X.

    >>> moved(torch.tensor([[3.0, 4.0]]), torch.eye(2))
    tensor([[1.2000, 1.6000]])
    """
    return _moved(unit(X), shift)


def _moved(x: Tensor, shift: Tensor) -> Tensor:
    d = len(shift)
    before = x[..., d:] if x.shape[-1] > d else x
    return x[..., :d] + before @ shift.T


def shift_loss(
    shots: SupportSet, shift: Tensor, penalty: float, cycle_views: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy of the moved features' logits plus ``penalty * ||shift||_F^2``, for `minimise`.

    Args:
        shots: labelled features, as `moved` takes them.
        shift: (d, p) or (d, d).
        penalty: strength of the pull to where the map was.
        cycle_views: take view 1, 2 ... and 0 in turn, one for all rows of a step, in place of those that are drawn.
    """
    assert shots.text is not None
    text, n_views, turn = shots.text, shots.views.shape[1], 0
    views = unit(shots.views)

    def loss(batch: Tensor, view: Tensor) -> Tensor:
        nonlocal turn
        turn = (turn + 1) % n_views
        x = drawn(views, batch, torch.full_like(batch, turn) if cycle_views else view)
        # The bound is for a picture of zeros, at whose length unit() has no gradient.
        error = cosine_error(_moved(x, shift), text, shots.labels[batch], shots.scale, shortest=1e-6)
        return error + _Pull.apply(shift, penalty)

    return loss


class _Pull(torch.autograd.Function):
    """``penalty * ||shift||_F^2``, in two passes over (d, p) a step where automatic differentiation takes five."""

    @staticmethod
    def forward(ctx: Any, shift: Tensor, penalty: float) -> Tensor:
        ctx.save_for_backward(shift)
        ctx.penalty = penalty
        flat = shift.flatten()
        return penalty * flat.dot(flat)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (shift,) = ctx.saved_tensors
        return shift * (2 * ctx.penalty * grads[0]), None


def penalty_strength(penalty: float | str, shots: SupportSet) -> float:
    """What the penalty is multiplied by.

    Args:
        penalty: a number; "1/n" for one over the mean number of shots of the classes that have any; "auto" for the same
            times (logit scale / 100) squared: one on the change of the logits, which means the same at any scale.
        shots: what a head is fitted to.

    Raises:
        InputError: if it is none of these.
    """
    if penalty in ("auto", "1/n"):
        reciprocal = float((shots.counts > 0).sum() / shots.counts.sum())
        return reciprocal * (shots.scale / CLIP_SCALE) ** 2 if penalty == "auto" else reciprocal
    if isinstance(penalty, str) or not penalty >= 0:
        raise InputError(f"penalty must be 'auto', '1/n' or a number from 0, but is {penalty!r}")
    return float(penalty)


def shift_recipe(
    n: int, lr: float, schedule: str, steps: int, batch_size: int | None, seed: int, progress: bool
) -> Recipe:
    """Adam with the released code's epsilon of 1e-4, for as many passes over n shots as make ``steps``.

    Args:
        n: shots.
        lr: see `Recipe`, as the others.
        schedule: likewise.
        steps: the last pass over the shots is completed.
        batch_size: shots a step; None for all.
        seed: likewise.
        progress: likewise.
    """
    rows = n if batch_size is None else batch_size
    return Recipe(
        optimizer="adam",
        lr=lr,
        momentum=0.0,
        weight_decay=0.0,
        schedule=schedule,
        warmup_epochs=0,
        epochs=math.ceil(steps / (n // min(rows, n))) if rows > 0 else 1,
        steps=steps,
        batch_size=rows,
        seed=seed,
        progress=progress,
        eps=1e-4,
    )
