"""Checks for those who add a part: what every encoder, head ... must do."""

from clipadapter.testing.encoders import ENCODER_CHECKS, check_encoder

__all__ = ["ENCODER_CHECKS", "check_encoder"]
