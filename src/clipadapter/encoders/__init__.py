"""Encoders: pictures and texts to features. There is one file per family; see ``list_encoders()``."""

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
