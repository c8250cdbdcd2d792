"""A type that marks features of a test split, so that no head is fitted to them by mistake."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class EvaluationFeatures(np.ndarray[Any, Any]):
    """An array that heads predict for, but refuse to fit to. Its slices have this type too."""


def mark_for_evaluation(features: NDArray[Any]) -> EvaluationFeatures:
    """Mark features as those of a test split, without a copy."""
    return np.asarray(features).view(EvaluationFeatures)
