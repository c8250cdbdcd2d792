"""Features: computed once and kept. A store, what fills it, and what heads are fitted to.

The public names are resolved at first use: who only reads a store does not wait for torch.
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

_HOME = {
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
    if name not in _HOME:
        raise AttributeError(f"module 'clipadapter.features' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"clipadapter.features.{_HOME[name]}"), name)
    globals()[name] = found  # a function may have the name of its module, which the import has put here
    return found
