"""Where fits are made: on this machine, or on a cluster. A launcher carries tasks; it knows nothing of heads."""

from clipadapter.bench.launchers.base import (
    Job,
    JobResult,
    Launcher,
    create_launcher,
    list_launchers,
    register_launcher,
)

__all__ = ["Launcher", "Job", "JobResult", "create_launcher", "list_launchers", "register_launcher"]
