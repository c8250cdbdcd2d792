"""``clipadapter push``."""

from __future__ import annotations

from pathlib import Path

import click

from clipadapter.cli.options import FILE, FOLDER, output_options
from clipadapter.cli.output import Output


@click.command(epilog="Example: clipadapter push model/ org/name --private --exported model.onnx")
@click.argument("model", type=FOLDER)
@click.argument("name", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Of a repository that is made; by default what your account says.")
@click.option("--exported", type=FILE, multiple=True, help="A file that 'clipadapter export' wrote, to lie beside it.")
@output_options
def command(model: Path, name: str, private: bool, exported: tuple[Path, ...], out: Output) -> None:
    """Put MODEL onto the Hugging Face hub, with its card; the repository is made if there is none.

    The token is that of 'hf auth login', or in HF_TOKEN or the file that HF_TOKEN_PATH names. Paths of this
    machine are left out; the shots' features go along unless the model was fitted with --no-support.
    """
    from clipadapter.persistence import push, read_config

    config = read_config(model)
    done = push(model, name, exported=exported, private=True if private else None)
    if "local-dir:" in config.encoder.name or "simclr:" in config.encoder.name:
        out.warn("the encoder lies in a folder of this machine: who fetches the model needs its weights, and --encoder")
    if "evaluation" not in config.provenance:
        out.note("its card has no figures: 'clipadapter eval MODEL TEST --record' measures them; then push again")
    if done.others:
        out.note(f"left as they were in {done.repo}: {', '.join(done.others)}")
    facts = {"repo": done.repo, "url": done.url, "files": list(done.files), "others": list(done.others)}
    out.result(facts, f"{done.url}\n{', '.join(done.files)}")
