"""The registry of encoders."""

from __future__ import annotations

from clipadapter.encoders._base import Encoder
from clipadapter.registry import Registry

ENCODERS: Registry[Encoder] = Registry("encoder", "clipadapter.encoders")
register_encoder = ENCODERS.register
list_encoders = ENCODERS.list
encoder_info = ENCODERS.info


def create_encoder(uri: str, device: str = "cpu") -> Encoder:
    """Open an encoder by its URI, ``SCHEME`` or ``SCHEME:REST``.

    Args:
        uri: such as ``lite``, ``open_clip:ViT-B-32/laion2b_s34b_b79k`` or ``open_clip:local-dir:PATH``.
        device: a torch device; nothing but this moves the towers off the CPU.

    Raises:
        UnknownNameError: if no encoder has the scheme.
        EncoderUnavailableError: if the weights can't be had.
        MissingExtraError: if an optional package is missing.

    >>> create_encoder("toy").info.dim
    32
    """
    scheme, _, rest = uri.partition(":")
    return encoder_info(scheme).cls.open(rest, device=device)
