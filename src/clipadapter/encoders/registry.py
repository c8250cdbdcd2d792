"""Encoders by name, and what their names say of them. Nothing here imports torch."""

from __future__ import annotations

from typing import Any

from clipadapter.encoders import catalogue
from clipadapter.encoders.catalogue import EncoderListing
from clipadapter.encoders.weights import check_open_clip, check_transformers, parse_timm
from clipadapter.errors import InputError
from clipadapter.utils.blocks import FINAL, BlockSource
from clipadapter.utils.registry import Registry

ENCODERS: Registry[Any] = Registry("encoder", "clipadapter.encoders")
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
        raise InputError(describe_missing_part(uri, method))


def describe_missing_part(name: str, method: str) -> str:
    """Why an encoder can't train a part, "text_tower" or "tunable_copy", and which encoders can."""
    if method == "text_tower":
        return (
            f"prompts can't be learned with the encoder {name}: its text tower takes no token "
            f"embeddings; those of {schemes_with('text_tower')} do, except for a few models of open_clip"
        )
    return f"the weights of the encoder {name} can't be tuned; those of {schemes_with('tunable_copy')} can"


def schemes_with(method: str) -> str:
    """The schemes of the encoders that override a method of `Encoder`, joined by commas."""
    return ", ".join(name for name in list_encoders() if ENCODERS.overrides(name, method, "Encoder"))
