"""Import ONNX Runtime, OpenVINO and NNCF with their telemetry switched off; see docs/decisions/0014-telemetry.md."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from clipadapter.errors import require

SWITCHES = {"CI": "true", "NNCF_CI": "1", "ORT_DISABLE_TELEMETRY": "1"}
"""Environment variables that switch telemetry off. Other switches would write into the user's home folder."""
_LOCK = threading.Lock()
_SAVED_ENVIRONMENTS: list[dict[str, str | None]] = []
"""The values before, one entry per thread that is inside `telemetry_disabled`."""


@contextmanager
def telemetry_disabled() -> Iterator[None]:
    """Switch telemetry off: nothing is sent, and no file is written into the user's home folder."""
    with _LOCK:
        _SAVED_ENVIRONMENTS.append(
            _SAVED_ENVIRONMENTS[0] if _SAVED_ENVIRONMENTS else {name: os.environ.get(name) for name in SWITCHES}
        )
        os.environ.update(SWITCHES)
    try:
        yield
    finally:
        with _LOCK:
            before = _SAVED_ENVIRONMENTS.pop()
            if not _SAVED_ENVIRONMENTS:  # no other thread is inside
                for name, value in before.items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value


def require_without_telemetry(module: str, extra: str, purpose: str) -> ModuleType:
    """`clipadapter.errors.require` with telemetry off: these packages read the switches while they are imported."""
    with telemetry_disabled():
        return require(module, extra, purpose)
