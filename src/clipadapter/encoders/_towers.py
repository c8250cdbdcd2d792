"""What methods that train through an encoder get of it, or why they can't."""

from __future__ import annotations

from clipadapter.encoders._base import Encoder
from clipadapter.encoders._registry import encoder_info, list_encoders
from clipadapter.errors import InputError
from clipadapter.towers import TextTower


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
