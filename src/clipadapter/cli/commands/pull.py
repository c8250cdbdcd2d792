"""``clipadapter pull``."""

from __future__ import annotations

from pathlib import Path

import click

from clipadapter.cli.comparing import check_out
from clipadapter.cli.options import FOLDER, output_options
from clipadapter.cli.output import Output, facts


@click.command(epilog="Example: clipadapter pull org/name --out model/")
@click.argument("name", metavar="ORG/NAME")
@click.option("--out", "folder", type=FOLDER, required=True, help="Folder for the model.")
@click.option("--revision", metavar="NAME", help="Branch, tag or commit; main if not given.")
@output_options
def command(name: str, folder: Path, revision: str | None, out: Output) -> None:
    """Fetch a model from the Hugging Face hub into a folder of its own, checked.

    Nothing but the files of a model is fetched, and nothing is unpickled. The encoder's weights are not part of it.
    """
    from clipadapter.persistence import pull, read_config

    check_out(folder)
    pull(name, folder, revision=revision)
    config = read_config(folder)
    told = {"model": str(folder), "head": config.head.name, "encoder": config.encoder.name}
    out.result(
        {**told, "classes": config.class_names},
        facts([*told.items(), ("classes", len(config.class_names))]),
    )
