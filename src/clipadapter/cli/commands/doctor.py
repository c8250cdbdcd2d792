"""``clipadapter doctor``."""

from __future__ import annotations

from pathlib import Path

import click

from clipadapter.cli.encoder_options import EncoderOptions, note_backend
from clipadapter.cli.fit_options import PromptOptions
from clipadapter.cli.groups import Section, cli_command
from clipadapter.cli.inputs import check_output_file, open_dataset
from clipadapter.cli.option_types import FILE, FOLDER
from clipadapter.cli.options import option_group, output_options, seed_option, split_option
from clipadapter.cli.output import MAX_LISTED, Failure, Output


@cli_command("clipadapter doctor photos/ --html doctor.html", Section.INSPECT, 4, extra="lite,doctor")
@click.argument("data", type=FOLDER)
@split_option
@click.option("--html", "page", type=FILE, help="HTML page to write, with the pictures in it.")
@click.option("--strict", is_flag=True, help="Exit with 1 if a finding is severe.")
@seed_option
@option_group("encoder_options", EncoderOptions)
@option_group("prompts", PromptOptions)
@output_options
def command(
    data: Path,
    split: str | None,
    page: Path | None,
    strict: bool,
    seed: int,
    encoder_options: EncoderOptions,
    prompts: PromptOptions,
    out: Output,
) -> None:
    """Find problems in the labelled pictures in DATA. Nothing is changed.

    Finds copies within and between classes and splits, labels that are likely wrong, classes that are confused with
    each other, class names that the encoder does not understand, small classes, and pictures that are dark, blurred,
    tiny or long. Findings are sorted: severe, warning, note.
    """
    check_output_file(page, data)
    dataset = prompts.rename_classes(open_dataset(data, split))
    from clipadapter.doctor import diagnose  # imports torch, so only after the checks

    prompt_parameters = prompts.classifier_parameters(dataset.class_names)
    model = encoder_options.create_classifier(out, **prompt_parameters)
    opened = model.encoder_
    diagnosis = diagnose(dataset, model, seed=seed, progress=out.progress)
    note_backend(opened, model.encoder_, out)
    files = [diagnosis.to_html(page)] if page else []
    wrote = f"\n\nwrote {files[0]}" if files else ""
    out.result({**diagnosis.to_dict(), "files": [str(file) for file in files]}, diagnosis.to_text(MAX_LISTED) + wrote)
    if strict and diagnosis.n_severe:
        raise Failure(f"{diagnosis.n_severe} of {len(diagnosis.findings)} findings are severe")
