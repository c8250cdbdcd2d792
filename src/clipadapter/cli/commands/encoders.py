"""``clipadapter encoders``."""

from __future__ import annotations

import difflib
import fnmatch
from dataclasses import asdict

import click

from clipadapter.cli.options import output_options
from clipadapter.cli.output import Output, table
from clipadapter.errors import UnknownNameError

FOR_TESTS = "toy"


@click.command(epilog="Example: clipadapter encoders 'open_clip:ViT-B*'")
@click.argument("pattern", default="*")
@output_options
def command(pattern: str, out: Output) -> None:
    """List the encoders, or those whose URI matches PATTERN: width, licence of the weights, note.

    Nothing is loaded.

    open_clip:local-dir:PATH is a folder with weights in open_clip's layout.
    """
    from clipadapter.encoders import encoder_info, list_encoders

    schemes = [name for name in list_encoders() if name != FOR_TESTS or pattern == FOR_TESTS]
    listed = [listing for scheme in schemes for listing in encoder_info(scheme).cls.listing()]
    found = [listing for listing in listed if fnmatch.fnmatchcase(listing.name, pattern)]
    if not found:
        close = difflib.get_close_matches(pattern, [listing.name for listing in listed], n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise UnknownNameError(f"no encoder matches '{pattern}'.{hint} 'clipadapter encoders' lists all")
    rows = [[one.name, one.dim or "-", one.licence, one.note] for one in found]
    out.result([asdict(one) for one in found], table(["encoder", "width", "licence", "note"], rows))
