"""Conformance checks of heads, encoders and text towers, for authors of plug-ins.

They need no pytest, which these may not have.
"""

from clipadapter.testing.encoders import ENCODER_CHECKS, TOWER_CHECKS, check_encoder, check_tower
from clipadapter.testing.heads import HEAD_CHECKS, check_head, toy_features

__all__ = [
    "ENCODER_CHECKS",
    "HEAD_CHECKS",
    "TOWER_CHECKS",
    "check_encoder",
    "check_head",
    "check_tower",
    "toy_features",
]
