"""When a fit begins where an earlier one ended, where exactly, and how many steps it then makes.

Gradient steps that stop before an optimum learn more with each further step. So that many such fits in a row do not
learn the shots by heart, each first goes back a part of the way to where a fit from the beginning would start (as in
Ash and Adams, NeurIPS 2020, https://arxiv.org/abs/1910.08475, whose noise is left out): a quarter of the steps, and
three quarters of what was learned, add up to one fit. How much a head keeps is said in its file, and was found on
Caltech-101's training pictures under `lite` by adding 20 classes one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from clipadapter.heads._shots import SupportSet
from clipadapter.heads._warm import carried, origin_of
from clipadapter.heads.training import TrainConfig

if TYPE_CHECKING:
    from clipadapter.heads._base import Head

CHANGED = 0.1
"""Share of the shots that may have changed since the last fit from the beginning."""
STEPS = 0.25
"""Steps of a fit that begins where one ended, as a share of those from the beginning."""
UNSHAPING = frozenset({"progress", "checkpoint", "memory"})
"""Parameters that may differ between the two fits."""

R = TypeVar("R", bound=TrainConfig)


@dataclass(frozen=True)
class Earlier:
    """A fitted head to begin at.

    Args:
        head: fitted, with the same parameters.
        origin: (c,) where each class was in it, -1 for a new one.
        kept: share of what it learned that is kept.
    """

    head: Any
    origin: Tensor
    kept: float

    def whole(self, name: str, initial: Tensor) -> Tensor:
        """A new tensor to begin with, from what was learned under a name and where training starts without it."""
        return torch.lerp(initial, getattr(self.head, name).to(initial), self.kept)

    def rows(self, learned: str | Tensor, initial: Tensor) -> Tensor:
        """The same of a tensor (c, ...) with a row a class, or its name; new classes start as they do without it."""
        found = getattr(self.head, learned) if isinstance(learned, str) else learned
        moved = torch.lerp(initial, carried(found, self.origin).to(initial), self.kept)
        return torch.where((self.origin >= 0).view(-1, *[1] * (initial.ndim - 1)), moved, initial)

    def shorter(self, recipe: R, n: int, rate: float = 1.0) -> R:
        """A recipe with fewer passes over n rows, at a share of the rate."""
        return replace(recipe, epochs=max(1, round(STEPS * recipe.count_epochs(n))), lr=rate * recipe.lr)


def earlier(head: Head, shots: SupportSet, kept: float = 1.0, **starts: Tensor) -> Earlier | None:
    """The head to begin at, if `fit_from` gave one from which little has changed; and notes what this fit sees.

    How much has changed is added up over fits in a row: when it is more than a tenth of the shots, or when the earlier
    head had other parameters or widths, the fit is one from the beginning.

    Args:
        head: that is being fitted.
        shots: all of them.
        kept: share of what the earlier head learned that is kept.
        starts: where a fit from the beginning starts, by the name of what is learned.
    """
    seen = (shots.counts if shots.targets is None else shots.targets.sum(dim=0)).long()
    before: Any = head._before
    noted: Any = head
    noted.seen_ = seen
    noted.__dict__.pop("changed_", None)
    if before is None or not _alike(head, before, shots, starts):
        return None
    origin = origin_of(before.classes_, head.classes_)
    stayed = carried(before.seen_, origin)
    gone = before.seen_.sum() - stayed.sum()
    changed = getattr(before, "changed_", 0) + int((seen - stayed).abs().sum() + gone)
    if changed > CHANGED * len(shots.views):
        return None
    noted.changed_ = changed
    return Earlier(before, origin, kept)


def _alike(head: Head, before: Any, shots: SupportSet, starts: dict[str, Tensor]) -> bool:
    """Whether an earlier head was fitted in the same way to features, and tensors, of the same widths."""
    own, other = ({k: v for k, v in h.get_params(deep=False).items() if k not in UNSHAPING} for h in (head, before))
    learned: dict[str, Any] = {name: getattr(before, name, None) for name in ("seen_", *starts)}
    return (
        repr(own) == repr(other)
        and all(tensor is not None for tensor in learned.values())
        and all(learned[name].shape[1:] == start.shape[1:] for name, start in starts.items())
        and len(before.seen_) == len(before.classes_)
        and before.n_features_in_ == head.n_features_in_
        and before.task_ == head.task_
        and getattr(before, "scale_", shots.scale) == shots.scale
    )
