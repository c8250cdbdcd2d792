"""Uncertainty of a fitted classifier with default settings: calibration, prediction sets, rejection.

SOURCE and TEST are folders of pictures. Without TEST, SOURCE is a folder of published features as
`few_shot_features.py` reads it, and the rows that are not drawn are the test part:

    python benchmarks/uncertainty.py SOURCE [TEST] --out results/x --heads auto,linear-probe,clip-adapter,zero-shot

Each fit learns temperature, thresholds and sets from the drawn shots alone. Metrics of the test part: expected
calibration error in 15 bins of equal mass (percent) and log-loss, of the plain softmax and calibrated; coverage
(percent) and mean size of 90 % sets; share of pictures of the classes that are rejected (percent) at a rate of 5 %.
Each result is written to runs.jsonl at once, and a stopped run continues there.
"""

import numpy as np
from _runs import Records, add_source, each_draw, make_parser, parse, write_table

from clipadapter import FewShotClassifier
from clipadapter.features import FeatureSet
from clipadapter.metrics import expected_calibration_error, log_loss
from clipadapter.uncertainty import UncertaintyOptions
from clipadapter.utils.prediction import softmax

OPTIONS = UncertaintyOptions(reject=0.05, coverage=0.9)
COLUMNS = ("accuracy", "ECE", "chance", "ECE plain", "log-loss", "log-loss plain", "coverage", "size", "rejected")


def error_by_chance(probabilities, resamples=20):
    """The expected calibration error that these probabilities show if they are true, on as many pictures."""
    rng, cumulative = np.random.default_rng(0), probabilities.cumsum(axis=1)
    drawn = [(rng.random((len(cumulative), 1)) > cumulative[:, :-1]).sum(axis=1) for _ in range(resamples)]
    return float(np.mean([expected_calibration_error(probabilities, labels) for labels in drawn]))


def measure(head, draw):
    model = FewShotClassifier("toy", head, seed=draw.seed, cache=None, uncertainty=OPTIONS)
    model.fit_features(FeatureSet(draw.X, tuple(draw.y), draw.text.labels), draw.text)
    logits = model.head_.logits(draw.Q)
    answers = model.uncertainty_.answer(logits, draw.Q)
    labels = np.array([draw.text.labels.index(name) for name in draw.truth])
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


def run(args):
    records = Records(args.out)
    known = records.keys("head", "shots", "seed")
    for draw in each_draw(args):
        for head in args.heads:
            if (head, draw.shots, draw.seed) not in known:
                records.add({"head": head, "shots": draw.shots, "seed": draw.seed, **measure(head, draw)})
    return records.rows


def report(records):
    lines = ["| head | shots | " + " | ".join(COLUMNS) + " |", "|---|---:|" + "---:|" * len(COLUMNS)]
    for head in dict.fromkeys(r["head"] for r in records):
        for shots in sorted({r["shots"] for r in records}):
            cells = []
            for name in COLUMNS:
                values = [r[name] for r in records if (r["head"], r["shots"]) == (head, shots)]
                digits = 2 if name in ("log-loss", "log-loss plain", "size") else 1
                spread = np.std(values, ddof=1) if len(values) > 1 else 0
                cells.append(f"{np.mean(values):.{digits}f} ± {spread:.{digits}f}")
            lines.append(f"| {head} | {shots} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = make_parser(__doc__, shots="2,4,8,16", seeds=5)
    add_source(parser)
    parser.add_argument("--heads", default="auto,linear-probe,zero-shot,tip-adapter,gda")
    args = parse(parser)
    args.heads = args.heads.split(",")
    write_table(report(run(args)), args.out)


if __name__ == "__main__":
    main()
