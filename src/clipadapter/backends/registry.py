"""The registry of backends."""

from __future__ import annotations

from clipadapter.backends.base import Backend
from clipadapter.registry import Registry

BACKENDS: Registry[Backend] = Registry("backend", "clipadapter.backends")
register_backend = BACKENDS.register
list_backends = BACKENDS.list
backend_info = BACKENDS.info
create_backend = BACKENDS.create
