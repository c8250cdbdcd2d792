"""Encoders by name, and parts of an encoder that not every encoder has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipadapter.encoders import catalogue
from clipadapter.encoders.catalogue import EncoderListing
from clipadapter.encoders.weights import check_open_clip, check_transformers, parse_timm
from clipadapter.errors import InputError
from clipadapter.utils.blocks import FINAL, BlockSource
from clipadapter.utils.registry import Registry

if TYPE_CHECKING:
    from clipadapter.encoders.base import Encoder
    from clipadapter.encoders.open_clip_prompts import PromptPlaces
    from clipadapter.utils.towers import TextTower

ENCODERS: Registry[Encoder] = Registry("encoder", "clipadapter.encoders")
TEST_SCHEME = "toy"  # the encoder of the tests, which is not listed
register_encoder = ENCODERS.register
list_encoders = ENCODERS.list
encoder_info = ENCODERS.info


def check_uri(uri: str) -> None:
    """Refuse the URI of an encoder that can't be opened, as far as its text shows. Does not import torch.

    Raises:
        UnknownNameError: if there is no such encoder, or no such weights; the message names those that come near.
        InputError: if the URI is incomplete.
        EncoderUnavailableError: if the file or folder is missing.
    """
    base, names = split_blocks(uri)
    for other in dict.fromkeys(BlockSource.parse(name).encoder for name in names):
        if other:
            check_uri(other)
    scheme, _, variant = base.partition(":")
    if scheme in ("open_clip", "hf-hub"):
        check_open_clip(variant if scheme == "open_clip" else base)
    elif scheme == "hf":
        check_transformers(variant)
    elif scheme == "timm":
        parse_timm(variant)
    elif scheme not in list_encoders():
        raise catalogue.unknown_encoder(base, list_encoders())


def split_blocks(uri: str) -> tuple[str, tuple[str, ...]]:
    """A URI as that of the encoder and the names of its blocks; none for an encoder without blocks.

    Raises:
        InputError: if a block has no valid name.

    >>> split_blocks("lite[final,stage3]"), split_blocks("lite")
    (('lite', ('final', 'stage3')), ('lite', ()))
    """
    base, bracket, rest = uri.rpartition(f"[{FINAL}")
    if not bracket or not rest.endswith("]") or not base:
        return uri, ()
    names = tuple(name.strip() for name in (FINAL + rest[:-1]).split(","))
    for name in names:
        BlockSource.parse(name)
    return base, names


def list_listings() -> list[EncoderListing]:
    """What is known of all encoders without opening one: the recommended ones first.

    torch is imported only if there are plug-ins.
    """
    known = catalogue.list_known()
    schemes = {one.name.partition(":")[0] for one in known}
    others = [name for name in list_encoders() if name not in (*schemes, TEST_SCHEME)]
    return [*(one for name in others for one in encoder_info(name).cls.listing()), *known]


def check_encoder(uri: str) -> None:
    """Refuse an encoder that can't be opened, as far as that shows without loading or downloading weights.

    Raises:
        UnknownNameError, EncoderUnavailableError, MissingExtraError: as `create_encoder`.

    >>> check_encoder("toy")
    """
    check_uri(uri)
    base, names = split_blocks(uri)
    for one in dict.fromkeys([base, *(BlockSource.parse(name).encoder for name in names)]):
        if one:
            scheme, _, variant = one.partition(":")
            encoder_info(scheme).cls.check(variant)


def check_trainable(uri: str, method: str) -> None:
    """Refuse an encoder without a part that a head trains, "text_tower" or "tunable_copy", if its scheme shows that."""
    scheme = split_blocks(uri)[0].partition(":")[0]
    if scheme != "auto" and not ENCODERS.overrides(scheme, method, "Encoder"):
        raise InputError(_describe_missing_part(uri, method))


def _describe_missing_part(name: str, method: str) -> str:
    if method == "text_tower":
        return (
            f"prompts can't be learned with the encoder {name}: its text tower takes no token "
            f"embeddings; those of {schemes_with('text_tower')} do, except for a few models of open_clip"
        )
    return f"the weights of the encoder {name} can't be tuned; those of {schemes_with('tunable_copy')} can"


def open_text_tower(encoder: Encoder) -> TextTower:
    """The text tower of an encoder, which takes token embeddings.

    Raises:
        InputError: if the encoder has no such tower; the message names encoders that have one.
    """
    if tower := encoder.text_tower():
        return tower
    raise InputError(_describe_missing_part(encoder.info.name, "text_tower"))


def open_tunable_copy(encoder: Encoder) -> Encoder:
    """A second encoder on the same weights, whose networks may be changed; see `Encoder.tunable_copy`.

    Raises:
        InputError: if its weights can't be changed; the message names encoders whose weights can.
    """
    tunable = encoder.tunable_copy()
    if tunable is None or tunable.tower() is None:
        raise InputError(_describe_missing_part(encoder.info.name, "tunable_copy"))
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


def schemes_with(method: str) -> str:
    """The schemes of the encoders that override a method of `Encoder`, joined by commas."""
    return ", ".join(name for name in list_encoders() if ENCODERS.overrides(name, method, "Encoder"))
