"""Encoders: pictures and texts to features. There is one file per family; see ``list_encoders()``.

Public names are imported at first use: to check the name of an encoder does not need torch, which takes seconds to
import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipadapter.encoders._unprojected import with_unprojected
    from clipadapter.encoders.backend import precision_fingerprint, with_backend
    from clipadapter.encoders.base import Encoder, EncoderInfo, EncoderListing
    from clipadapter.encoders.layers import AttentionLayer, attention_layers
    from clipadapter.encoders.registry import (
        create_encoder,
        encoder_info,
        list_encoders,
        open_text_tower,
        open_tunable_copy,
        register_encoder,
    )

MODULE_OF = {
    "Encoder": "base",
    "EncoderInfo": "base",
    "EncoderListing": "base",
    "AttentionLayer": "layers",
    "attention_layers": "layers",
    "create_encoder": "registry",
    "encoder_info": "registry",
    "precision_fingerprint": "backend",
    "list_encoders": "registry",
    "open_text_tower": "registry",
    "open_tunable_copy": "registry",
    "register_encoder": "registry",
    "with_unprojected": "_unprojected",
    "with_backend": "backend",
}

__all__ = [
    "Encoder",
    "EncoderInfo",
    "EncoderListing",
    "AttentionLayer",
    "attention_layers",
    "create_encoder",
    "encoder_info",
    "precision_fingerprint",
    "list_encoders",
    "open_text_tower",
    "open_tunable_copy",
    "register_encoder",
    "with_unprojected",
    "with_backend",
]


def __getattr__(name: str) -> Any:
    if name not in MODULE_OF:
        raise AttributeError(f"module 'clipadapter.encoders' has no attribute {name!r}")
    return getattr(importlib.import_module(f"clipadapter.encoders.{MODULE_OF[name]}"), name)
