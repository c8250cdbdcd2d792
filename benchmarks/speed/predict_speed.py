"""`clipadapter predict` from the shell beside `embed`, on the same pictures; and from a table of features.

Commands take turns, each in a process of its own and with an empty feature store, so that each reads, hashes, decodes
and encodes all pictures. "share" is the rate of `embed` that is left. A second checkout, such as one of an earlier
commit, takes part by `--base`. Peak memory is of the process, with a quarter of the pictures and with all.

Then rows of random features, 512 numbers each, for models of 100 and of 1,000 classes (head gda), from Parquet to
Parquet, beside what each step takes alone: to read the column, to multiply it by a matrix of as many columns as
classes, and to write the predictions. Rates are of the clock; where other programs use the machine, seconds of CPU say
more.

    python benchmarks/speed/predict_speed.py PICTURES --base OTHER_CHECKOUT --json predict.json    # one folder a class
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import copy_pictures, find_pictures, print_table, run_command, script_parser, timed, write_json

from clipadapter import FewShotClassifier, load_dataset
from clipadapter.classifier.answers import predict_columns
from clipadapter.classifier.fitting import ShotFit
from clipadapter.cli.prediction_files import AnsweredRows, PredictionFile
from clipadapter.data import draw_shots
from clipadapter.encoders import EncoderInfo
from clipadapter.features import FeatureRow, FeatureSet, open_feature_table, write_parquet
from clipadapter.heads import TextFeatures, create_head
from clipadapter.persistence import Model, load_model, save_model
from clipadapter.uncertainty import UncertaintyOptions

SOURCE = Path(__file__).parents[2] / "src"
CLASSES, SHOTS = 20, 4
WIDTH, BATCH = 512, 8192
ROW_INFO = EncoderInfo("toy", WIDTH, 32, 100.0, None, "MIT", "benchmark")


def run(arguments: list[str], source: Path = SOURCE, output: Path | None = None) -> dict[str, float]:
    """Seconds, seconds of CPU and peak MB of a command."""
    command = [sys.executable, "-m", "clipadapter", *arguments, "-q"]
    return run_command(command, {"PYTHONPATH": str(source)}, output=output)


def show(name: str, n: int, result: dict[str, float], reference: dict[str, float] | None = None) -> dict[str, Any]:
    row = {"name": name, "n": n, "rate": n / result["seconds"], "seconds": result["seconds"], "cpu": result["cpu"]}
    row["peak_mb"] = result.get("mb", 0.0)  # a step in this process has none of its own
    if reference is not None:
        row["share"] = reference["seconds"] / result["seconds"]
        row["cpu_share"] = reference["cpu"] / result["cpu"]
    print(*row.values(), flush=True)
    return row


def fit_model(pictures: Path, folder: Path, args: argparse.Namespace) -> None:
    dataset = load_dataset(pictures)
    names = dataset.class_names[:CLASSES]
    samples = [sample for sample in dataset.samples if sample.label in names]
    rows = draw_shots([sample.label for sample in samples], SHOTS, 0)
    model = FewShotClassifier(
        args.encoder, args.head, quality="fast", backend=args.backend, precision=args.precision, cache=None
    )
    model.fit([samples[i].path for i in rows], [samples[i].label for i in rows]).save(folder)


def measure_pictures(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """`embed` and `predict` in turn, with a quarter of the pictures and with all."""
    fit_model(args.pictures, folder / "model", args)
    backend = ["--backend", args.backend, "--precision", args.precision]
    rows, paths = [], find_pictures(args.pictures)
    for count in (args.count // 4, args.count):
        pictures = folder / f"{count}"
        copy_pictures(paths, count, pictures)
        commands = {
            "embed": ["embed", str(pictures), "--encoder", args.encoder, "--quality", "fast", *backend],
            "predict, JSON lines": ["predict", str(folder / "model"), str(pictures), "--json", *backend],
            "predict, Parquet": ["predict", str(folder / "model"), str(pictures), *backend, "--out"],
        }
        sources = {"": SOURCE, **({"base: ": args.base / "src"} if args.base and count == args.count else {})}
        for number in range(args.rounds if count == args.count else 1):
            for prefix, source in sources.items():
                reference = None
                for name, command in commands.items():
                    target = [str(folder / f"{count}-{number}.parquet")] if "Parquet" in name else []
                    store = folder / "features.sqlite"
                    result = run([*command, *target, "--cache", str(store)], source, folder / "out.jsonl")
                    for file in folder.glob("features.sqlite*"):
                        file.unlink()
                    rows.append(show(prefix + name, count, result, reference))
                    reference = reference or result
    return rows


def make_rows(path: Path, count: int) -> None:
    base = np.random.default_rng(0).standard_normal((BATCH, WIDTH)).astype(np.float32)

    def rows() -> Any:
        for i in range(count):
            yield FeatureRow(f"pictures/{i:08}.jpg", None, "all", np.roll(base[i % BATCH], i // BATCH))

    write_parquet(path, rows(), ROW_INFO)


def make_model(folder: Path, n_classes: int) -> None:
    rng = np.random.default_rng(n_classes)
    names = tuple(f"class {k:04}" for k in range(n_classes))
    means = rng.standard_normal((n_classes, WIDTH)).astype(np.float32)
    y = np.repeat(np.arange(n_classes), SHOTS)
    X = means[y] + 2 * rng.standard_normal((len(y), WIDTH)).astype(np.float32)
    text = TextFeatures(names, means + rng.standard_normal(means.shape).astype(np.float32), 100.0).with_order("given")
    support = FeatureSet(X, tuple(names[k] for k in y), names, {})
    fit = ShotFit(support, text, UncertaintyOptions()).fit(create_head("gda"))
    prompts = {name: [name] for name in names}
    save_model(folder, Model(fit.head, text, support, prompts, ROW_INFO, fit.uncertainty, fit.fold_heads))


def measure_rows(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """From a table of features, and each step alone."""
    path = folder / "rows.parquet"
    make_rows(path, args.rows)
    table = open_feature_table(path)
    features = np.random.default_rng(1).standard_normal((BATCH, WIDTH)).astype(np.float32)
    n_batches = -(-args.rows // BATCH)

    def read() -> None:
        for _ in table.batches(str(path), ["final"]):
            pass

    rows = [show("reading the features alone", args.rows, timed(read)[1])]
    for n_classes in (100, 1000):
        make_model(folder / f"model-{n_classes}", n_classes)
        weights, batch = torch.randn(WIDTH, n_classes), torch.from_numpy(features)
        product = timed(lambda: [batch @ weights for _ in range(n_batches)])[1]  # noqa: B023
        rows.append(show(f"the product alone, {n_classes} classes", args.rows, product))
        columns = predict_columns(load_model(folder / f"model-{n_classes}"), features, 1, {})
        names = [f"pictures/{i:08}.jpg" for i in range(BATCH)]
        block = AnsweredRows(names, [None] * BATCH, columns)

        def write(block: AnsweredRows = block) -> None:
            with PredictionFile(folder / "alone.parquet", {}) as file:
                for i in range(0, n_batches, 8):
                    file.write([block] * min(8, n_batches - i), f"{i:032x}")
                file.finish()

        rows.append(show(f"writing alone, {n_classes} classes", args.rows, timed(write)[1]))
        target = str(folder / f"answers-{n_classes}.parquet")
        command = ["predict", str(folder / f"model-{n_classes}"), str(path), "--out", target]
        rows.append(show(f"Parquet to Parquet, {n_classes} classes", args.rows, run(command)))
    return rows


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("pictures", type=Path, help="one folder a class")
    parser.add_argument("--count", type=int, default=10_000, help="pictures a command; 0 leaves pictures out")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of features; 0 leaves them out")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--head", default="linear-probe")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--base", type=Path, help="another checkout of this repository")
    parser.add_argument("--folder", type=Path, help="folder for pictures, rows and results; a temporary one by default")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        rows = measure_pictures(args, Path(name)) if args.count else []
        rows += measure_rows(args, Path(name)) if args.rows else []
    print_table(rows)
    write_json(args.json, count=args.count, n_rows=args.rows, rows=rows)


if __name__ == "__main__":
    main()
