"""Fits that begin where an earlier one ended, beside fits from the beginning: seconds, and accuracy on other pictures.

SOURCE is what `bench run` takes: `textiles`, a folder or the name of a data set, or `features:FOLDER`. Shots are drawn
from its training part, and judged are up to 20 of the other pictures of each class in it; the test part is not opened.
Four changes, each made by `Head.fit_from` and by `Head.fit`: a class is added, examples are added (1 % of the shots,
ten at least), half as many labels are corrected, and, with --row N, classes are added one by one, N in a row.

"gone on" is the share of fits that did begin at the earlier one: where more than a tenth of the shots changed, as when
a third class is added, they don't. "same" is the share of other pictures that both fits call the same. Heads that learn
prompts need the text tower, which `features:` has not.

    python benchmarks/warm_start.py textiles --shots 8 --draws 5
    python benchmarks/warm_start.py features:FOLDER clip-adapter rla --shots 12 --classes 50 --row 20 --out warm.md
    python benchmarks/warm_start.py textiles coop kgcoop prograd --shots 4 --draws 2
"""

import argparse
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from clipadapter import FewShotClassifier
from clipadapter.bench.sources import load_feature_bundle, open_source
from clipadapter.data import draw_shots
from clipadapter.heads import TextFeatures, create_head, head_info, list_heads

MAX_TEST_PICTURES = 20
COLUMNS = ("gone on %", "full s", "warm s", "ratio", "full %", "warm %", "difference", "same %")


@dataclass
class Data:
    """Features (n, d) and labels of the training part; `text` makes class text of some names."""

    X: np.ndarray
    y: np.ndarray
    names: list[str]
    text: object


@dataclass
class Part:
    """What one fit sees: rows, their labels, and the classes in their order."""

    rows: np.ndarray
    labels: np.ndarray
    names: list[str]


def load(spec: str, encoder: str) -> Data:
    bundle = load_feature_bundle(spec)
    if bundle is not None:
        support, text = bundle.support, bundle.text
        place = {name: i for i, name in enumerate(text.labels)}

        def some(names):
            return TextFeatures(names, text.embeddings[[place[name] for name in names]], text.logit_scale)

        return Data(support.plain, np.array(support.y), list(text.labels), some)
    train = open_source(spec).train
    model = FewShotClassifier(encoder=encoder, precision="fp32")
    features = model.extract_features(train.paths, train.labels, train.class_names)
    return Data(features.plain, np.array(features.y), list(train.class_names), model.encode_classes)


def draw(data: Data, args, seed: int):
    """Rows of the shots and of other pictures, of some classes, and a generator."""
    rng = np.random.default_rng(seed)
    names = list(rng.permutation(data.names)[: args.classes])
    candidates = np.flatnonzero(np.isin(data.y, names))
    rows = candidates[np.array(draw_shots(list(data.y[candidates]), args.shots, seed))]
    others = np.setdiff1d(candidates, rows)
    test_rows = [rng.permutation(others[data.y[others] == name])[:MAX_TEST_PICTURES] for name in names]
    return names, rows, np.concatenate(test_rows), rng


def changes(data: Data, names, rows, rng):
    """What was fitted, and what is to be, by name."""
    y, few = data.y[rows], max(10, len(rows) // 100)
    new = Part(rows, y, names)
    left = y != names[-1]
    yield "class added", Part(rows[left], y[left], names[:-1]), new
    out = rng.permutation(len(rows))[:few]
    yield "examples added", Part(np.delete(rows, out), np.delete(y, out), names), new
    wrong = y.copy()
    wrong[rng.permutation(len(rows))[: few // 2]] = rng.choice(names, few // 2)
    yield "corrected", Part(rows, wrong, names), new


def fit(name: str, data: Data, part: Part, before=None):
    """A fitted head, and the seconds that it took."""
    head, text = create_head(name), data.text(part.names)
    start = time.perf_counter()
    if before is None:
        head.fit(data.X[part.rows], part.labels, text=text)
    else:
        head.fit_from(before, data.X[part.rows], part.labels, text=text)
    return head, time.perf_counter() - start


def compare(data: Data, test_rows, full, warm, seconds) -> list[float]:
    """Whether the second went on, seconds, accuracies and agreement of two fits."""
    rows = test_rows[np.isin(data.y[test_rows], full.classes_)]
    answers = [head.predict(data.X[rows]) for head in (full, warm)]
    accuracies = [100 * float((predicted == data.y[rows]).mean()) for predicted in answers]
    return [100.0 * ("changed_" in warm.state()), *seconds, *accuracies, 100 * float((answers[0] == answers[1]).mean())]


def add_one_by_one(name: str, data: Data, names, rows, test_rows, count: int) -> list[float]:
    """Classes added one by one; the seconds are of one fit."""
    y = data.y[rows]
    parts = []
    for k in range(len(names) - count, len(names) + 1):
        in_classes = np.isin(y, names[:k])
        parts.append(Part(rows[in_classes], y[in_classes], names[:k]))
    warm, _ = fit(name, data, parts[0])
    spent = 0.0
    for part in parts[1:]:
        warm, seconds = fit(name, data, part, warm)
        spent += seconds
    full, seconds = fit(name, data, parts[-1])
    return compare(data, test_rows, full, warm, (seconds, spent / count))


def measure(name: str, data: Data, args) -> dict[str, list[list[float]]]:
    """By change: what `compare` gives, a line a draw."""
    lines: dict[str, list[list[float]]] = {}
    for seed in range(args.draws):
        names, rows, test_rows, rng = draw(data, args, seed)
        for change, old, new in changes(data, names, rows, rng):
            before, _ = fit(name, data, old)
            (full, a), (warm, b) = fit(name, data, new), fit(name, data, new, before)
            lines.setdefault(change, []).append(compare(data, test_rows, full, warm, (a, b)))
        if args.row:
            line = add_one_by_one(name, data, names, rows, test_rows, args.row)
            lines.setdefault(f"{args.row} classes, one by one", []).append(line)
    return lines


def create_heads() -> list[str]:
    """Warm heads, but for those that train through a tower."""
    known = [head_info(name).cls for name in list_heads()]
    return [
        name for name, cls in zip(list_heads(), known, strict=True) if cls.supports_warm_start and not cls.needs_tower
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("heads", nargs="*", metavar="HEAD", help="all that features suffice for if none is given")
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--classes", type=int, help="so many, drawn by seed; all if not given")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--row", type=int, default=0, help="classes added one by one; 0 leaves that out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="file for the table")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    data = load(args.source, args.encoder)
    count = len(data.names) if args.classes is None else min(args.classes, len(data.names))
    lines = [
        f"{count} classes x {args.shots} shots x {data.X.shape[1]}, {args.draws} draws, {args.threads} threads",
        "",
        f"| head | change | {' | '.join(COLUMNS)} |",
        "|---|---|" + "---:|" * len(COLUMNS),
    ]
    print("\n".join(lines), flush=True)
    for name in args.heads or create_heads():
        for change, runs in measure(name, data, args).items():
            on, a, b, full, warm, same = np.mean(runs, axis=0)
            seconds, right = f"{a:.2f} | {b:.2f} | {a / b:.1f}", f"{full:.1f} | {warm:.1f} | {warm - full:+.1f}"
            lines.append(f"| {name} | {change} | {on:.0f} | {seconds} | {right} | {same:.1f} |")
            print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
