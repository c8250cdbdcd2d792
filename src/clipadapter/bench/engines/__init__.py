"""Where fits are made: on this machine, or on a cluster. An engine carries tasks; it knows nothing of heads."""

from clipadapter.bench.engines._base import Engine, Job, Outcome
from clipadapter.bench.engines._registry import create_engine, list_engines, register_engine

__all__ = ["Engine", "Job", "Outcome", "create_engine", "list_engines", "register_engine"]
