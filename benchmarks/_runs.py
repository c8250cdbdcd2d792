"""What the benchmarks of heads share: options, features, and records that let a stopped run continue."""

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from few_shot_features import read

from clipadapter import FewShotClassifier, load_dataset
from clipadapter.data import draw_shots
from clipadapter.heads import TextFeatures


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


class Draw(NamedTuple):
    """Shots, and the pictures that a head fitted to them is measured on.

    Args:
        shots: shots per class.
        seed: of the draw.
        X: (n, d) features of the shots.
        y: (n,) labels of the shots.
        Q: (m, d) features of the test part.
        truth: (m,) labels of the test part.
        text: class text.
    """

    shots: int
    seed: int
    X: np.ndarray
    y: np.ndarray
    Q: np.ndarray
    truth: np.ndarray
    text: TextFeatures


def draw_rows(y: np.ndarray, shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the shots and their labels."""
    rows = np.array(draw_shots(list(y), shots, seed))
    return rows, y[rows]


def each_draw(
    args: argparse.Namespace, draw: Callable[[np.ndarray, int, int], tuple[np.ndarray, np.ndarray]] = draw_rows
) -> Iterator[Draw]:
    """Every draw of the options, by seed and number of shots. Without a test part it is the rows not drawn.

    Args:
        args: options of `make_parser` and `add_source`.
        draw: gives rows and labels of the shots, from all labels, shots per class and a seed.
    """
    X, y, Q, truth, text = load_features(args)
    for seed in range(args.seeds):
        for shots in args.shots:
            rows, labels = draw(y, shots, seed)
            others = np.setdiff1d(np.arange(len(y)), rows)
            queries, query_labels = (X[others], y[others]) if Q is None else (Q, truth)
            yield Draw(shots, seed, X[rows], labels, queries, query_labels, text)


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
