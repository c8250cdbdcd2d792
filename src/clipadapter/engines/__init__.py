"""Engines: what runs an image tower, and in which precision. One file an engine; see ``list_engines()``.

Nothing here imports torch before a tower is converted, so that a converted tower can answer without it.
"""

from clipadapter.engines._base import PRECISIONS, Calibration, Engine, Runner, Tower
from clipadapter.engines._cache import build as cache_build
from clipadapter.engines._cache import facts as cache_facts
from clipadapter.engines._cache import root as cache_root
from clipadapter.engines._parity import Parity, parity
from clipadapter.engines._registry import create_engine, engine_info, list_engines, register_engine

__all__ = [
    "PRECISIONS",
    "Calibration",
    "Engine",
    "Parity",
    "Runner",
    "Tower",
    "cache_build",
    "cache_facts",
    "cache_root",
    "create_engine",
    "engine_info",
    "list_engines",
    "parity",
    "register_engine",
]
