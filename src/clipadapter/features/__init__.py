"""Features: the store, extraction into it, and the feature sets that heads are fitted to.

Public names are imported at first use: to read a store does not need torch, which takes seconds to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipadapter.features.autotune import choose_backend, restore_backend
    from clipadapter.features.export import FeatureRow, extract_rows, write_parquet
    from clipadapter.features.extraction import EmbedResult, Extraction, embed, extract, parse_shard
    from clipadapter.features.feature_set import FeatureSet
    from clipadapter.features.store import FeatureStore, feature_key
    from clipadapter.features.text import encode_classes
    from clipadapter.features.views import PER_EPOCH, PerEpochViews, ViewCost, ViewSpec, augment

MODULE_OF = {
    "EmbedResult": "extraction",
    "Extraction": "extraction",
    "FeatureRow": "export",
    "FeatureSet": "feature_set",
    "FeatureStore": "store",
    "PER_EPOCH": "views",
    "PerEpochViews": "views",
    "ViewCost": "views",
    "ViewSpec": "views",
    "augment": "views",
    "choose_backend": "autotune",
    "embed": "extraction",
    "encode_classes": "text",
    "extract": "extraction",
    "feature_key": "store",
    "extract_rows": "export",
    "parse_shard": "extraction",
    "restore_backend": "autotune",
    "write_parquet": "export",
}

__all__ = [
    "EmbedResult",
    "Extraction",
    "FeatureRow",
    "FeatureSet",
    "FeatureStore",
    "PER_EPOCH",
    "PerEpochViews",
    "ViewCost",
    "ViewSpec",
    "augment",
    "choose_backend",
    "embed",
    "encode_classes",
    "extract",
    "feature_key",
    "extract_rows",
    "parse_shard",
    "restore_backend",
    "write_parquet",
]


def __getattr__(name: str) -> Any:
    if name not in MODULE_OF:
        raise AttributeError(f"module 'clipadapter.features' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"clipadapter.features.{MODULE_OF[name]}"), name)
    globals()[name] = value  # without this, a function with the name of its module would be hidden by that module
    return value
