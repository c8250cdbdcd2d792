"""Assertions that the conformance checks share. They need no pytest, which authors of plug-ins may not have."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from safetensors.numpy import load, save
from torch import Tensor

from clipadapter.encoders import Encoder
from clipadapter.heads import Head, TextFeatures
from clipadapter.heads.estimator import clone


def run_checks(checks: Iterable[Callable[[Encoder], None]], encoder: Encoder) -> None:
    """Run every check."""
    for check in checks:
        try:
            check(encoder)
        except AssertionError as error:
            raise AssertionError(f"{encoder.info.name}, {check.__name__}: {error}") from error


def require(condition: bool, message: str) -> None:
    """Fail with a message unless a condition holds."""
    if not condition:
        raise AssertionError(message)


def require_equal_features(features: Tensor, expected: Tensor, message: str, tolerance: float) -> None:
    """Fail with a message unless each row differs by at most a part ``tolerance`` of its length."""
    distance = (features - expected).norm(dim=1) / expected.norm(dim=1)
    require(bool((distance < tolerance).all()), f"{message}: by {float(distance.max()):.2g} of their length")


def assert_raises(error: type[Exception], message: str, action: Callable[[], object]) -> None:
    """Fail unless an action raises this error with this text in its message."""
    try:
        action()
    except error as raised:
        assert message in str(raised), f"the message should say {message!r}, but is: {raised}"
        return
    raise AssertionError(f"{error.__name__} with {message!r} was not raised")


def save_and_load(head: Head, text: TextFeatures) -> Head:
    """A clone of a head with the head's state, after it was saved as safetensors and loaded."""
    state = load(save({name: np.asarray(value, order="C") for name, value in head.state().items()}))
    return clone(head).load_state(state, head.classes_.tolist(), head.n_features_in_).attach(text)
