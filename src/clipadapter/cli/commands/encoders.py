"""``clipadapter encoders``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from clipadapter.cli.groups import cli_command
from clipadapter.cli.options import argument
from clipadapter.cli.output import Output, table

if TYPE_CHECKING:
    from clipadapter.encoders import EncoderListing

COLUMNS = ("parameters", "fp32", "pixels", "width", "licence", "texts", "note")
BYTES_PER_PARAMETER = 4
"""In fp32."""
FACTS_OF_NONE = {"own"}
"""Groups of forms of a URI, of which no facts are known."""


@cli_command("clipadapter encoders 'open_clip:ViT-B*'")
def command(out: Output, pattern: str = argument(default="")) -> None:
    """List the encoders by what they are good for, or all whose URI matches PATTERN, such as '*siglip2*'.

    Columns: parameters of both towers, their size in fp32, side of the pictures in pixels, width of the features,
    licence of the weights, how long texts may be and what is removed from them. A percentage is the published zero-shot
    accuracy on ImageNet. No encoder is loaded. '*' lists all. The models of timm are listed for a PATTERN that begins
    with 'timm:' or has wildcards.
    """
    from clipadapter.encoders.catalogue import list_timm, match_listings, read_groups, read_hardware
    from clipadapter.encoders.registry import TEST_SCHEME, encoder_info, list_listings

    listings = encoder_info(TEST_SCHEME).cls.listing() if pattern == TEST_SCHEME else list_listings()
    if pattern:
        if pattern.lower().startswith("timm:") or set("*?[") & set(pattern):
            listings = list({one.name: one for one in [*listings, *list_timm()]}.values())
        matching = match_listings(pattern, listings)
        out.result([asdict(one) for one in matching], _table("encoder", matching))
        return
    by_name = {one.name: one for one in listings}
    parts = []
    for group in read_groups():
        members = [by_name[uri] for uri in group.encoders]
        if group.name in FACTS_OF_NONE:
            parts.append(table((group.title.upper(), "note"), [(one.name, one.note) for one in members]))
        else:
            parts.append("\n".join([_table(group.title.upper(), members), *([group.about] if group.about else [])]))
    rows = [(title, *one) for title, encoders in read_hardware().items() for one in encoders.items()]
    parts.append(table(("BY HARDWARE", "encoder", "weights in fp32"), rows))
    parts.append("%: published zero-shot accuracy on ImageNet. 'clipadapter encoders \"*\"' lists all encoders.")
    out.result([asdict(one) for one in listings], "\n\n".join(parts))


def _table(title: str, listings: Sequence[EncoderListing]) -> str:
    return table((title, *COLUMNS), [_row(one) for one in listings])


def _row(listing: EncoderListing) -> Sequence[object]:
    n = listing.parameters
    unknown = "-" if FACTS_OF_NONE & set(listing.groups) else "see model card"
    return (
        listing.name,
        "-" if n is None else f"{n / 1e6:.0f} M",
        "-" if n is None else f"{n * BYTES_PER_PARAMETER / 1e9:.1f} GB",
        listing.image_size or "-",
        listing.dim or "-",
        unknown if listing.licence == "unknown" else listing.licence,
        listing.text or "-",
        listing.note,
    )
