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
from _runs import Records, add_source, load_features, make_parser, parse, write_table

from clipadapter import FewShotClassifier
from clipadapter.data import draw_shots
from clipadapter.features import FeatureSet
from clipadapter.metrics import expected_calibration_error, log_loss
from clipadapter.prediction import softmax
from clipadapter.uncertainty import UncertaintyOptions

OPTIONS = UncertaintyOptions(reject=0.05, coverage=0.9)
COLUMNS = ("accuracy", "ECE", "ECE plain", "log-loss", "log-loss plain", "coverage", "size", "rejected")


def measure(head, X, y, Q, truth, text, seed):
    model = FewShotClassifier("toy", head, seed=seed, cache=None, uncertainty=OPTIONS)
    model.fit_features(FeatureSet(X, tuple(y), text.labels), text)
    logits = model.head_.logits(Q)
    answers = model.uncertainty_.answer(logits, Q)
    labels = np.array([text.labels.index(name) for name in truth])
    calibrated, plain = answers.probabilities, softmax(logits)
    return {
        "accuracy": 100 * float((answers.best == labels).mean()),
        "ECE": 100 * expected_calibration_error(calibrated, labels),
        "ECE plain": 100 * expected_calibration_error(plain, labels),
        "log-loss": log_loss(calibrated, labels),
        "log-loss plain": log_loss(plain, labels),
        "coverage": 100 * float(answers.sets[np.arange(len(labels)), labels].mean()),
        "size": float(answers.sets.sum(axis=1).mean()),
        "rejected": 100 * float(answers.rejected.mean()),
    }


def run(args):
    X, y, Q, truth, text = load_features(args)
    records = Records(args.out)
    known = records.keys("head", "shots", "seed")
    for seed in range(args.seeds):
        for shots in args.shots:
            rows = np.array(draw_shots(list(y), shots, seed))
            others = np.setdiff1d(np.arange(len(y)), rows)
            queries, query_labels = (X[others], y[others]) if Q is None else (Q, truth)
            for head in args.heads:
                if (head, shots, seed) not in known:
                    result = measure(head, X[rows], y[rows], queries, query_labels, text, seed)
                    records.add({"head": head, "shots": shots, "seed": seed, **result})
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
