"""ONNX Runtime, OpenVINO and NNCF tell their makers that they are used, unless the environment says otherwise."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from clipadapter.errors import require

SWITCHES = {"CI": "true", "NNCF_CI": "1", "ORT_DISABLE_TELEMETRY": "1"}
"""Environment variables by which they leave it; they know no other way that leaves the user's home folder alone."""
_LOCK = threading.Lock()
_INSIDE: list[dict[str, str | None]] = []
"""What the environment said before, once for each that is inside `nothing_told`: threads may be there together."""


@contextmanager
def nothing_told() -> Iterator[None]:
    """Import and use them in here: nothing leaves the machine, and no file comes into the user's home folder."""
    with _LOCK:
        _INSIDE.append(_INSIDE[0] if _INSIDE else {name: os.environ.get(name) for name in SWITCHES})
        os.environ.update(SWITCHES)
    try:
        yield
    finally:
        with _LOCK:
            before = _INSIDE.pop()
            if not _INSIDE:  # the last one out
                _restore(before)


def _restore(before: dict[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def require_silent(module: str, extra: str, purpose: str) -> ModuleType:
    """As `require`, for one of them: what it decides while it is imported holds for the process.

    Raises:
        MissingExtraError: if the module is not installed.
    """
    with nothing_told():
        return require(module, extra, purpose)
