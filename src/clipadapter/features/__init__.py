"""Features: computed once and kept. A store, what fills it, and what heads are fitted to."""

from clipadapter.features.choose import choose_engine, ready_engine
from clipadapter.features.export import FeatureRow, feature_rows, to_parquet
from clipadapter.features.extract import Embedding, Extraction, embed, extract, parse_shard
from clipadapter.features.feature_set import FeatureSet
from clipadapter.features.store import FeatureStore, feature_key
from clipadapter.features.text import encode_classes
from clipadapter.features.views import ViewSpec, augment

__all__ = [
    "Embedding",
    "Extraction",
    "FeatureRow",
    "FeatureSet",
    "FeatureStore",
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
