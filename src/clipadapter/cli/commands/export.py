"""``clipadapter export``, ``push`` and ``pull``: a model leaves this machine, or comes to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import click

from clipadapter import persistence
from clipadapter.cli import options
from clipadapter.cli.declarations import argument, cli_command, flag, option, options_of
from clipadapter.cli.inputs import path_beside
from clipadapter.cli.options import File
from clipadapter.cli.output import Fact, Output, plain_facts
from clipadapter.cli.outputs import check_output_file, check_output_folder, force_option
from clipadapter.errors import InputError
from clipadapter.runtime.engines import formats
from clipadapter.runtime.engines.export_format import EXPORT_PRECISIONS
from clipadapter.runtime.engines.graphs import INPUT_NAMES
from clipadapter.utils.files import has_local_weights, quote_path

FormatName = Annotated[str, options.late_choice(formats.load_formats)]
Precision = Annotated[str, click.Choice(EXPORT_PRECISIONS)]
InputName = Annotated[str, click.Choice(list(INPUT_NAMES))]


@cli_command("clipadapter export model/ --format onnx --out model.onnx", extra="lite,onnx")
def command(
    out: Output,
    model: Path = argument(),
    format_name: FormatName = option("--format", "Format of the file.", default=formats.DEFAULT_FORMAT),
    path: Path | None = option(
        "--out FILE", "File to write, with the suffix of its format; by default beside MODEL, with its name."
    ),
    precision: Precision = option(
        "--precision", "Precision of the image tower; int8 is about a third as large.", default="fp32"
    ),
    source: InputName = option(
        "--input", "Input of the graph: square pictures with values of 0 to 255, or normalised pixels.", default="uint8"
    ),
    pictures: Path | None = option(
        "--pictures DATA",
        "Folder or table of pictures to compare the two models on, and to calibrate int8 with; by default the shots.",
    ),
    force: bool = force_option,
    encoder: options.ModelEncoderOptions = options_of(options.ModelEncoderOptions, only=("uris", "max_pixels")),
) -> None:
    """Export MODEL as one file that runs without this package and without torch.

    The file contains the image tower, the head, calibrated probabilities and the scores of "none of these" as one
    graph, and class names and preprocessing as metadata. The graph is compared with MODEL on pictures first. If they
    differ, no file is written. The head cocoop can't be exported, since its prompts depend on the picture.
    """
    from clipadapter.runtime.export import export_model

    config = persistence.read_config(model)  # refuses a wrong folder before torch is imported
    target = _target(model, path, format_name)
    for file in (target, *formats.companion_files(target)):
        check_output_file(file, "file of export", lambda _: formats.is_intact(target), force=force)
    formats.get_format(format_name).check_convertible(precision)
    classifier = encoder.load(model, cache=None)
    out.note(f"converting {classifier.encoder_.info.name} with the head {config.head.name}, then comparing")
    done = export_model(classifier, target, format=format_name, precision=precision, input=source, pictures=pictures)
    for note in done.notes:
        out.warn(note)
    if done.parity["pictures"] == "drawn":
        out.note(
            "compared on random pictures, since the shots of the model are not on this machine: give --pictures DATA"
        )
    files = list(map(str, done.files))
    out.facts(
        [
            Fact("path", str(done.path)),
            Fact("files", files, ", ".join(files), "wrote"),
            Fact("format", format_name),
            Fact("precision", precision),
            Fact("input", source),
            Fact("size", done.size_bytes, f"{done.size_bytes / 1e6:.1f} MB, {precision}"),
            Fact("parity", dict(done.parity), done.parity_summary, "compared"),
            Fact("notes", list(done.notes)),
        ],
        f"to use it: clipadapter predict {quote_path(done.path)} photo.jpg\nwithout this package: see docs/export.md",
    )


def _target(model: Path, path: Path | None, format_name: str) -> Path:
    """Return the file to write; refuse a name that does not fit the format."""
    suffix = formats.get_format(format_name).suffix
    if path is None:
        return path_beside(model, suffix)
    if path.is_dir():
        raise InputError(f"{path} is a folder: give a file, such as {path / f'model{suffix}'}")
    if path.suffix.lower() != suffix:
        other = formats.find_format(path)
        advice = f"give --format {other.name}" if other else f"give a name that ends with {suffix}"
        raise InputError(f"{path} does not end with {suffix}: {advice}")
    return path


@cli_command("clipadapter push model/ org/name --private --exported model.onnx")
def push(
    out: Output,
    model: Path = argument(),
    name: str = argument(metavar="ORG/NAME"),
    private: bool = flag("--private", "Create a private repository; by default as set in your account."),
    exported: tuple[File, ...] = option("--exported", "File written by 'clipadapter export', to upload too."),
) -> None:
    """Upload MODEL and its card to the Hugging Face hub. The repository is created if there is none.

    The token is that of 'hf auth login', or in HF_TOKEN or in the file that HF_TOKEN_PATH names. Paths of this machine
    are removed. The features of the shots are included, unless the model was fitted with --no-support; some heads
    have such features themselves.
    """
    config = persistence.read_config(model)
    done = persistence.push(model, name, exported=exported, private=True if private else None)
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
    folder: Path = option("--out", "Folder for the model.", required=True),
    revision: str | None = option("--revision NAME", "Branch, tag or commit; by default main."),
) -> None:
    """Download a model from the Hugging Face hub into a folder, and check it.

    Only the files of a model are downloaded, and nothing is unpickled. The weights of the encoder are not included.
    """
    check_output_folder(folder)
    persistence.pull(name, folder, revision=revision)
    config = persistence.read_config(folder)
    record = {"model": str(folder), "head": config.head.name, "encoder": config.encoder.name}
    out.facts(plain_facts({**record, "classes": config.class_names}))
