"""The registry of backends."""

from __future__ import annotations

from clipadapter.backends.base import Backend
from clipadapter.utils.registry import Registry

BACKENDS: Registry[Backend] = Registry("backend", "clipadapter.backends")
register_backend = BACKENDS.register
backend_info = BACKENDS.info
create_backend = BACKENDS.create


def list_backends() -> list[str]:
    """Names of the backends that run image towers. None is imported, since help texts list them."""
    return [name for name in BACKENDS.list() if BACKENDS.info(name).attributes.get("precisions")]
