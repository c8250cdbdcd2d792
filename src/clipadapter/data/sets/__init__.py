"""Benchmark data sets by name, one file each. Their folders are laid out as CoOp's DATASETS.md says."""

from clipadapter.data.sets.layouts import BenchmarkSet, RequiredPath, data_root, find_set, get_set, list_sets
from clipadapter.data.sets.prepare import PrepareResult, prepare

__all__ = ["BenchmarkSet", "RequiredPath", "PrepareResult", "data_root", "find_set", "get_set", "list_sets", "prepare"]
