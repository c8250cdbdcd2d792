"""What the benchmarks of heads share: options, features, and records that let a stopped run continue."""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
from few_shot_features import read

from clipadapter import FewShotClassifier, load_dataset


def make_parser(description: str, shots: str, seeds: int) -> argparse.ArgumentParser:
    """A parser with the options of all benchmarks of heads: encoder, shots, seeds and out."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--shots", default=shots, help="separated by commas")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--out", type=Path, required=True, help="folder for runs.jsonl and table.md")
    return parser


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add SOURCE and TEST, folders of pictures; or SOURCE alone, a folder of published features."""
    parser.add_argument("source", type=Path)
    parser.add_argument("test", type=Path, nargs="?")
    parser.add_argument("--scale", type=float, default=100.0, help="exp(logit_scale) of published features")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, make the output folder and silence warnings."""
    args = parser.parse_args()
    args.shots = [int(number) for number in args.shots.split(",")]
    args.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    return args


def load_features(args: argparse.Namespace) -> tuple:
    """Features and labels of the source and of the test part (None: the rows not drawn), and class text."""
    if args.test is None:
        features, text = read(args.source, args.scale)
        return features.plain, np.array(features.y), None, None, text
    model = FewShotClassifier(encoder=args.encoder, precision="fp32", progress=True)
    train, test = load_dataset(args.source), load_dataset(args.test)
    names = train.class_names
    parts = [model.extract_features(part.paths, part.labels, names) for part in (train, test)]
    text = model.encode_classes(names)
    return parts[0].plain, np.array(parts[0].y), parts[1].plain, np.array(parts[1].y), text


class Records:
    """Results as lines of ``runs.jsonl``, written at once so that a stopped run continues.

    Args:
        folder: of the file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "runs.jsonl"
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.rows = [json.loads(line) for line in lines]

    def keys(self, *fields: str) -> set[tuple]:
        """The values of these fields in all rows."""
        return {tuple(row[field] for field in fields) for row in self.rows}

    def add(self, *rows: dict) -> None:
        """Append rows to the file."""
        self.rows += rows
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def write_table(text: str, folder: Path) -> None:
    """Write ``table.md`` and print it."""
    (folder / "table.md").write_text(text, encoding="utf-8")
    print(text)
