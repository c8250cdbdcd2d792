"""Backends run image towers, each in several precisions. One file per backend; see ``list_backends()``.

Importing this package does not load torch: a converted tower runs without it.
"""

from clipadapter.backends.base import PRECISIONS, Backend, Int8Calibration, Runner, Tower
from clipadapter.backends.parity import MIN_AGREEMENT, MIN_COSINES, Parity, measure_parity
from clipadapter.backends.registry import backend_info, create_backend, list_backends, register_backend
from clipadapter.backends.tower_cache import build_in_cache, cache_root, read_cache_facts

__all__ = [
    "MIN_AGREEMENT",
    "MIN_COSINES",
    "PRECISIONS",
    "Backend",
    "Int8Calibration",
    "Parity",
    "Runner",
    "Tower",
    "backend_info",
    "build_in_cache",
    "cache_root",
    "create_backend",
    "list_backends",
    "measure_parity",
    "read_cache_facts",
    "register_backend",
]
