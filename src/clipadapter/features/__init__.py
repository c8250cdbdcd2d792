"""Features: computed once and kept. A store, what fills it, and what heads are fitted to.

The public names are resolved at first use: who only reads a store does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipadapter.features.choose import choose_engine, ready_engine
    from clipadapter.features.export import FeatureRow, feature_rows, to_parquet
    from clipadapter.features.extraction import Embedding, Extraction, embed, extract, parse_shard
    from clipadapter.features.feature_set import FeatureSet
    from clipadapter.features.store import FeatureStore, feature_key
    from clipadapter.features.text import encode_classes
    from clipadapter.features.views import PER_EPOCH, PerEpochViews, ViewCost, ViewSpec, augment

_HOME = {
    "Embedding": "extraction",
    "Extraction": "extraction",
    "FeatureRow": "export",
    "FeatureSet": "feature_set",
    "FeatureStore": "store",
    "PER_EPOCH": "views",
    "PerEpochViews": "views",
    "ViewCost": "views",
    "ViewSpec": "views",
    "augment": "views",
    "choose_engine": "choose",
    "embed": "extraction",
    "encode_classes": "text",
    "extract": "extraction",
    "feature_key": "store",
    "feature_rows": "export",
    "parse_shard": "extraction",
    "ready_engine": "choose",
    "to_parquet": "export",
}

__all__ = [
    "Embedding",
    "Extraction",
    "FeatureRow",
    "FeatureSet",
    "FeatureStore",
    "PER_EPOCH",
    "PerEpochViews",
    "ViewCost",
    "ViewSpec",
    "augment",
    "choose_engine",
    "embed",
    "encode_classes",
    "extract",
    "feature_key",
    "feature_rows",
    "parse_shard",
    "ready_engine",
    "to_parquet",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'clipadapter.features' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"clipadapter.features.{_HOME[name]}"), name)
    globals()[name] = found  # a function may have the name of its module, which the import has put here
    return found
