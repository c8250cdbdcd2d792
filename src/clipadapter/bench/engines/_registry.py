"""The registry of engines."""

from __future__ import annotations

from clipadapter.bench.engines._base import Engine
from clipadapter.registry import Registry

ENGINES: Registry[Engine] = Registry("engine", "clipadapter.bench.engines")
register_engine = ENGINES.register
list_engines = ENGINES.list
create_engine = ENGINES.create
