"""Where fits are made: on this machine, or on a cluster. A launcher carries tasks; it knows nothing of heads."""

from clipadapter.bench.launchers.base import (
    Job,
    Launcher,
    Outcome,
    create_launcher,
    list_launchers,
    register_launcher,
)

__all__ = ["Launcher", "Job", "Outcome", "create_launcher", "list_launchers", "register_launcher"]
