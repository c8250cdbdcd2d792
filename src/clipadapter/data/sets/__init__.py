"""Benchmark data sets by name, one file each. Their folders are laid out as CoOp's DATASETS.md says."""

from clipadapter.data.sets.base import BenchmarkSet, RequiredPath, data_root
from clipadapter.data.sets.prepare import PrepareResult, prepare
from clipadapter.data.sets.registry import create_set, find_set, list_sets, register_set, set_info

__all__ = [
    "BenchmarkSet",
    "RequiredPath",
    "PrepareResult",
    "create_set",
    "data_root",
    "find_set",
    "list_sets",
    "prepare",
    "register_set",
    "set_info",
]
