"""Launchers run fits on this machine or on a cluster. They pass texts, and do not depend on heads."""

from clipadapter.bench.launchers.base import (
    Job,
    JobResult,
    Launcher,
    create_launcher,
    list_launchers,
    register_launcher,
)

__all__ = ["Launcher", "Job", "JobResult", "create_launcher", "list_launchers", "register_launcher"]
