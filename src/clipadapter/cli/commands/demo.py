"""``clipadapter demo``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.cli.commands.compare import comparison_record, note_comparison
from clipadapter.cli.encoder_options import EncoderOptions
from clipadapter.cli.groups import cli_command
from clipadapter.cli.inputs import check_output_folder
from clipadapter.cli.options import ENCODER_URI, FOLDER, option, options_of, seeds_option, shots_option
from clipadapter.cli.output import Output, note_kept
from clipadapter.utils.files import path_without_links, quote_path

if TYPE_CHECKING:
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.data import Dataset
    from clipadapter.demo import SheetAnswer
    from clipadapter.features import FeatureSet

SHOWN_HEAD = "auto"
"""The head of the table beside the class names alone, and of the saved model."""


@dataclass(frozen=True)
class DemoEncoderOptions(EncoderOptions):
    """The same with the encoder that needs no network by default."""

    uris: tuple[str, ...] = option(
        "--encoder",
        default=("lite",),
        type=ENCODER_URI,
        multiple=True,
        metavar="URI",
        help="Encoder; 'clipadapter encoders' lists them. May be repeated.",
    )


@cli_command("clipadapter demo --data my-pictures/ --shots 1,4", extra="demo")
def command(
    out: Output,
    data: Path | None = option(
        "--data",
        type=FOLDER,
        help="Your own folder or table, or a named data set such as imagenette, which is downloaded (94 MB); by "
        "default pictures of fabric, without network.",
    ),
    encoder_options: EncoderOptions = options_of(DemoEncoderOptions, only=("uris", "quality", "cache", "max_pixels")),
    shots: list[int] = shots_option("1,4,16"),
    seeds: int = seeds_option,
    folder: Path = option(
        "--out", type=FOLDER, default="clipadapter-demo", help="Folder for table, plots, records and a model."
    ),
) -> None:
    """Show the whole workflow on pictures of fabric, without network: fit, save, measure, explain.

    A model is fitted to a few pictures of each class and saved. Then class names alone and models of other numbers of
    pictures are measured on the same test pictures. There are a table, a learning curve, and a sheet of test pictures
    with their answers, on which the place to look at is marked and enlarged.

    If the data has the splits train and test, shots are drawn from train, and models are measured on test. Else every
    other picture of each class is a test picture. Of more than 300 test pictures, 300 are drawn. An interrupted demo
    continues where it was.
    """
    from clipadapter.demo import open_demo_data

    check_output_folder(folder)
    pictures = open_demo_data(data, out.note, progress=out.progress)
    from clipadapter.bench import compare
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.data import draw_shots
    from clipadapter.demo import Results, describe_findings, describe_table
    from clipadapter.heads import create_head

    out.note(f"{pictures.describe(shots, seeds)}\n")
    encoders, train, most = encoder_options.open(out), pictures.train, max(shots)
    common: dict[str, Any] = {"templates": pictures.templates, "cache": encoder_options.store, "progress": out.progress}
    model = FewShotClassifier(encoders, SHOWN_HEAD, quality=encoder_options.quality, **common)
    note_kept(f"the records of finished fits are in {folder}, and the same command makes only the other ones")
    rows = draw_shots(train.labels, most, seed=1)
    model.fit([train.paths[row] for row in rows], [train.labels[row] for row in rows], train.class_names)
    model.save(path_without_links(folder, "model"))
    quality = model.support_.provenance["quality"]
    out.note(f"with {most} of each class, the model {quality['why']}\n" if quality["why"] else "")
    records = folder / "runs.jsonl"
    result = compare(
        FewShotClassifier(encoders, SHOWN_HEAD, quality=quality["name"], **common),
        train,
        pictures.test,
        {name: create_head(name) for name in ("zero-shot", SHOWN_HEAD)},
        shots,
        range(1, seeds + 1),
        records=records,
        progress=out.progress,
    )
    note_comparison(result, out)
    title = f"{pictures.name} with {encoders[0].info.name}"
    page, curve = result.write(folder, title, metric=pictures.metric, reference=pictures.constant_answer)
    answers, sheet = _draw_answers(model, pictures.test, result.test, most, folder)
    results = Results.from_runs(result.runs, pictures, result.test.y)
    findings = describe_findings(results)
    files = {
        curve: "the learning curve",
        sheet: f"{len(answers)} test pictures with their answers",
        page: "all figures as tables",
        records: "the record of every fit; a second run continues from it",
        folder / "model": "the fitted model",
    }
    own = "YOUR_FOLDER" if data is None or not data.exists() else quote_path(data)
    subject = next((answer for answer in answers if not answer.is_right), answers[0])
    text = [
        describe_table(results),
        "\n".join(findings),
        "\n".join(f"{path}: {what}" for path, what in files.items()),
        f"Next, see why the model is {'right' if subject.is_right else 'wrong'} on one of the pictures, and fit one to "
        "your own, in one folder per class:\n"
        f"  clipadapter explain {quote_path(folder / 'model')} {quote_path(subject.path)} --out why.png\n"
        f"  clipadapter fit {own} --out model",
    ]
    record = {
        **comparison_record(result, list(files), pictures.metric),
        **pictures.to_dict(),
        "quality": quality,
        "answers": [answer.to_dict() for answer in answers],
        "findings": findings,
    }
    out.result(record, "\n\n".join(part for part in text if part))


def _draw_answers(
    model: FewShotClassifier, test: Dataset, features: FeatureSet, shots: int, folder: Path
) -> tuple[list[SheetAnswer], Path]:
    """Explain the answers for some pictures at random and for some that are wrong, and draw them."""
    from clipadapter.demo import SHEET_MISTAKES, draw_sheet, explain_some

    blocks = [block.name for block in model.encoder_.info.blocks]
    best = model.classify_features(features.select_blocks(blocks).plain).best
    truth = zip(best, features.y, features.provenance["rows"], strict=True)
    wrong = [test.samples[row] for k, label, row in truth if model.class_names_[k] != label]
    answers = explain_some(model, test)
    title = f"{len(answers)} test pictures drawn at random, {sum(answer.is_right for answer in answers)} right"
    shown = {answer.path for answer in answers}
    others = replace(test, samples=tuple(sample for sample in wrong if sample.path not in shown))
    if mistakes := explain_some(model, others, SHEET_MISTAKES):
        answers += mistakes
        title += f"; below, {len(mistakes)} of the {len(wrong)} mistakes on {len(features)}"
    is_rare = answers[0].explanation.rare_patches is not None
    place = "that differs most from the rest of its picture" if is_rare else "with the most evidence for the answer"
    title += f" ({SHOWN_HEAD}, {shots} shots per class)\nMarked, and enlarged: the place {place}"
    return answers, draw_sheet(answers, path_without_links(folder, "answers.png"), title)
