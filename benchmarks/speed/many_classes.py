"""Thousands of classes: fit, 2,000 predictions and memory of five heads, and of the whole `FewShotClassifier`.

Every row is measured in a process of its own, which is killed at the limit. "path NAME" is `fit_features` with default
calibration and rejection, saving the model, loading it, and the answers to 2,000 rows of features. The tree that is
measured is the one that Python finds, so that two trees are compared by two calls:

    python benchmarks/speed/many_classes.py --out after.md
    PYTHONPATH=OTHER_TREE/src python benchmarks/speed/many_classes.py --out before.md

"even" features are clusters in all directions, as in head_costs.py. "hard" ones have class means in a subspace, noise
that lies partly in it, a common offset, and text that is correlated with the means.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _output import add_json, write_json
from head_costs import QUERIES, in_a_process, make, peak_mb

from clipadapter import FewShotClassifier
from clipadapter.classifier.answers import answer_features
from clipadapter.encoders.toy import ToyEncoder
from clipadapter.features import FeatureSet
from clipadapter.heads import TextFeatures, create_head
from clipadapter.utils.blocks import Block

HEADS = ("gda", "tip-adapter", "linear-probe", "clip-adapter", "auto")
SIZES = ("10000x4x512", "1000x100x768")
COLUMNS = ("fit s", "save s", "load s", "predict s", "CPU s", "peak MB", "accuracy")


def hard(classes: int, shots: int, d: int, seed: int = 0):
    """As `head_costs.make`, with correlated features."""
    rng = np.random.default_rng(seed)
    rank = d // 8
    scales = np.arange(1, rank + 1, dtype=np.float32) ** -0.5
    basis = rng.standard_normal((rank, d), dtype=np.float32) / np.sqrt(d, dtype=np.float32) * scales[:, None]

    def within(n, length):
        inside = rng.standard_normal((n, rank), dtype=np.float32) @ basis
        inside /= np.sqrt((inside**2).sum(axis=1).mean())
        noise = rng.standard_normal((n, d), dtype=np.float32) / np.sqrt(d, dtype=np.float32)
        return np.float32(length) * (np.float32(0.6) * inside + np.float32(0.8) * noise)

    means = rng.standard_normal((classes, rank), dtype=np.float32) @ basis
    means /= np.linalg.norm(means, axis=1).mean()
    offsets = 2 * rng.standard_normal((2, d), dtype=np.float32) / np.sqrt(d, dtype=np.float32)
    names = np.array([f"class {i:05d}" for i in range(classes)])
    labels, truth = np.repeat(np.arange(classes), shots), rng.integers(classes, size=QUERIES)
    text = TextFeatures(names.tolist(), means + within(classes, 0.6) + offsets[0])
    shots_of_classes, queries = (means[rows] + within(len(rows), 0.9) + offsets[1] for rows in (labels, truth))
    return shots_of_classes, names[labels], queries, names[truth], text


def measure_path(head: str, made: tuple) -> dict[str, float]:
    """The whole classifier, in this process."""
    X, y, queries, truth, text = made

    encoder = ToyEncoder()  # it is asked for nothing but its name and width
    encoder.info = replace(encoder.info, dim=X.shape[1], blocks=(Block("final", X.shape[1]),))
    support = FeatureSet(X, tuple(y.tolist()), tuple(text.labels))
    model = FewShotClassifier(encoder=encoder, head=head)
    model.prompts_ = {name: (f"a photo of a {name}.",) for name in text.labels}
    start = time.perf_counter()
    model.fit_features(support, text)
    fitted = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model")
        saved = time.perf_counter()
        model = FewShotClassifier.load(Path(folder) / "model", encoder=encoder)
        loaded = time.perf_counter()
    answers = answer_features(model._to_model(), queries[:, None], {"reject": 0.05})
    named = [answers.prediction(i, "", model.class_names_).nearest for i in range(len(queries))]
    done = time.perf_counter()
    return {
        "fit s": fitted - start,
        "save s": saved - fitted,
        "load s": loaded - saved,
        "predict s": done - loaded,
        "accuracy": 100 * float((np.array(named) == truth).mean()),
    }


def measure_head(head: str, made: tuple) -> dict[str, float]:
    """One head, in this process."""
    X, y, queries, truth, text = made
    start = time.perf_counter()
    fitted = create_head(head).fit(X, y, text=text)
    middle = time.perf_counter()
    found = fitted.predict(queries)
    return {
        "fit s": middle - start,
        "predict s": time.perf_counter() - middle,
        "accuracy": 100 * float((found == truth).mean()),
    }


def measure(name: str, size: str, features: str, threads: int) -> dict[str, float]:
    """One row of the table, in this process."""
    torch.set_num_threads(threads)
    made = (hard if features == "hard" else make)(*map(int, size.split("x")))
    before = time.process_time()
    head = name.removeprefix("path ")
    result = measure_head(head, made) if head == name else measure_path(head, made)
    return {**result, "CPU s": time.process_time() - before, "peak MB": peak_mb()}


def row(name: str, found: dict[str, float] | str) -> str:
    if isinstance(found, str):
        return f"| {name} | {found} |" + " |" * (len(COLUMNS) - 1)
    cells = (f"{found[column]:.{0 if column == 'peak MB' else 1}f}" if column in found else "" for column in COLUMNS)
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="heads, or 'path NAME'; all if none is given")
    parser.add_argument("--size", action="append", help="classes x shots x width; may be given again")
    parser.add_argument("--features", choices=("even", "hard"), default="hard")
    parser.add_argument("--limit-seconds", type=float, default=1200.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    add_json(parser)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        print(json.dumps(measure(args.rows[0], args.size[0], args.features, args.threads)))
        return
    lines: list[str] = []
    rows: list[dict] = []
    for size in args.size or SIZES:
        title = f"{size} (classes x shots x width), {args.features} features, {QUERIES} queries, {args.threads} threads"
        lines += [title, "", "| | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
        for name in args.rows or [*HEADS, "path gda", "path auto"]:
            arguments = [name, "--size", size, "--features", args.features, "--threads", str(args.threads)]
            costs = in_a_process(__file__, arguments, args.limit_seconds)
            lines.append(row(name, costs))
            rows.append({"head": name, "size": size} | ({"error": costs} if isinstance(costs, str) else costs))
            print(lines[-1], flush=True)
        lines.append("")
    print("\n".join(lines))
    write_json(args.json, features=args.features, queries=QUERIES, threads=args.threads, rows=rows)
    if args.out:
        args.out.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
