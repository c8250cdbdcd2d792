"""Encoders: pictures and texts to features. One file a family; see ``list_encoders()``."""

from clipadapter.encoders._backend import fingerprint_in, with_backend
from clipadapter.encoders._base import Encoder, EncoderInfo, EncoderListing
from clipadapter.encoders._registry import create_encoder, encoder_info, list_encoders, register_encoder
from clipadapter.encoders._towers import open_text_tower
from clipadapter.encoders._tuned import Layer, attention_layers, open_twin
from clipadapter.encoders._unprojected import unprojected

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
