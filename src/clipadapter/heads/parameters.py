"""Bounds of parameters: declared beside the type, checked in one place before a fit.

    mix: Annotated[float, Within(0, 1)] = 0.5
    C: Annotated[float | str, POSITIVE, OneOf("auto")] = "auto"

Several bounds are alternatives. None passes where the type has it.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType, NoneType, SimpleNamespace
from typing import Any, Literal, get_args, get_type_hints

from clipadapter.errors import InputError, brief


@dataclass(frozen=True)
class Within:
    """The numbers between two ends, of which ``closed`` says which are accepted."""

    low: float
    high: float
    closed: Literal["both", "left", "right", "neither"] = "both"

    def accepts(self, value: object) -> bool:
        """Whether the value is one of these numbers."""
        if not isinstance(value, Real):
            return False
        ends = {self.low: ("both", "left"), self.high: ("both", "right")}
        number = float(value)
        return self.closed in ends[number] if number in ends else self.low < number < self.high

    def __str__(self) -> str:
        if math.isinf(self.low):
            return "a number"
        if self.closed == "both":
            return f"{self.low} to {self.high}"
        low = f"{self.low} or more" if self.closed == "left" else f"above {self.low}"
        if math.isinf(self.high):
            return low if self.low or self.closed == "left" else "positive"
        return f"{low} and {'up to' if self.closed == 'right' else 'below'} {self.high}"


@dataclass(frozen=True, init=False)
class OneOf:
    """Some texts."""

    texts: tuple[str, ...]

    def __init__(self, *texts: str) -> None:
        object.__setattr__(self, "texts", texts)

    def accepts(self, value: object) -> bool:
        """Whether the value is one of the texts."""
        return isinstance(value, str) and value in self.texts

    def __str__(self) -> str:
        return f"'{self.texts[0]}'" if len(self.texts) == 1 else f"one of {', '.join(self.texts)}"


def at_least(low: float) -> Within:
    """The finite numbers from this one on."""
    return Within(low, math.inf, closed="left")


NOT_NEGATIVE = at_least(0)
POSITIVE = Within(0, math.inf, closed="neither")
ANY_NUMBER = Within(-math.inf, math.inf, closed="neither")


def check_bounds(cls: Any, parameters: Mapping[str, Any]) -> None:
    """Refuse numbers that are not finite, and values outside the bounds that a class declares."""
    for name, value in parameters.items():
        if getattr(value, "ndim", 0):
            # A fit would take it, but a model could not be saved with it.
            raise InputError(f"{name} must be no array, but is {brief(value)}: give {name}.tolist()")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name} must be a finite number, but is {value}")
    for name, (types, bounds) in declared_bounds(cls).items():
        value = parameters.get(name)
        if name not in parameters or (value is None and NoneType in types):
            continue
        if not any(bound.accepts(value) for bound in bounds):
            raise InputError(f"{name} must be {' or '.join(map(str, bounds))}, but is {brief(value)}")
        if int in types and float not in types and isinstance(value, Real) and float(value) % 1:
            raise InputError(f"{name} must be a whole number, but is {brief(value)}")


@functools.cache
def declared_bounds(cls: Any) -> Mapping[str, tuple[tuple[type, ...], tuple[Any, ...]]]:
    """By parameter, its types and bounds, without those that have none; a class inherits those of its bases."""
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        own = inspect.get_annotations(base)
        # Only these are evaluated: other annotations may have names that are imported for type checkers alone.
        bounded = SimpleNamespace(__annotations__={key: text for key, text in own.items() if "Annotated" in str(text)})
        hints |= get_type_hints(bounded, vars(sys.modules[base.__module__]), include_extras=True)
    parts = {name: get_args(hint) for name, hint in hints.items()}
    return MappingProxyType({name: (get_args(kind) or (kind,), tuple(rest)) for name, (kind, *rest) in parts.items()})
