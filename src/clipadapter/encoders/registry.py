"""Encoders by name, and the parts that not every encoder has."""

from __future__ import annotations

from clipadapter.encoders.base import Encoder
from clipadapter.errors import InputError
from clipadapter.registry import Registry
from clipadapter.towers import TextTower

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
    scheme, _, variant = uri.partition(":")
    return encoder_info(scheme).cls.open(variant, device=device)


def open_text_tower(encoder: Encoder) -> TextTower:
    """The text tower of an encoder, open to token embeddings.

    Raises:
        InputError: if prompts can't be learned with this encoder; names those with which they can.
    """
    tower = encoder.text_tower()
    if tower is None:
        able = [name for name in list_encoders() if encoder_info(name).cls.text_tower is not Encoder.text_tower]
        raise InputError(
            f"prompts can't be learned with the encoder {encoder.info.name}: its text tower takes no token "
            f"embeddings; those of {', '.join(able)} do, but for a few models of open_clip"
        )
    return tower


def open_tunable_copy(encoder: Encoder) -> Encoder:
    """A second encoder on the same weights, whose networks may be changed; see `Encoder.tunable_copy`.

    Raises:
        InputError: if its weights can't be changed; names those whose can.
    """
    twin = encoder.tunable_copy()
    if twin is None or twin.tower() is None:
        able = [name for name in list_encoders() if encoder_info(name).cls.tunable_copy is not Encoder.tunable_copy]
        raise InputError(
            f"the weights of the encoder {encoder.info.name} can't be tuned; those of {', '.join(able)} can, but for "
            "models of open_clip that pad pictures to a square"
        )
    return twin
