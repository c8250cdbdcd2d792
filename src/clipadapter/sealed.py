"""Features of a test part, marked by their type, so that nothing can be fitted to them by mistake."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class SealedArray(np.ndarray[Any, Any]):
    """An array that heads answer for, but refuse to learn from; slices of it are sealed as well."""


def seal(features: NDArray[Any]) -> SealedArray:
    """The same numbers as a test part; no copy.

    >>> type(seal(np.zeros((2, 3)))[:1]).__name__
    'SealedArray'
    """
    return np.asarray(features).view(SealedArray)
