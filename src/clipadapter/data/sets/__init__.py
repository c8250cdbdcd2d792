"""Benchmark data sets by name. One file a set; see ``list_sets()``. Folders are laid out as CoOp's DATASETS.md says."""

from clipadapter.data.sets._base import BenchmarkSet, Need, data_root
from clipadapter.data.sets._prepare import Prepared, prepare
from clipadapter.data.sets._registry import create_set, find_set, list_sets, register_set, set_info

__all__ = [
    "BenchmarkSet",
    "Need",
    "Prepared",
    "create_set",
    "data_root",
    "find_set",
    "list_sets",
    "prepare",
    "register_set",
    "set_info",
]
