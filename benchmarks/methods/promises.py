"""What docs/trust.md promises, on many small sets: calibration, sets of classes, and rejection with two to ten classes.

DATA is a folder as `development_sets.py` reads it. Of each of its seven sources, subsets of 2, 2, 2, 3, 4, 6 and 10
classes are drawn, as far as there are so many. In turn the class text is as it is, exchanged between half of the
classes, and meaningless ("class a", "class b"; of published features it is that of other classes).

    python benchmarks/methods/promises.py DATA --out results/promises --heads auto,clip-adapter --shots 2,4,8,16

Shots and test pictures come from the training parts, see `development_sets.draw`. "chance" is the calibration error
that true probabilities would show on as many pictures. "above uniform" counts the sets on which the mean log-loss of
the draws is above that of equal probabilities. Each result is written to runs.jsonl at once, and a stopped run
continues there.
"""

import argparse
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _study import Records, table_head, write_table
from development_sets import Set, draw, load_food, load_pictures, load_whole

from clipadapter import FewShotClassifier
from clipadapter.data import textiles
from clipadapter.features import FeatureSet
from clipadapter.heads import TextFeatures
from clipadapter.metrics import expected_calibration_error, log_loss
from clipadapter.uncertainty import UncertaintyOptions
from clipadapter.utils.prediction import softmax

OPTIONS = UncertaintyOptions(reject=0.05, coverage=0.9)
SIZES = (2, 2, 2, 3, 4, 6, 10)
COLUMNS = {"log-loss": 3, "ECE": 1, "chance": 1, "coverage": 1, "size": 2, "rejected": 1}
"""Columns of the table, with their digits."""


def load_sources(data: Path, classifier) -> dict[str, Set]:
    fabric = load_pictures(textiles(), None, classifier)
    return load_whole(data, classifier, False) | {"fabric": fabric, "food": load_food(data)}


def small_sets(sources: dict[str, Set], letters: np.ndarray) -> dict[str, Set]:
    """The sets by name; ``letters`` is the text of "class a", "class b" and so on."""
    rng, sets = np.random.default_rng(42), {}
    for name, source in sources.items():
        order = rng.permutation(len(source.text))
        for c in SIZES:
            if c > len(source.text):
                continue
            chosen, others = np.sort(order[:c]), np.roll(order, c)[:c]
            order = np.roll(order, -c)
            one, kind = source.some(list(chosen)), ("as is", "exchanged", "meaningless")[len(sets) % 3]
            if kind == "exchanged":
                one = one.bad()
            elif kind == "meaningless":
                one = replace(one, text=letters[:c] if letters.shape[1] == one.text.shape[1] else source.text[others])
            sets[f"{name} {c}, {'-'.join(map(str, chosen))}, text {kind}"] = one
    return sets


def error_by_chance(probabilities, resamples=20):
    """The expected calibration error that these probabilities show if they are true, on as many pictures."""
    rng, cumulative = np.random.default_rng(0), probabilities.cumsum(axis=1)
    drawn = [(rng.random((len(cumulative), 1)) > cumulative[:, :-1]).sum(axis=1) for _ in range(resamples)]
    return float(np.mean([expected_calibration_error(probabilities, labels) for labels in drawn]))


def measure(head: str, seed: int, shots: FeatureSet, text: TextFeatures, Q: np.ndarray, labels: np.ndarray) -> dict:
    """Fit a classifier, which learns temperature, thresholds and sets from the shots alone, and measure it."""
    model = FewShotClassifier("toy", head, seed=seed, cache=None, uncertainty=OPTIONS).fit_features(shots, text)
    logits = model.head_.logits(Q)
    answers = model.uncertainty_.answer(logits, Q)
    calibrated, plain = answers.probabilities, softmax(logits)
    return {
        "accuracy": 100 * float((answers.best == labels).mean()),
        "ECE": 100 * expected_calibration_error(calibrated, labels),
        "chance": 100 * error_by_chance(calibrated),
        "ECE plain": 100 * expected_calibration_error(plain, labels),
        "log-loss": log_loss(calibrated, labels),
        "log-loss plain": log_loss(plain, labels),
        "coverage": 100 * float(answers.sets[np.arange(len(labels)), labels].mean()),
        "size": float(answers.sets.sum(axis=1).mean()),
        "rejected": 100 * float(answers.rejected.mean()),
    }


def run(args) -> list[dict]:
    def classifier():
        return FewShotClassifier(encoder=args.encoder, quality="fast", precision="fp32", progress=True)

    letters = classifier().encode_classes([f"class {letter}" for letter in "abcdefghij"]).embeddings
    sets = small_sets(load_sources(args.data, classifier), letters)
    records = Records(args.out)
    known = records.keys("set", "head", "shots", "seed")
    for seed in range(args.seeds):
        for shots in args.shots:
            for name, one in sets.items():
                rows, Q, truth = draw(one, shots, seed)
                names = tuple(f"class {k:02}" for k in range(len(one.text)))
                text = TextFeatures(names, one.text, one.scale)
                support = FeatureSet(one.X[rows], tuple(names[k] for k in one.y[rows]), names)
                for head in args.heads:
                    if (name, head, shots, seed) not in known:
                        cell = {"set": name, "head": head, "shots": shots, "seed": seed, "classes": len(names)}
                        records.add({**cell, **measure(head, seed, support, text, Q, truth)})
    return records.rows


def report(records: list[dict]) -> str:
    columns = [*COLUMNS, "ECE / chance", "above uniform"]
    lines = table_head(["head", "shots", "sets", *columns])
    for head in dict.fromkeys(r["head"] for r in records):
        for shots in sorted({r["shots"] for r in records}):
            rows = [r for r in records if (r["head"], r["shots"]) == (head, shots)]
            if not rows:
                continue
            mean = {name: float(np.mean([r[name] for r in rows])) for name in COLUMNS}
            losses: dict[tuple, list[float]] = {}
            for r in rows:
                losses.setdefault((r["set"], r["classes"]), []).append(r["log-loss"])
            above = sum(np.mean(values) > np.log(c) for (_, c), values in losses.items())
            cells = [f"{mean[name]:.{digits}f}" for name, digits in COLUMNS.items()]
            cells += [f"{mean['ECE'] / mean['chance']:.2f}", f"{above} of {len(losses)}"]
            lines.append(f"| `{head}` | {shots} | {len(losses)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--shots", type=lambda text: [int(n) for n in text.split(",")], default=[2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="folder for runs.jsonl and table.md")
    parser.add_argument("--heads", default="auto,clip-adapter,linear-probe,gda,tip-adapter,zero-shot")
    args = parser.parse_args()
    args.heads = args.heads.split(",")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    write_table(report(run(args)), args.out)


if __name__ == "__main__":
    main()
