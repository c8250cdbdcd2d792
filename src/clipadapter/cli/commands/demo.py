"""``clipadapter demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipadapter.cli import options
from clipadapter.cli.commands.compare import comparison_record, note_comparison, shots_option
from clipadapter.cli.declarations import cli_command, option, options_of
from clipadapter.cli.inputs import check_output_folder
from clipadapter.cli.options import FOLDER
from clipadapter.cli.output import Output, note_kept
from clipadapter.utils.files import path_without_links, quote_path

SHOWN_HEAD = "auto"
"""The head of the table beside the class names alone, and of the saved model."""


@cli_command("clipadapter demo --data my-pictures/ --shots 1,4", extra="demo")
def command(
    out: Output,
    data: Path | None = option(
        "--data",
        "Your own folder or table, or a named data set such as imagenette, which is downloaded (94 MB); by "
        "default pictures of fabric, without network.",
        type=FOLDER,
    ),
    encoder_options: options.EncoderOptions = options_of(
        options.EncoderOptions, only=("uris", "quality", "cache", "max_pixels"), uris=("lite",)
    ),
    shots: list[int] = shots_option("1,4,16"),
    seeds: int = options.seeds_option,
    folder: Path = option(
        "--out", "Folder for table, plots, records and a model.", type=FOLDER, default="clipadapter-demo"
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
    from clipadapter.demo import Results, draw_answers, open_demo_data

    check_output_folder(folder)
    pictures = open_demo_data(data, out.note, progress=out.progress)
    from clipadapter.bench import compare
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.data import draw_shots
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
    measured = FewShotClassifier(encoders, SHOWN_HEAD, quality=quality["name"], **common)
    heads = {name: create_head(name) for name in ("zero-shot", SHOWN_HEAD)}
    records, draws = folder / "runs.jsonl", range(1, seeds + 1)
    result = compare(measured, train, pictures.test, heads, shots, draws, records=records, progress=out.progress)
    note_comparison(result, out)
    title = f"{pictures.name} with {encoders[0].info.name}"
    page, curve = result.write(folder, title, metric=pictures.metric, reference=pictures.constant_answer)
    about = f"{SHOWN_HEAD}, {most} shots per class"
    answers, sheet = draw_answers(model, pictures.test, result.test, about, folder)
    results = Results(result.runs, pictures, result.test.y)
    findings = results.findings()
    n_answers = len(answers)
    files = {
        curve: "the learning curve",
        sheet: "1 test picture with its answer" if n_answers == 1 else f"{n_answers} test pictures with their answers",
        page: "all figures as tables",
        records: "the record of every fit; a second run continues from it",
        folder / "model": "the fitted model",
    }
    own = "YOUR_FOLDER" if data is None or not data.exists() else quote_path(data)
    subject = next((answer for answer in answers if not answer.is_right), answers[0])
    text = [
        results.table(),
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
    out.result(record, "\n\n".join(filter(None, text)))
