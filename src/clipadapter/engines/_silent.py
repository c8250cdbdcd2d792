"""ONNX Runtime, OpenVINO and NNCF tell their makers that they are used, unless the environment says otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from clipadapter.errors import require

SWITCHES = {"CI": "true", "NNCF_CI": "1", "ORT_DISABLE_TELEMETRY": "1"}
"""Environment variables by which they leave it; they know no other way that leaves the user's home folder alone."""


@contextmanager
def nothing_told() -> Iterator[None]:
    """Import and use them in here: nothing leaves the machine, and no file comes into the user's home folder."""
    before = {name: os.environ.get(name) for name in SWITCHES}
    os.environ.update(SWITCHES)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def require_silent(module: str, extra: str, purpose: str) -> ModuleType:
    """As `require`, for one of them: what it decides while it is imported holds for the process.

    Raises:
        MissingExtraError: if the module is not installed.
    """
    with nothing_told():
        return require(module, extra, purpose)
