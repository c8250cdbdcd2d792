"""``clipadapter demo``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipadapter.cli.commands.compare import comparison_record, note_comparison
from clipadapter.cli.encoder_options import EncoderOptions
from clipadapter.cli.groups import Section, cli_command
from clipadapter.cli.inputs import check_output_folder
from clipadapter.cli.option_types import ENCODER_URI, FOLDER
from clipadapter.cli.options import option, option_group, output_options, seeds_option, shots_option
from clipadapter.cli.output import Output, note_kept
from clipadapter.files import quote_path

if TYPE_CHECKING:
    from clipadapter.bench import Comparison
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.demo import DemoData, SheetAnswer

HEADS = ("zero-shot", "linear-probe", "clip-adapter", "auto")
SHOWN_HEAD = "auto"
"""The head of the saved model, whose answers are on the sheet."""
DEFAULT_ENCODERS = ("lite",)
PRETRAINED_CLIP = "open_clip:ViT-B-32/laion2b_s34b_b79k"


@dataclass(frozen=True)
class DemoEncoderOptions(EncoderOptions):
    """The same with the encoder that needs no network by default."""

    uris: tuple[str, ...] = option(
        "--encoder",
        default=DEFAULT_ENCODERS,
        type=ENCODER_URI,
        multiple=True,
        metavar="URI",
        help="Encoder; 'clipadapter encoders' lists them. May be repeated.",
    )


@cli_command("clipadapter demo --data my-pictures/ --shots 1,4", Section.START, 6, extra="demo")
@click.option(
    "--data",
    type=FOLDER,
    help="Your own folder or table, or a named data set such as imagenette, which is downloaded (94 MB); by default "
    "pictures of fabric, without network.",
)
@option_group("encoder_options", DemoEncoderOptions, only=("uris", "quality", "cache", "max_pixels"))
@shots_option
@seeds_option
@click.option(
    "--out", "folder", type=FOLDER, default="clipadapter-demo", help="Folder for table, plots, records and a model."
)
@output_options
def command(
    data: Path | None, encoder_options: EncoderOptions, shots: list[int], seeds: int, folder: Path, out: Output
) -> None:
    """Show the whole workflow on pictures of fabric, without network: compare, fit, save, explain.

    zero-shot, linear-probe, clip-adapter and auto are fitted to the same few pictures. At the end there are a table, a
    learning curve, a sheet of test pictures with answers and heat maps, and what the figures mean in words.

    If the data has the splits train and test, shots are drawn from train, and the heads are measured on test. Else
    every other picture of each class is a test picture. Of more than 1,000 test pictures, 1,000 are drawn. An
    interrupted demo continues where it was.
    """
    from clipadapter.demo import open_demo_data

    check_output_folder(folder)
    pictures = open_demo_data(data, out.note, progress=out.progress)
    from clipadapter.bench import compare, table
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.demo import Results, describe_findings
    from clipadapter.heads import create_head

    out.note(f"{pictures.describe(shots, seeds)}\n")
    encoders = encoder_options.open(out)
    encoder = encoders[0]
    model = FewShotClassifier(
        encoders,
        SHOWN_HEAD,
        quality=encoder_options.quality,
        templates=pictures.templates,
        cache=encoder_options.store,
        progress=out.progress,
    )
    note_kept(f"the records of finished fits are in {folder}, and the same command makes only the other ones")
    records, heads = folder / "runs.jsonl", {name: create_head(name) for name in HEADS}
    draws = range(1, seeds + 1)
    result = compare(
        model,
        pictures.train,
        pictures.test,
        heads,
        shots,
        draws,
        records=records,
        progress=out.progress,
        drawn_only=True,
    )
    note_comparison(result, out)
    title = f"{pictures.name} with {encoder.info.name}"
    reference = pictures.constant_answer
    files = [records, *result.write(folder, title, metric=pictures.metric, reference=reference)]
    answers = _fit_and_explain(model, result, pictures, folder / "model", max(shots))
    files += [_draw_answers(answers, folder, max(shots)), folder / "model"]
    findings = describe_findings(Results.from_runs(result.runs, pictures, result.test.y))
    can_look_closer = encoder_options.quality != "best" and encoder.second_size() is not None
    closer = _closer_command(data, encoder_options.uris, folder) if can_look_closer else ""
    steps = _next_steps(encoder.info.name, files[-1], answers, closer)
    beside = "accuracy" if pictures.metric != "accuracy" else None
    text = [
        table(result.runs, pictures.metric, reference=reference, beside=beside),
        "\n".join(f"{path}: {what}" for path, what in zip(files, _describe_files(answers), strict=True)),
        "\n".join(findings),
        steps,
    ]
    record = {
        **comparison_record(result, files, pictures.metric),
        **pictures.to_dict(),
        "answers": [answer.to_dict() for answer in answers],
        "findings": findings,
    }
    out.result(record, "\n\n".join(part.strip() for part in text if part))


def _fit_and_explain(
    model: FewShotClassifier, result: Comparison, pictures: DemoData, folder: Path, shots: int
) -> list[SheetAnswer]:
    """Fit and save a model, load it, and explain its answers for some test pictures."""
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.demo import explain_some

    first = next(run for run in result.runs if run.shots == shots)
    model.fit_features(result.shots(first), result.text).save(folder)
    loaded = FewShotClassifier.load(folder, encoder=model.encoder_, cache=model.cache)
    return explain_some(loaded, pictures.test)


def _draw_answers(answers: Sequence[SheetAnswer], folder: Path, shots: int) -> Path:
    from clipadapter.demo import draw_sheet

    n_right = sum(answer.is_right for answer in answers)
    title = (
        f"{len(answers)} test pictures, drawn at random: {SHOWN_HEAD} with {shots} shots per class is right on "
        f"{n_right}\nBeside each picture: where in it the answer is seen (yellow), and where not (violet)"
    )
    return draw_sheet(answers, folder / "answers.png", title)


def _describe_files(answers: Sequence[SheetAnswer]) -> list[str]:
    return [
        "the record of every fit; a second run continues from it",
        "the table above and others",
        "the learning curve",
        f"{len(answers)} test pictures with their answers, and where in the picture each is seen",
        "the fitted model",
    ]


def _closer_command(data: Path | None, uris: Sequence[str], folder: Path) -> str:
    """The command of the same demo at a larger size."""
    named = "" if data is None else f"--data {quote_path(data)} "
    named += "".join(f"--encoder {uri} " for uri in uris if uris != DEFAULT_ENCODERS)
    return f"clipadapter demo {named}--quality best --out {quote_path(folder.with_name(f'{folder.name}-best'))}"


def _next_steps(encoder: str, model: Path, answers: Sequence[SheetAnswer], closer: str) -> str:
    """The commands to go on with; ``closer`` is that of the same demo at a larger size, empty if there is none."""
    wrong = [answer for answer in answers if not answer.is_right]
    subject = (wrong or answers)[0].path
    lines = [
        f"Next, see why the model is {'wrong' if wrong else 'right'} on one of the pictures, or try your own, in one "
        "folder per class:",
        f"  clipadapter explain {quote_path(model)} {quote_path(subject)} --out why.png",
        "  clipadapter demo --data YOUR_FOLDER",
    ]
    if closer:
        lines += ["Marks of a few pixels are seen better at a larger size, in several times the time:", f"  {closer}"]
    if encoder == "lite":
        lines += [
            "lite is for trying. For work, take a real CLIP, which is downloaded once:",
            f"  clipadapter demo --data YOUR_FOLDER --encoder {PRETRAINED_CLIP}",
        ]
    return "\n".join(lines)
