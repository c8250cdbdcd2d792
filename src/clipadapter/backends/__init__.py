"""Backends run image towers, each in several precisions, and exported models. One file per backend.

Importing this package loads neither torch nor numpy: a converted tower and an exported model run without torch.
"""

from clipadapter.backends.base import (
    PRECISIONS,
    Backend,
    InferenceGraph,
    Int8Calibration,
    Runner,
    Tower,
    backend_info,
    build_in_cache,
    cache_root,
    create_backend,
    list_backends,
    read_cache_facts,
    register_backend,
)

__all__ = [
    "PRECISIONS",
    "Backend",
    "InferenceGraph",
    "Int8Calibration",
    "Runner",
    "Tower",
    "backend_info",
    "build_in_cache",
    "cache_root",
    "create_backend",
    "list_backends",
    "read_cache_facts",
    "register_backend",
]
