"""Checks for those who add a part: what every encoder, head ... must do."""

from clipadapter.testing.encoders import ENCODER_CHECKS, check_encoder
from clipadapter.testing.heads import HEAD_CHECKS, check_head, toy_features

__all__ = ["ENCODER_CHECKS", "HEAD_CHECKS", "check_encoder", "check_head", "toy_features"]
