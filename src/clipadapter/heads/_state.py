"""What an object has learned, its attributes that end in ``_``, as arrays by name and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipadapter.errors import ArtifactError
from clipadapter.heads.support import Array

KNOWN = ("classes_", "feature_names_in_", "n_features_in_")
"""What is learned, but kept beside the arrays."""


def learned_arrays(head: object) -> dict[str, Array]:
    """Arrays by name; what is None is left out."""
    learned = {k: v for k, v in vars(head).items() if k.endswith("_") and k not in KNOWN}
    return {k: v.numpy() if isinstance(v, Tensor) else np.asarray(v) for k, v in learned.items() if v is not None}


def take_over(head: Any, state: Mapping[str, Array]) -> None:
    """Set saved arrays, unlooked at; single numbers as numbers, others as tensors.

    Raises:
        ArtifactError: if one has a name that no head learns.
    """
    for name, value in state.items():
        if not name.endswith("_") or name.startswith("_") or hasattr(type(head), name):
            raise ArtifactError(f"the saved head has an array called {name!r}, which no head learns")
        array = np.array(value)
        setattr(head, name, array.item() if array.ndim == 0 else torch.from_numpy(array))


def check_answers(head: Any) -> None:
    """Ask a head whose arrays were taken over once.

    Raises:
        ArtifactError: if it does not answer finite logits (1, c).
    """
    name, c = type(head).__name__, len(head.classes_)
    try:
        probe = head.logits(np.ones((1, head.n_features_in_), dtype=np.float32))
    except (RuntimeError, AttributeError, TypeError, ValueError, IndexError) as error:
        raise ArtifactError(f"the saved arrays don't fit a {name}: {error}") from error
    if probe.shape != (1, c) or not np.isfinite(probe).all():
        raise ArtifactError(f"the saved arrays of {name} give no finite logits of {c} classes")
