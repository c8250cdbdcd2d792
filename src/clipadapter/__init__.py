"""Adapt CLIP-like vision-language models to your own classes from a few labelled pictures.

The public names are resolved at first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"

_HOME = {
    "TextFeatures": "clipadapter.heads",
    "ClipAdapter": "clipadapter.heads",
    "ClipAdapterError": "clipadapter.errors",
    "FeatureSet": "clipadapter.features",
    "FeatureStore": "clipadapter.features",
    "FewShotClassifier": "clipadapter.classifier",
    "LinearProbe": "clipadapter.heads",
    "Predictor": "clipadapter.runtime",
    "ZeroShot": "clipadapter.heads",
    "create_encoder": "clipadapter.encoders",
    "create_head": "clipadapter.heads",
    "draw_shots": "clipadapter.data",
    "list_encoders": "clipadapter.encoders",
    "list_heads": "clipadapter.heads",
    "load_dataset": "clipadapter.data",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'clipadapter' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        from clipadapter.errors import needs_training

        missing = needs_training(error, name)
        if missing is None:
            raise
        raise missing from error


def __dir__() -> list[str]:
    return __all__
