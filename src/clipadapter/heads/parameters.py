"""Checks of parameters that heads share: each refuses a value by its name, with the values that are accepted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from clipadapter.errors import InputError


def check_common(parameters: Mapping[str, Any]) -> None:
    """Refuse numbers that are not finite, and with a search ("auto") fewer than two folds; else folds may not be used.

    Raises:
        InputError: if there is one.

    >>> check_common({"alpha": float("nan")})
    Traceback (most recent call last):
    clipadapter.errors.InputError: alpha must be a finite number, but is nan
    """
    for name, value in parameters.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name} must be a finite number, but is {value}")
    if "auto" in parameters.values():
        check_folds(parameters.get("folds", 2))


def check_folds(folds: int) -> None:
    """Refuse numbers of folds with which nothing is held out, or all.

    Raises:
        InputError: if there are less than 2.
    """
    if folds < 2:
        raise InputError(f"folds must be 2 or more, but is {folds}")


def check_not_negative(**parameters: float) -> None:
    """Refuse parameters that are negative or not finite, by name."""
    for name, value in parameters.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{name} must be 0 or more and finite, but is {value}")


def check_at_least(smallest: float, **parameters: float | None) -> None:
    """Refuse parameters below the smallest value, by name; None passes."""
    for name, value in parameters.items():
        if value is not None and not value >= smallest:
            raise InputError(f"{name} must be {smallest} or more, but is {value}")


def check_positive(**parameters: float | None) -> None:
    """Refuse parameters that are not above 0, by name; None passes."""
    for name, value in parameters.items():
        if value is not None and not value > 0:
            raise InputError(f"{name} must be positive, but is {value}")
