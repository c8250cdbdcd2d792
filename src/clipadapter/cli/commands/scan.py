"""``clipadapter scan`` and ``clipadapter doctor``: what is wrong with labelled pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from clipadapter.cli import options
from clipadapter.cli.declarations import argument, cli_command, flag, option, options_of
from clipadapter.cli.inputs import open_dataset
from clipadapter.cli.output import MAX_LISTED, Failure, Output, table
from clipadapter.cli.outputs import check_output_file, force_option
from clipadapter.data import ScanReport, scan
from clipadapter.errors import InputError, require_installed
from clipadapter.utils.files import printable
from clipadapter.utils.formatting import format_count


@cli_command("clipadapter scan shots/")
def command(
    out: Output,
    data: Path = argument(),
    strict: bool = flag("--strict", "Exit with 1 if a picture can't be read."),
    max_pixels: int = options.max_pixels_option,
) -> None:
    """List the contents of DATA: classes, counts, unreadable files, duplicates.

    Every picture is read completely. Nothing is written.
    """
    report = scan(data)
    out.result(report.to_dict(), "\n".join(_lines(report)))
    for warning in report.warnings:
        out.warn(warning)
    if strict and report.unreadable:
        raise Failure(f"{format_count(len(report.unreadable), 'picture')} can't be read")


def _lines(report: ScanReport) -> Iterator[str]:
    if report.classes:
        rows = [[name, *parts.values()] for name, parts in report.classes.items()]
        totals = [sum(parts[split] for parts in report.classes.values()) for split in report.splits]
        yield table(["class", *report.splits], [*rows, ["total", *totals]])
    else:
        yield f"{format_count(report.readable, 'picture')}, none in a class"
    yield from _section("unreadable", (f"{path}: {reason}" for path, reason in report.unreadable))
    yield from _section("left out", (f"{path}: {reason}" for path, reason in report.left_out))
    yield from _section("equal files", (" = ".join(group.paths) for group in report.duplicates))


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    """Yield a title and the first lines, if there are any."""
    section = list(lines)
    if section:
        yield f"\n{title}: {len(section)}"
        yield from (f"  {printable(line)}" for line in section[:MAX_LISTED])
    if len(section) > MAX_LISTED:
        yield f"  and {len(section) - MAX_LISTED} more; --json has all"


@cli_command("clipadapter doctor photos/ --html doctor.html", extra="lite,doctor")
def doctor(
    out: Output,
    data: Path = argument(),
    split: str | None = options.split_option,
    page: Path | None = option("--html", "HTML page to write, with the pictures in it."),
    force: bool = force_option,
    model: Path | None = option(
        "--model",
        "Fitted model whose encoder is used; without it and --encoder, the encoder that fit takes by default.",
    ),
    strict: bool = flag("--strict", "Exit with 1 if a finding is severe."),
    seed: int = options.seed_option,
    encoder: options.EncoderOptions = options_of(options.EncoderOptions, without=["quality"]),
    prompts: options.PromptOptions = options_of(options.PromptOptions),
) -> None:
    """Find problems in the labelled pictures in DATA. Nothing is changed.

    Finds copies within and between classes and splits, labels that are likely wrong, classes that are confused with
    each other, class names that the encoder does not understand, small classes, and pictures that are dark, blurred,
    tiny or long. Findings are sorted: severe, warning, note.

    The encoder decides which names are understood and which labels look wrong: give the one that the model is fitted
    with, by --encoder or --model.
    """
    require_installed("imagehash", "doctor", "the search for near duplicates")
    require_installed("cleanlab", "doctor", "the search for wrong labels")
    check_output_file(page, "page of doctor", "doctor", data, suffixes=options.PAGE_SUFFIXES, force=force)
    dataset = open_dataset(data, split, class_names=prompts.class_names)
    from clipadapter.classifier import FewShotClassifier  # imports torch, so only after the checks
    from clipadapter.doctor import diagnose

    prompt_parameters = prompts.classifier_parameters(dataset.class_names)
    if model is None:
        classifier = encoder.create_classifier(out, **prompt_parameters)
    else:
        if encoder.uris != ("auto",):
            raise InputError("--model and --encoder both say the encoder: give one of them")
        device = options.find_device(encoder.device)
        own = FewShotClassifier.load(model, device=device, **encoder.run_parameters).encoder_
        out.note(f"encoder {own.info.name}: that of {printable(model)}")
        classifier = FewShotClassifier(own, progress=out.progress, **encoder.run_parameters, **prompt_parameters)
    opened = classifier.encoder_
    diagnosis = diagnose(dataset, classifier, seed=seed, progress=out.progress)
    options.note_backend(opened, classifier.encoder_, out)
    out.result(diagnosis.to_dict(), diagnosis.to_text(MAX_LISTED), [diagnosis.to_html(page)] if page else [])
    if strict and diagnosis.n_severe:
        raise Failure(f"{diagnosis.n_severe} of {len(diagnosis.findings)} findings are severe")
