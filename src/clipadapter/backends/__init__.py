"""Backends: what runs an image tower, and in which precision. One file a backend; see ``list_backends()``.

Nothing here imports torch before a tower is converted, so that a converted tower can answer without it.
"""

from clipadapter.backends._base import PRECISIONS, Backend, Calibration, Runner, Tower
from clipadapter.backends._cache import build as cache_build
from clipadapter.backends._cache import facts as cache_facts
from clipadapter.backends._cache import root as cache_root
from clipadapter.backends._parity import Parity, parity
from clipadapter.backends._registry import backend_info, create_backend, list_backends, register_backend

__all__ = [
    "PRECISIONS",
    "Calibration",
    "Backend",
    "Parity",
    "Runner",
    "Tower",
    "cache_build",
    "cache_facts",
    "cache_root",
    "create_backend",
    "backend_info",
    "list_backends",
    "parity",
    "register_backend",
]
