"""The registry of launchers."""

from __future__ import annotations

from clipadapter.bench.launchers._base import Launcher
from clipadapter.registry import Registry

LAUNCHERS: Registry[Launcher] = Registry("launcher", "clipadapter.bench.launchers")
register_launcher = LAUNCHERS.register
list_launchers = LAUNCHERS.list
create_launcher = LAUNCHERS.create
