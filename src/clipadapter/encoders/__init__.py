"""Encoders: pictures and texts to features. One file a family; see ``list_encoders()``."""

from clipadapter.encoders._unprojected import unprojected
from clipadapter.encoders.backend import fingerprint_in, with_backend
from clipadapter.encoders.base import Encoder, EncoderInfo, EncoderListing
from clipadapter.encoders.layers import Layer, attention_layers
from clipadapter.encoders.registry import (
    create_encoder,
    encoder_info,
    list_encoders,
    open_text_tower,
    open_twin,
    register_encoder,
)

__all__ = [
    "Encoder",
    "EncoderInfo",
    "EncoderListing",
    "Layer",
    "attention_layers",
    "create_encoder",
    "encoder_info",
    "fingerprint_in",
    "list_encoders",
    "open_text_tower",
    "open_twin",
    "register_encoder",
    "unprojected",
    "with_backend",
]
