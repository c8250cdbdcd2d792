"""Seconds, memory and accuracy of heads, and of the whole `FewShotClassifier`, at sizes up to thousands of classes.

A head is fitted to random features and predicts 2,000 queries. "path NAME" is the whole classifier: `fit_features` with
default calibration and rejection, saving the model, loading it, and the answers to the queries as rows of features.
Each row is measured in a process of its own, so that its peak memory is its own, and is killed at the limit.
Transductive heads are given the queries as their unlabelled pictures; a head that takes two encoders gets one. "over
data MB" is by how much the row raised the peak of the process above that with the features made; "peak MB" is the
whole peak, of which importing Python, torch and scikit-learn is about 300.

    python benchmarks/speed/head_costs.py                                            # all heads, two sizes
    python benchmarks/speed/head_costs.py clip-adapter hoso --size 1000x16x1024 --limit-seconds 600
    python benchmarks/speed/head_costs.py gda auto "path gda" --size 10000x4x512 --features hard --limit-seconds 1200

The tree that is measured is the one that Python finds, so that two trees are compared by two calls, of which one has
PYTHONPATH=OTHER_TREE/src. "even" features are clusters in all directions. "hard" ones have class means in a subspace,
noise that lies partly in it, a common offset, and text that is correlated with the means.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _measure import peak_mb, print_table, script_parser, timed, write_json

from clipadapter import FewShotClassifier
from clipadapter.classifier.answers import answer_features
from clipadapter.encoders.toy import ToyEncoder
from clipadapter.features import FeatureSet
from clipadapter.heads import TextFeatures, create_head, list_heads
from clipadapter.utils.blocks import Block

QUERIES = 2000


def make(classes: int, shots: int, d: int, seed: int = 0):
    """Shots, labels, queries, their labels and class text: noise around class means, float32."""
    rng = np.random.default_rng(seed)

    def around(rows, spread):
        noise = rng.standard_normal(rows.shape, dtype=np.float32)
        noise *= spread / np.sqrt(d)  # in place: what is freed here would hide as much of what the head takes
        noise += rows
        return noise

    means = rng.standard_normal((classes, d), dtype=np.float32) / np.sqrt(d, dtype=np.float32)
    names = np.array([f"class {i}" for i in range(classes)])
    labels = np.repeat(np.arange(classes), shots)
    truth = rng.integers(classes, size=QUERIES)
    text = TextFeatures(names.tolist(), around(means, 3))
    return around(means[labels], 3), names[labels], around(means[truth], 3), names[truth], text


def hard(classes: int, shots: int, d: int, seed: int = 0):
    """As `make`, with class means in a subspace, noise partly in it, an offset, and text correlated with the means."""
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


def measure_head(name, X, y, queries, text):
    """Seconds of each step of one head, and its answers."""
    head = create_head(name)
    _, fit = timed(lambda: head.fit(X, y, text=text, unlabelled=queries if head.transductive else None))
    answers, predict = timed(lambda: head.predict(queries))
    return {"fit s": fit["seconds"], "predict s": predict["seconds"]}, answers


def measure_path(name, X, y, queries, text):
    """Seconds of each step of the whole classifier, and its answers."""
    encoder = ToyEncoder()  # it is asked for nothing but its name and width
    encoder.info = replace(encoder.info, dim=X.shape[1], blocks=(Block("final", X.shape[1]),))
    support = FeatureSet(X, tuple(y.tolist()), tuple(text.labels))
    model = FewShotClassifier(encoder=encoder, head=name)
    model.prompts_ = {label: (f"a photo of a {label}.",) for label in text.labels}
    with tempfile.TemporaryDirectory() as folder:
        _, fit = timed(lambda: model.fit_features(support, text))
        _, save = timed(lambda: model.save(Path(folder) / "model"))
        loaded, load = timed(lambda: FewShotClassifier.load(Path(folder) / "model", encoder=encoder))

    def predict() -> list[str]:
        answers = answer_features(loaded._to_model(), queries[:, None], {"reject": 0.05})
        return [answers.prediction(i, "", loaded.class_names_).nearest for i in range(len(queries))]

    answers, predicted = timed(predict)
    costs = {"fit s": fit, "save s": save, "load s": load, "predict s": predicted}
    return {step: cost["seconds"] for step, cost in costs.items()}, answers


def measure(name: str, size: str, features: str, threads: int) -> dict[str, float]:
    """One row of the table, in this process."""
    torch.set_num_threads(threads)
    X, y, queries, truth, text = (hard if features == "hard" else make)(*map(int, size.split("x")))
    before, cpu = peak_mb(), time.process_time()
    head = name.removeprefix("path ")
    costs, answers = (measure_head if head == name else measure_path)(head, X, y, queries, text)
    costs |= {"CPU s": time.process_time() - cpu, "over data MB": peak_mb() - before, "peak MB": peak_mb()}
    return costs | {"accuracy": 100 * float((np.array(answers) == truth).mean())}


def in_a_process(arguments: list[str], limit: float) -> dict[str, float] | str:
    """What this script prints with ``--inside`` as JSON in a fresh process, or why there is nothing."""
    command = [sys.executable, __file__, *arguments, "--inside"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"killed after {limit:g} s"
    if process.returncode != 0:
        return (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    return json.loads(process.stdout.splitlines()[-1])


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="heads, or 'path NAME'; all heads if none is given")
    parser.add_argument("--size", action="append", help="classes x shots x width; may be given again")
    parser.add_argument("--features", choices=("even", "hard"), default="even")
    parser.add_argument("--limit-seconds", type=float, default=300.0, help="for one row at one size, imports included")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = args.size or ["100x16x512", "1000x16x1024"]
    if args.inside:
        print(json.dumps(measure(args.rows[0], sizes[0], args.features, args.threads)))
        return
    rows: list[dict] = []
    for size in sizes:
        for name in args.rows or list_heads():
            arguments = [name, "--size", size, "--features", args.features, "--threads", str(args.threads)]
            costs = in_a_process(arguments, args.limit_seconds)
            rows.append({"head": name, "size": size} | ({"error": costs} if isinstance(costs, str) else costs))
            print(*rows[-1].values(), flush=True)
    print_table(rows)
    write_json(args.json, features=args.features, queries=QUERIES, threads=args.threads, rows=rows)


if __name__ == "__main__":
    main()
