"""Facts and arrays of a part of a saved model, which are checked as they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import ArtifactError, brief

Array = NDArray[Any]
MAX_NUMBER = 1e300  # bound of a number of a model. An integer that is larger can't be converted to a float.


class SavedState:
    """Facts and arrays by name of a part of a saved model; ``what`` names the part in errors."""

    def __init__(self, what: str, facts: Any, arrays: Mapping[str, Array]) -> None:
        self.what, self.arrays = what, arrays
        self.require(isinstance(facts, Mapping), f"it is {brief(facts)}")
        self.facts: Mapping[str, Any] = facts

    def require(self, condition: object, reason: str) -> None:
        """Refuse the model unless a condition holds."""
        if not condition:
            raise ArtifactError(f"the model's {self.what} is damaged: {reason}. Fit and save it again")

    def fact(self, name: str, kind: type, is_valid: Callable[[Any], bool] = lambda value: True) -> Any:
        """A fact of a kind; a float is finite, and may be saved as an integer."""
        self.require(name in self.facts, f"it has no {name!r}")
        value = self.facts[name]
        is_kind = isinstance(value, (int, float) if kind is float else kind)
        is_kind = is_kind and isinstance(value, bool) is (kind is bool)
        is_kind = is_kind and (kind is not float or abs(value) <= MAX_NUMBER)
        self.require(is_kind and is_valid(value), f"its {name!r} is {brief(value)}")
        return float(value) if kind is float else value

    def array(self, name: str, shape: tuple[int | None, ...], kind: str = "f") -> Array:
        """A finite array of a shape, in which None stands for any length, and of a kind of NumPy's dtypes."""
        self.require(name in self.arrays, f"it has no {name!r}")
        array = np.asarray(self.arrays[name])
        pairs = zip(shape, array.shape, strict=False)
        is_shape = len(array.shape) == len(shape) and all(wanted in (None, length) for wanted, length in pairs)
        self.require(is_shape, f"its {name!r} has the shape {array.shape}, which does not fit {shape}")
        self.require(array.dtype.kind == kind and np.isfinite(array).all(), f"a value of its {name!r} is out of range")
        return array
