"""Parts of an encoder that not every encoder has: each as it is, or an error that names encoders that have one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipadapter.encoders.registry import describe_missing_part, schemes_with
from clipadapter.errors import InputError

if TYPE_CHECKING:
    from clipadapter.encoders.base import Encoder
    from clipadapter.encoders.open_clip_prompts import PromptPlaces
    from clipadapter.utils.towers import TextTower


def open_text_tower(encoder: Encoder) -> TextTower:
    """The text tower of an encoder, which takes token embeddings.

    Raises:
        InputError: if the encoder has no such tower; the message names encoders that have one.
    """
    if tower := encoder.text_tower():
        return tower
    raise InputError(describe_missing_part(encoder.info.name, "text_tower"))


def open_tunable_copy(encoder: Encoder) -> Encoder:
    """A second encoder on the same weights, whose networks may be changed; see `Encoder.tunable_copy`.

    Raises:
        InputError: if its weights can't be changed; the message names encoders whose weights can.
    """
    tunable = encoder.tunable_copy()
    if tunable is None or tunable.tower() is None:
        raise InputError(describe_missing_part(encoder.info.name, "tunable_copy"))
    return tunable


def open_prompt_places(encoder: Encoder) -> PromptPlaces:
    """Where prompts go in both towers of a tunable copy; see `Encoder.prompt_places`.

    Raises:
        InputError: if there are no such places; the message says which encoders have them.
    """
    if places := encoder.prompt_places():
        return places
    raise InputError(
        f"prompts can't be put into both towers of {encoder.info.name}: this needs a ViT of CLIP with its text "
        f"tower, such as open_clip:ViT-B-32/laion2b_s34b_b79k; ResNets, SigLIP, networks of timm and encoders "
        f"other than {schemes_with('prompt_places')} have no such places. To learn prompts of the text tower "
        "alone, take the head coop"
    )
