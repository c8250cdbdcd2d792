"""``clipadapter encoders``."""

from __future__ import annotations

import difflib
import fnmatch
from dataclasses import asdict

import click

from clipadapter.cli.groups import Section, cli_command
from clipadapter.cli.options import output_options
from clipadapter.cli.output import Output, table
from clipadapter.errors import UnknownNameError

TEST_SCHEME = "toy"
"""The encoder of the tests, which is only listed by its name."""


@cli_command("clipadapter encoders 'open_clip:ViT-B*'", Section.INSPECT, 3)
@click.argument("pattern", default="*")
@output_options
def command(pattern: str, out: Output) -> None:
    """List the encoders, or those whose URI matches PATTERN: width, licence of the weights, note.

    No encoder is loaded.

    open_clip:local-dir:PATH is a folder with weights in the layout of open_clip.
    """
    from clipadapter.encoders import encoder_info, list_encoders

    schemes = [name for name in list_encoders() if name != TEST_SCHEME or pattern == TEST_SCHEME]
    listings = [listing for scheme in schemes for listing in encoder_info(scheme).cls.listing()]
    matching = [listing for listing in listings if fnmatch.fnmatchcase(listing.name, pattern)]
    if not matching:
        close = difflib.get_close_matches(pattern, [listing.name for listing in listings], n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise UnknownNameError(f"no encoder matches '{pattern}'.{hint} 'clipadapter encoders' lists all")
    rows = [[listing.name, listing.dim or "-", listing.licence, listing.note] for listing in matching]
    out.result([asdict(listing) for listing in matching], table(["encoder", "width", "licence", "note"], rows))
