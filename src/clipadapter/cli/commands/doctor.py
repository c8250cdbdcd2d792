"""``clipadapter doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.cli.encoder_options import EncoderOptions, ModelEncoderOptions, note_backend
from clipadapter.cli.fit_options import PromptOptions
from clipadapter.cli.groups import cli_command
from clipadapter.cli.inputs import check_output_file, open_dataset
from clipadapter.cli.options import FILE, FOLDER, argument, option, options_of, seed_option, split_option
from clipadapter.cli.output import MAX_LISTED, Failure, Output
from clipadapter.errors import InputError, require_installed
from clipadapter.utils.files import printable

if TYPE_CHECKING:
    from clipadapter.classifier import FewShotClassifier


@cli_command("clipadapter doctor photos/ --html doctor.html", extra="lite,doctor")
def command(
    out: Output,
    data: Path = argument(type=FOLDER),
    split: str | None = split_option,
    page: Path | None = option("--html", type=FILE, help="HTML page to write, with the pictures in it."),
    model: Path | None = option(
        "--model",
        type=FOLDER,
        help="Fitted model whose encoder is used; without it and --encoder, the encoder that fit takes by default.",
    ),
    strict: bool = option("--strict", default=False, is_flag=True, help="Exit with 1 if a finding is severe."),
    seed: int = seed_option,
    encoder_options: EncoderOptions = options_of(EncoderOptions, without=["quality"]),
    prompts: PromptOptions = options_of(PromptOptions),
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
    check_output_file(page, data)
    dataset = prompts.rename_classes(open_dataset(data, split))
    from clipadapter.doctor import diagnose  # imports torch, so only after the checks

    prompt_parameters = prompts.classifier_parameters(dataset.class_names)
    if model is None:
        classifier = encoder_options.create_classifier(out, **prompt_parameters)
    else:
        classifier = _create_with_encoder_of(model, encoder_options, prompt_parameters, out)
    opened = classifier.encoder_
    diagnosis = diagnose(dataset, classifier, seed=seed, progress=out.progress)
    note_backend(opened, classifier.encoder_, out)
    files = [diagnosis.to_html(page)] if page else []
    wrote = f"\n\nwrote {files[0]}" if files else ""
    out.result({**diagnosis.to_dict(), "files": [str(file) for file in files]}, diagnosis.to_text(MAX_LISTED) + wrote)
    if strict and diagnosis.n_severe:
        raise Failure(f"{diagnosis.n_severe} of {len(diagnosis.findings)} findings are severe")


def _create_with_encoder_of(
    model: Path, options: EncoderOptions, prompt_parameters: dict[str, Any], out: Output
) -> FewShotClassifier:
    """Create a classifier with the encoder of a fitted model."""
    if options.uris != ("auto",):
        raise InputError("--model and --encoder both say the encoder: give one of them")
    from clipadapter.classifier import FewShotClassifier

    run = {name: value for name, value in vars(options).items() if name not in ("uris", "quality")}
    encoder = ModelEncoderOptions(**run).load(model).encoder_
    out.note(f"encoder {encoder.info.name}: that of {printable(model)}")
    return FewShotClassifier(encoder, progress=out.progress, **options.run_parameters, **prompt_parameters)
