"""``clipadapter doctor``."""

from __future__ import annotations

from pathlib import Path

import click

from clipadapter.cli.fit_options import Prompts, prompt_options
from clipadapter.cli.options import (
    FILE,
    FOLDER,
    Towers,
    check_page,
    encoder_options,
    open_dataset,
    output_options,
    seed_option,
    split_option,
)
from clipadapter.cli.output import SHOWN, Failure, Output


@click.command(epilog="Example: clipadapter doctor photos/ --html doctor.html")
@click.argument("data", type=FOLDER)
@split_option
@click.option("--html", "page", type=FILE, help="Page with the pictures to write; it asks for nothing else.")
@click.option("--strict", is_flag=True, help="Exit with 1 if a finding is severe.")
@seed_option
@encoder_options
@prompt_options
@output_options
def command(
    data: Path,
    split: str | None,
    page: Path | None,
    strict: bool,
    seed: int,
    towers: Towers,
    prompts: Prompts,
    out: Output,
) -> None:
    """Look for what is wrong with the labelled pictures in DATA; nothing is changed.

    Finds copies within and across classes and parts, labels that are likely wrong, classes that are taken for each
    other or called by names that the encoder does not understand, small classes, and pictures that are dark, blurred,
    tiny or long. Worst first: severe, warning, note.
    """
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.doctor import diagnose

    check_page(page, data)
    dataset = prompts.rename(open_dataset(data, split))
    descriptions = prompts.read_descriptions(dataset.class_names)
    encoder = towers.open(out)
    model = FewShotClassifier(
        encoder,
        templates=prompts.templates,
        descriptions=descriptions,
        backend=towers.backend,
        precision=towers.precision,
        cache=towers.store,
        batch_size=towers.batch_size,
        progress=out.progress,
    )
    found = diagnose(dataset, model, seed=seed, progress=out.progress)
    towers.tell(encoder, model.encoder_, out)
    files = [found.to_html(page)] if page else []
    wrote = f"\n\nwrote {files[0]}" if files else ""
    out.result({**found.to_dict(), "files": [str(file) for file in files]}, found.text(SHOWN) + wrote)
    if strict and found.severe:
        raise Failure(f"{found.severe} of {len(found.findings)} findings are severe")
