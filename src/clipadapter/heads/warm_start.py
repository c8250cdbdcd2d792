"""Warm starts: when a fit starts from what an earlier fit learned, from which weights, and with how many steps.

Gradient steps that stop before an optimum learn more with each further step. So that many warm starts in a row do not
overfit the shots, each first shrinks the learned weights towards the initial ones ("shrink and perturb", Ash and Adams,
NeurIPS 2020, https://arxiv.org/abs/1910.08475, without the noise): a quarter of the steps, from three quarters of what
was learned, add up to one fit. The shrink factor of a head is a constant in its file. It was chosen on the training
pictures of Caltech-101 under the encoder `lite`, by adding 20 classes one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from clipadapter.heads.base import Head
from clipadapter.heads.support import Array, SupportSet
from clipadapter.heads.training import TrainConfig

MAX_CHANGED_SHARE = 0.1
"""Share of the shots that may have changed since the last fit from scratch; above it a fit starts from scratch."""
STEPS_SHARE = 0.25  # number of steps of a warm start, as a share of those from scratch
IGNORED_PARAMETERS = frozenset({"progress", "checkpoint", "memory"})
"""Parameters that do not change what is learned, so that they may differ between the two fits."""

R = TypeVar("R", bound=TrainConfig)


@dataclass(frozen=True)
class WarmStart:
    """What a fit starts from."""

    head: Any  # the earlier head, fitted with the same parameters
    origin: Tensor  # (c,) position of each class in the earlier head, -1 for a new class
    shrink_factor: float  # weight of the earlier solution; the rest is that of the initial weights

    def shrink(self, name: str, initial: Tensor) -> Tensor:
        """A new tensor between the initial one (0) and the learned one with this name (1), at the shrink factor."""
        return torch.lerp(initial, getattr(self.head, name).to(initial), self.shrink_factor)

    def shrink_rows(self, learned: str | Tensor, initial: Tensor) -> Tensor:
        """As `shrink`, for a tensor (c, ...) with one row per class, or its name; new classes get their initial row."""
        rows = getattr(self.head, learned) if isinstance(learned, str) else learned
        shrunk = torch.lerp(initial, remap_rows(rows, self.origin).to(initial), self.shrink_factor)
        is_known = (self.origin >= 0).view(-1, *[1] * (initial.ndim - 1)).to(initial.device)
        return torch.where(is_known, shrunk, initial)

    def shorten(self, config: R, n: int, rate: float = 1.0) -> R:
        """A training configuration with fewer passes over n rows, and the learning rate times ``rate``."""
        epochs, warmup_steps = max(1, round(STEPS_SHARE * config.count_epochs(n))), config.warmup_steps
        return replace(config, epochs=epochs, warmup_steps=round(STEPS_SHARE * warmup_steps), lr=rate * config.lr)


def find_warm_start(head: Head, shots: SupportSet, shrink_factor: float = 1.0, **initial: Tensor) -> WarmStart | None:
    """The start from the head that `Head.fit_from` got, or None if this fit must start from scratch.

    A fit starts from scratch if the earlier head has other parameters or widths, or if more than a tenth of the shots
    changed since the last fit from scratch. Changes of warm starts in a row are added up. ``initial`` has the weights
    of a fit from scratch, by the name of the learned attribute. The head gets the attributes

    - ``seen_``: (c,) shots per class of this fit, as ``counts_`` of incremental heads;
    - ``changed_``: number of shots that changed since the last fit from scratch, only if this is a warm start.
    """
    counts = (shots.counts if shots.targets is None else shots.targets.sum(dim=0)).long()
    previous: Any = head._previous
    state: Any = head
    state.seen_ = counts
    state.__dict__.pop("changed_", None)
    if previous is None or not _is_compatible(head, previous, shots, initial):
        return None
    origin = class_origins(previous.classes_, head.classes_)
    previous_counts = remap_rows(previous.seen_, origin)
    n_removed = previous.seen_.sum() - previous_counts.sum()  # shots of classes that were removed
    n_changed = getattr(previous, "changed_", 0) + int((counts - previous_counts).abs().sum() + n_removed)
    if n_changed > MAX_CHANGED_SHARE * len(shots.views):
        return None
    state.changed_ = n_changed
    return WarmStart(previous, origin, shrink_factor)


def _is_compatible(head: Head, previous: Any, shots: SupportSet, initial: dict[str, Tensor]) -> bool:
    """Whether the earlier head has the same parameters, task and scale, and features and weights of the same widths."""
    own, other = (
        {name: value for name, value in one.get_params(deep=False).items() if name not in IGNORED_PARAMETERS}
        for one in (head, previous)
    )
    learned: dict[str, Any] = {name: getattr(previous, name, None) for name in ("seen_", *initial)}
    return (
        repr(own) == repr(other)
        and all(tensor is not None for tensor in learned.values())
        and all(learned[name].shape[1:] == tensor.shape[1:] for name, tensor in initial.items())
        and len(previous.seen_) == len(previous.classes_)
        and previous.n_features_in_ == head.n_features_in_
        and previous.task_ == head.task_
        and getattr(previous, "scale_", shots.scale) == shots.scale
    )


def remap_rows(rows: Tensor, origin: Tensor) -> Tensor:
    """Rows (k, ...) of classes in another order, from their earlier positions (k,); zeros for new classes (-1)."""
    remapped = rows.new_zeros(len(origin), *rows.shape[1:])
    known = origin >= 0
    remapped[known] = rows[origin[known]]
    return remapped


def class_origins(previous_classes: Array, classes: Array) -> Tensor:
    """(k,) position of each class in ``previous_classes``, -1 for a new class."""
    positions = {str(name): i for i, name in enumerate(previous_classes)}
    return torch.tensor([positions.get(str(name), -1) for name in classes])
