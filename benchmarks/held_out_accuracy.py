"""How far the accuracy that `fit` prints is from that on new pictures, and how often its interval holds it.

    python benchmarks/held_out_accuracy.py FOLDER... --encoder lite --heads auto,linear-probe --out rows.jsonl

Each folder has one folder per class, or train and test above them. For each draw, 10 classes are drawn if there are
more, and shots of each; all other pictures of these classes are the new ones. One line per fit, then a table for
docs/tutorials/own-pictures.md.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clipadapter import FewShotClassifier
from clipadapter.data import draw_shots, load_dataset

MIN_NEW_PICTURES = 3
"""New pictures that each class must have."""


def measure(folder: Path, head: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a record of each draw and number of shots."""
    dataset = load_dataset(folder)
    model = FewShotClassifier(args.encoder, head)
    model.prepare_encoder(model._build_head())
    features = model.extract_features(dataset.paths, dataset.labels, dataset.class_names, views=1)
    for seed in range(1, args.seeds + 1):
        n_classes = min(args.classes, len(dataset.class_names))
        names = sorted(np.random.default_rng(seed).choice(dataset.class_names, n_classes, replace=False).tolist())
        rows = np.flatnonzero(np.isin(features.y, names))
        labels = [features.y[row] for row in rows]
        for shots in args.shots:
            if min(labels.count(name) for name in names) < shots + MIN_NEW_PICTURES:
                continue
            drawn = draw_shots(labels, shots, seed)
            new = np.setdiff1d(np.arange(len(rows)), drawn)
            support = replace(features.take(rows[drawn].tolist()), class_names=tuple(names))
            model.fit_features(support, model.encode_classes(names))
            known = model.uncertainty_.accuracy
            predicted = model.head_.predict(features.plain[rows[new]])
            accuracy = float(np.mean(predicted == np.array(labels)[new]))
            if known is not None:
                facts = {"set": folder.name, "head": head, "seed": seed, "shots": shots, "new": accuracy}
                yield {**facts, "held_out": known.accuracy, "interval": known.interval, "n": known.shots}


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--encoder", default="auto")
    parser.add_argument("--heads", type=lambda text: text.split(","), default=["auto", "linear-probe"])
    parser.add_argument("--shots", type=lambda text: [int(n) for n in text.split(",")], default=[2, 3, 4, 8, 16])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    records = defaultdict(list)
    with args.out.open("w") as file:
        for folder in args.folders:
            for head in args.heads:
                for record in measure(folder, head, args):
                    file.write(json.dumps(record) + "\n")
                    file.flush()
                    records[head, record["shots"]].append(record)
    print("| head | shots | fits | held out % | new % | difference | in the interval % |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for (head, shots), rows in records.items():
        held_out, new = (100 * np.mean([row[key] for row in rows]) for key in ("held_out", "new"))
        inside = 100 * np.mean([row["interval"][0] <= row["new"] <= row["interval"][1] for row in rows])
        print(f"| {head} | {shots} | {len(rows)} | {held_out:.1f} | {new:.1f} | {held_out - new:+.1f} | {inside:.0f} |")


if __name__ == "__main__":
    main()
