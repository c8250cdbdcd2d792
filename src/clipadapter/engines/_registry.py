"""The registry of engines."""

from __future__ import annotations

from clipadapter.engines._base import Engine
from clipadapter.registry import Registry

ENGINES: Registry[Engine] = Registry("engine", "clipadapter.engines")
register_engine = ENGINES.register
list_engines = ENGINES.list
engine_info = ENGINES.info
create_engine = ENGINES.create
