"""``clipadapter pull``."""

from __future__ import annotations

from pathlib import Path

import click

from clipadapter.cli.groups import cli_command
from clipadapter.cli.inputs import check_output_folder
from clipadapter.cli.option_types import FOLDER
from clipadapter.cli.options import output_options
from clipadapter.cli.output import Output, facts


@cli_command("clipadapter pull org/name --out model/")
@click.argument("name", metavar="ORG/NAME")
@click.option("--out", "folder", type=FOLDER, required=True, help="Folder for the model.")
@click.option("--revision", metavar="NAME", help="Branch, tag or commit; by default main.")
@output_options
def command(name: str, folder: Path, revision: str | None, out: Output) -> None:
    """Download a model from the Hugging Face hub into a folder, and check it.

    Only the files of a model are downloaded, and nothing is unpickled. The weights of the encoder are not included.
    """
    from clipadapter.persistence import pull, read_config

    check_output_folder(folder)
    pull(name, folder, revision=revision)
    config = read_config(folder)
    summary = {"model": str(folder), "head": config.head.name, "encoder": config.encoder.name}
    out.result(
        {**summary, "classes": config.class_names},
        facts([*summary.items(), ("classes", len(config.class_names))]),
    )
