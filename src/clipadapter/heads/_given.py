"""What is given to a head's `fit`, checked against what the head takes, as `SupportSet`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from clipadapter.errors import InputError
from clipadapter.functional import unit
from clipadapter.heads._shots import SupportSet
from clipadapter.heads.support import (
    Array,
    as_labels,
    as_matrix,
    as_targets,
    as_views,
    class_positions,
    has_several,
    positions_among,
)
from clipadapter.heads.text import TextFeatures

if TYPE_CHECKING:
    from clipadapter.heads.base import Head


def checked_shots(
    head: Head,
    X: ArrayLike,
    y: ArrayLike,
    text: TextFeatures | None,
    unlabelled: ArrayLike | None = None,
    classes: Array | None = None,
) -> tuple[SupportSet, Array]:
    """What came into `fit`, checked; and the classes in order.

    Class text comes out in the order of the classes, so that all that is learned is in that order.

    Args:
        head: that is fitted.
        X: as for `Head.fit`.
        y: as for `Head.fit`.
        text: as for `Head.fit`.
        unlabelled: as for `Head.fit`.
        classes: their order, where that is settled; all classes of the text, if there is some.

    Raises:
        InputError: if shapes, widths or labels don't go together, or the head needs more, or takes less.
    """
    views = as_views(X)
    tensor = torch.from_numpy(views)
    targets: Tensor | None = None
    if has_several(y):
        _check_several(head)
        classes, ones = as_targets(y, len(views), text)
        targets, labels = torch.from_numpy(ones).to(tensor.dtype), torch.full((len(views),), -1)
        _check_text(head, text, views.shape[2])
    else:
        names = as_labels(y, len(views))
        _check_text(head, text, views.shape[2])
        if classes is None:
            classes, positions = class_positions(names, text)
        else:
            positions = positions_among(names, classes, "are no class" if text is None else "have no class text")
        text = None if text is None else text.arranged(classes)
        labels = torch.from_numpy(positions)
    shots = SupportSet(
        views=tensor,
        labels=labels,
        n_classes=len(classes),
        text=None if text is None else unit(torch.from_numpy(text.embeddings.copy()).to(tensor.dtype)),
        scale=100.0 if text is None else text.logit_scale,
        unlabelled=_unlabelled(head, unlabelled, tensor),
        names=() if text is None else text.labels,
        tower=None if text is None else text.tower,
        targets=targets,
        bias=None if text is None else text.logit_bias,
    )
    return shots, classes


def _check_several(head: Head) -> None:
    if not head.multilabel:
        from clipadapter.heads.registry import HEADS

        able = [name for name in HEADS.list() if HEADS.info(name).cls.multilabel]
        raise InputError(
            f"{type(head).__name__} knows one label a picture, but y has a row of labels for each; "
            f"these heads take several: {', '.join(able)}"
        )


def _check_text(head: Head, text: TextFeatures | None, width: int) -> None:
    name = type(head).__name__
    if head.needs_text and text is None:
        raise InputError(f"{name} needs class text: call fit(X, y, text=TextFeatures(names, vectors))")
    if head.needs_tower and (text is None or text.tower is None):
        raise InputError(
            f"{name} trains through the text tower: fit it by FewShotClassifier, or call "
            "fit(X, y, text=encode_classes(encoder, prompts))"
        )
    if text is not None and text.absent and (head.needs_text or len(text.absent) == len(text.labels)):
        raise InputError(f"{name} needs class text, but there is none of {', '.join(text.absent)}; 'auto' needs none")
    expected = width if text is None else text.embeddings.shape[1]
    if width != expected and not ((head.two_encoders or head.reads_unprojected) and width > expected):
        wide = " Features of two encoders need a head for two, such as svl-adapter, unprojected ones prolip"
        hint = wide if width > expected else ""
        raise InputError(
            f"features have width {width} but class text has width {expected}: were they made by the same encoder?"
            f"{hint}"
        )


def _unlabelled(head: Head, unlabelled: ArrayLike | None, views: Tensor) -> Tensor | None:
    """Pictures without labels, checked, in the dtype of the shots."""
    name = type(head).__name__
    if not head.transductive:
        if unlabelled is not None:
            raise InputError(f"{name} learns from labelled pictures only: it takes no unlabelled=")
        return None
    if unlabelled is None:
        raise InputError(
            f"{name} is transductive: it needs the pictures to classify when it is fitted; "
            "call fit(X, y, text=..., unlabelled=features)"
        )
    rows = torch.from_numpy(as_matrix(unlabelled)).to(views.dtype)
    if rows.shape[1] != views.shape[2]:
        raise InputError(f"unlabelled features have width {rows.shape[1]}, but the shots have {views.shape[2]}")
    return rows
