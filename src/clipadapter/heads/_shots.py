"""What a head learns from: labelled features as checked tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from clipadapter.functional import unit
from clipadapter.towers import TextTower


@dataclass(frozen=True)
class SupportSet:
    """The labelled features a head is fitted to, as tensors, checked.

    Args:
        views: (n, v, d) raw features; view 0 is the plain picture, the others are augmented.
        labels: (n,) class positions, int64; -1 throughout where a picture has several.
        n_classes: c, classes without a shot included.
        text: (c, d) unit class text, or None.
        scale: the encoder's ``exp(logit_scale)``; 100 if no text tells.
        unlabelled: (u, d) raw features of pictures without labels, for transductive heads; else None.
        names: (c) class names, if there is class text.
        tower: opens the text tower that made the class text, for methods that train through it; else None.
        targets: (n, c) ones and zeros in the dtype of the features, where a picture has several labels or none; else
            None.
        bias: what the encoder was trained to add to its logits (SigLIP), or None.
    """

    views: Tensor
    labels: Tensor
    n_classes: int
    text: Tensor | None
    scale: float
    unlabelled: Tensor | None = None
    names: tuple[str, ...] = ()
    tower: Callable[[], TextTower] | None = None
    targets: Tensor | None = None
    bias: float | None = None

    @property
    def X(self) -> Tensor:
        """(n, d) raw features of the plain pictures."""
        return self.views[:, 0]

    @cached_property
    def likeness(self) -> Tensor:
        """(n, n) cosines of the mean of each shot's views (row) and each plain picture (column).

        Kept, since a search asks for it once a candidate; not to be changed, nor for thousands of shots.
        """
        return unit(self.views.mean(dim=1)) @ unit(self.X).T

    @property
    def onehot(self) -> Tensor:
        """(n, c) one-hot labels in the dtype of the features."""
        return torch.nn.functional.one_hot(self.labels, self.n_classes).to(self.views.dtype)

    @property
    def counts(self) -> Tensor:
        """(c,) shots of each class in the dtype of the features."""
        return torch.bincount(self.labels, minlength=self.n_classes).to(self.views.dtype)

    def take(self, rows: Tensor) -> SupportSet:
        """Some of the shots, given by row numbers; classes and text stay."""
        targets = None if self.targets is None else self.targets[rows]
        return replace(self, views=self.views[rows], labels=self.labels[rows], targets=targets)
