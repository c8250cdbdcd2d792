"""Conformance checks of heads, encoders and text towers, for authors of plug-ins."""

from clipadapter.testing.encoders import ENCODER_CHECKS, check_encoder
from clipadapter.testing.heads import HEAD_CHECKS, check_head
from clipadapter.testing.towers import TOWER_CHECKS, check_tower
from clipadapter.testing.toy import toy_features

__all__ = [
    "ENCODER_CHECKS",
    "HEAD_CHECKS",
    "TOWER_CHECKS",
    "check_encoder",
    "check_head",
    "check_tower",
    "toy_features",
]
