"""How far a fitted classifier can be trusted, as it is by default: calibration, sets of classes, "none of these".

SOURCE is a folder of pictures (with TEST beside it and --encoder), or a folder of published features as
`few_shot_features.py` takes it (then the rows that were not drawn are the test part):

    python benchmarks/trust.py SOURCE [TEST] --out results/x --heads auto,linear-probe,clip-adapter,zero-shot

Each fit learns from the drawn shots alone: temperature, thresholds and sets. Figures of the test part: expected
calibration error in 15 bins of equal mass (percent) and log-loss, of the plain softmax and calibrated; coverage
(percent) and mean size of 90 % sets; share of pictures that is called none of these though it is one (percent), where
5 % was asked for. Every result is a line of runs.jsonl as soon as it is there; a run that was stopped goes on.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np

from clipadapter import FewShotClassifier
from clipadapter.data import draw_shots
from clipadapter.features import FeatureSet
from clipadapter.metrics import expected_calibration_error, log_loss
from clipadapter.prediction import softmax
from clipadapter.uncertainty import UncertaintyOptions
from heads import load

OPTIONS = UncertaintyOptions(reject=0.05, coverage=0.9)
COLUMNS = ("accuracy", "ECE", "ECE plain", "log-loss", "log-loss plain", "coverage", "size", "rejected")


def measure(head, X, y, Q, truth, text, seed):
    model = FewShotClassifier("toy", head, seed=seed, cache=None, uncertainty=OPTIONS)
    model.fit_features(FeatureSet(X, tuple(y), text.labels), text)
    logits = model.head_.logits(Q)
    found = model.uncertainty_.answer(logits, Q)
    labels = np.array([text.labels.index(name) for name in truth])
    p, plain = found.probabilities, softmax(logits)
    return {
        "accuracy": 100 * float((found.best == labels).mean()),
        "ECE": 100 * expected_calibration_error(p, labels),
        "ECE plain": 100 * expected_calibration_error(plain, labels),
        "log-loss": log_loss(p, labels),
        "log-loss plain": log_loss(plain, labels),
        "coverage": 100 * float(found.sets[np.arange(len(labels)), labels].mean()),
        "size": float(found.sets.sum(axis=1).mean()),
        "rejected": 100 * float(found.rejected.mean()),
    }


def run(args):
    X, y, Q, truth, text = load(args)
    records = args.out / "runs.jsonl"
    done = [json.loads(line) for line in records.read_text().splitlines()] if records.exists() else []
    known = {(r["head"], r["shots"], r["seed"]) for r in done}
    for seed in range(args.seeds):
        for shots in args.shots:
            rows = np.array(draw_shots(list(y), shots, seed))
            rest = np.setdiff1d(np.arange(len(y)), rows)
            queries, answers = (X[rest], y[rest]) if Q is None else (Q, truth)
            for head in args.heads:
                if (head, shots, seed) not in known:
                    found = measure(head, X[rows], y[rows], queries, answers, text, seed)
                    done.append({"head": head, "shots": shots, "seed": seed, **found})
                    with records.open("a") as file:
                        file.write(json.dumps(done[-1]) + "\n")
    return done


def report(done):
    lines = ["| head | shots | " + " | ".join(COLUMNS) + " |", "|---|---:|" + "---:|" * len(COLUMNS)]
    for head in dict.fromkeys(r["head"] for r in done):
        for shots in sorted({r["shots"] for r in done}):
            cells = []
            for name in COLUMNS:
                values = [r[name] for r in done if (r["head"], r["shots"]) == (head, shots)]
                digits = 2 if name in ("log-loss", "log-loss plain", "size") else 1
                spread = np.std(values, ddof=1) if len(values) > 1 else 0
                cells.append(f"{np.mean(values):.{digits}f} ± {spread:.{digits}f}")
            lines.append(f"| {head} | {shots} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("test", type=Path, nargs="?")
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--scale", type=float, default=100.0, help="exp(logit_scale) of published features")
    parser.add_argument("--shots", default="2,4,8,16")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--heads", default="auto,linear-probe,zero-shot,tip-adapter,gda")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.shots, args.heads = [int(k) for k in args.shots.split(",")], args.heads.split(",")
    args.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    table = report(run(args))
    (args.out / "report.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
