"""Cosine classifiers that start at class text and move by gradient steps: shared by TaskRes, ZS-LP and CLAP."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipadapter.errors import InputError, brief
from clipadapter.heads.base import SupportSet
from clipadapter.utils.functional import unit

TEXT_NORM = 0.1
"""Length that class text is scaled to, relative to the encoder's logit scale: 10 with CLIP, which is about what its
un-normalised text vectors have, and then a step or penalty means the same change of the logits at every scale."""


def check_text_norm(text_norm: float | str | Sequence[float]) -> None:
    """Refuse lengths of class text that are neither positive numbers nor "auto"."""
    lengths = [*text_norm] if isinstance(text_norm, list | tuple) else [text_norm]
    is_auto = isinstance(text_norm, str) and text_norm == "auto"
    if not (is_auto or all(isinstance(each, int | float) and each > 0 for each in lengths)):
        raise InputError(
            "text_norm must be 'auto', a positive number or a list of one for each class, but is " + brief(text_norm)
        )


def scale_text(shots: SupportSet, text_norm: float | str | Sequence[float]) -> Tensor:
    """Class text (c, d) with the length that steps and penalties are relative to; see ``text_norm`` of the heads."""
    text = shots.class_text
    if isinstance(text_norm, str):
        return text * (TEXT_NORM * shots.scale)
    lengths = torch.as_tensor(text_norm, dtype=text.dtype).flatten()
    if len(lengths) not in (1, shots.n_classes):
        raise InputError(f"text_norm has {len(lengths)} numbers, but there are {shots.n_classes} classes")
    return text * lengths[:, None]


def text_confidence(shots: SupportSet) -> Tensor:
    """(c,) mean zero-shot probability of the right class over all views of a class's shots; 0 without any."""
    total = torch.zeros(shots.n_classes, dtype=shots.class_text.dtype)
    for view in shots.views.unbind(dim=1):  # one at a time: (n, c) is large for many classes
        probability = (shots.scale * unit(view) @ shots.class_text.T).softmax(dim=1)
        total.index_add_(0, shots.labels, probability.gather(1, shots.labels[:, None])[:, 0])
    return total / (shots.counts * shots.views.shape[1]).clamp_min(1)
