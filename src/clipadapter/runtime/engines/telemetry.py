"""ONNX Runtime, OpenVINO and NNCF with their telemetry switched off; see docs/decisions/0014-telemetry.md."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType

from clipadapter.errors import require
from clipadapter.utils.devices import SharedChange

SWITCHES = {"CI": "true", "NNCF_CI": "1", "ORT_DISABLE_TELEMETRY": "1"}
"""Environment variables that switch telemetry off. Other switches would write into the user's home folder."""


def _switch_telemetry_off() -> Callable[[], None]:
    before = {name: os.environ.get(name) for name in SWITCHES}
    os.environ.update(SWITCHES)

    def restore() -> None:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})

    return restore


telemetry_disabled = SharedChange(_switch_telemetry_off).needed
"""In ``with telemetry_disabled():`` nothing is sent, and no file is written into the user's home folder."""


def require_without_telemetry(module: str, extra: str, purpose: str) -> ModuleType:
    """`clipadapter.errors.require` with telemetry off: these packages read the switches while they are imported."""
    with telemetry_disabled():
        return require(module, extra, purpose)
