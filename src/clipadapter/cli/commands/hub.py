"""``clipadapter push`` and ``clipadapter pull``."""

from __future__ import annotations

from pathlib import Path

from clipadapter.cli.groups import cli_command
from clipadapter.cli.inputs import check_output_folder
from clipadapter.cli.options import FILE, FOLDER, argument, option
from clipadapter.cli.output import Output, plain_facts


@cli_command("clipadapter push model/ org/name --private --exported model.onnx")
def push(
    out: Output,
    model: Path = argument(type=FOLDER),
    name: str = argument(metavar="ORG/NAME"),
    private: bool = option(
        "--private", default=False, is_flag=True, help="Create a private repository; by default as set in your account."
    ),
    exported: tuple[Path, ...] = option(
        "--exported", default=(), type=FILE, multiple=True, help="File written by 'clipadapter export', to upload too."
    ),
) -> None:
    """Upload MODEL and its card to the Hugging Face hub. The repository is created if there is none.

    The token is that of 'hf auth login', or in HF_TOKEN or in the file that HF_TOKEN_PATH names. Paths of this machine
    are removed. The features of the shots are included, unless the model was fitted with --no-support; some heads
    have such features themselves.
    """
    from clipadapter.persistence import push, read_config
    from clipadapter.utils.files import has_local_weights

    config = read_config(model)
    done = push(model, name, exported=exported, private=True if private else None)
    if has_local_weights(config.encoder.name):
        out.warn(
            "the weights of the encoder are on this machine only: whoever downloads the model needs them, and --encoder"
        )
    if "evaluation" not in config.provenance:
        out.note("the card has no figures: run 'clipadapter eval MODEL TEST --record', then push again")
    if done.others:
        out.note(f"not changed in {done.repo}: {', '.join(done.others)}")
    record = {"repo": done.repo, "url": done.url, "files": list(done.files), "others": list(done.others)}
    out.result(record, f"{done.url}\n{', '.join(done.files)}")


@cli_command("clipadapter pull org/name --out model/")
def pull(
    out: Output,
    name: str = argument(metavar="ORG/NAME"),
    folder: Path = option("--out", type=FOLDER, required=True, help="Folder for the model."),
    revision: str | None = option("--revision", metavar="NAME", help="Branch, tag or commit; by default main."),
) -> None:
    """Download a model from the Hugging Face hub into a folder, and check it.

    Only the files of a model are downloaded, and nothing is unpickled. The weights of the encoder are not included.
    """
    from clipadapter.persistence import pull, read_config

    check_output_folder(folder)
    pull(name, folder, revision=revision)
    config = read_config(folder)
    record = {"model": str(folder), "head": config.head.name, "encoder": config.encoder.name}
    out.facts(plain_facts({**record, "classes": config.class_names}))
