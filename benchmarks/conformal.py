"""Conformal sets: how often the true class is in them, and how large they are.

SOURCE is a folder of pictures (with TEST beside it and --encoder), or a folder of published features as
`few_shot_features.py` takes it (then the rows that were not drawn are the test part):

    python benchmarks/conformal.py SOURCE [TEST] --out results/x --heads auto,linear-probe

"cross": held-out shots judge fits to the others, a fit to all shots answers. "cv+": those fits answer together.
"split": half of each class's shots are not learned from at all. Probabilities are calibrated by one temperature on the
held-out shots; for "cross" it is in units of the spread of logits, which differs between fits to one and to two shots.
Every result is a line of runs.jsonl as soon as it is there; a run that was stopped goes on.

A cell is "coverage / size (coverage / size)": the share of test pictures, in percent, whose class is in the set, and
the mean number of classes in a set; in brackets that of sets that may be empty, which are those that theorems are
about.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold

from clipadapter.data import draw_shots
from clipadapter.heads import create_head
from clipadapter.prediction import softmax
from clipadapter.uncertainty.conformal import CONFORMAL_METHODS, SCORES, learn_conformal
from heads import load


def temperature(logits, labels):
    """The one that makes the log-loss of held-out shots least."""
    rows = np.arange(len(labels))

    def loss(log):
        return -np.log(softmax(logits, np.exp(log))[rows, labels] + 1e-300).mean()

    return float(np.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded").x))


def spread(fit, X):
    """Typical standard deviation over the classes of the logits of a fit's own shots."""
    return float(fit.logits(X).std(axis=1).mean())


def answers(head, X, y, positions, Q, text, how, folds, seed):
    """Logits of held-out shots, their labels and folds, and logits (k, m, c) of the queries by what answers.

    The last are as large as those of the held-out shots.
    """
    if how == "split":
        per_class = StratifiedKFold(2, shuffle=True, random_state=seed)
        splits = [next(per_class.split(X, positions))]
    else:
        most = int(np.bincount(positions).max())
        splits = list(StratifiedKFold(min(folds, most), shuffle=True, random_state=seed).split(X, positions))
    fits = [clone(head).fit(X[train], y[train], text=text) for train, _ in splits]
    held = np.concatenate([fit.logits(X[rows]) for fit, (_, rows) in zip(fits, splits, strict=True)])
    fold = np.concatenate([np.full(len(rows), i) for i, (_, rows) in enumerate(splits)])
    labels = positions[np.concatenate([rows for _, rows in splits])]
    if how != "cross":
        return held, labels, fold, np.stack([fit.logits(Q) for fit in fits])
    full = clone(head).fit(X, y, text=text)
    parts = np.mean([spread(fit, X[train]) for fit, (train, _) in zip(fits, splits, strict=True)])
    return held, labels, fold, full.logits(Q)[None] * parts / spread(full, X)


def measure(found, truth, how, args):
    """A record for each score: coverage, size and share of single classes of sets; the same if they may be empty."""
    held, labels, fold, logits = found
    warmth = temperature(held, labels)
    queries = np.stack([softmax(one, warmth) for one in logits])
    queries = queries if how == "cv+" else queries[0]
    for score in args.scores:
        model = learn_conformal(
            softmax(held, warmth),
            labels,
            score=score,
            by_class=args.by_class,
            method=how,
            folds=fold if how == "cv+" else None,
        )
        record = {"score": score, "few": model.explain_shortage(args.coverage) is not None}
        for name, empty in (("", False), ("raw_", True)):
            sets = model.sets(queries, args.coverage, empty=empty)
            record[f"{name}coverage"] = float(sets[np.arange(len(truth)), truth].mean())
            record[f"{name}size"] = float(sets.sum(axis=1).mean())
            record[f"{name}single"] = float((sets.sum(axis=1) == 1).mean())
        yield record


def run(args):
    X, y, Q, truth, text = load(args)
    position = {name: i for i, name in enumerate(text.labels)}
    records = args.out / "runs.jsonl"
    done = [json.loads(line) for line in records.read_text().splitlines()] if records.exists() else []
    known = {(r["head"], r["how"], r["shots"], r["seed"], r["score"]) for r in done}
    for seed in range(args.seeds):
        for shots in args.shots:
            rows = np.array(draw_shots(list(y), shots, seed))
            rest = np.setdiff1d(np.arange(len(y)), rows)
            queries, names = (X[rest], y[rest]) if Q is None else (Q, truth)
            right = np.array([position[name] for name in names])
            labels = np.array([position[name] for name in y[rows]])
            for name in args.heads:
                for how in args.how:
                    if all((name, how, shots, seed, score) in known for score in args.scores):
                        continue
                    head = create_head(name)
                    found = answers(head, X[rows], y[rows], labels, queries, text, how, args.folds, seed)
                    for record in measure(found, right, how, args):
                        done.append({"head": name, "how": how, "shots": shots, "seed": seed, **record})
                        with records.open("a") as file:
                            file.write(json.dumps(done[-1]) + "\n")
    return done


def report(done, shots):
    kinds = list(dict.fromkeys((r["head"], r["how"], r["score"]) for r in done))
    lines = ["| head | sets | score | " + " | ".join(map(str, shots)) + " |", "|---|---|---|" + "---:|" * len(shots)]
    for kind in kinds:
        row = []
        for k in shots:
            mine = [r for r in done if (r["head"], r["how"], r["score"]) == kind and r["shots"] == k]
            mean = {name: np.mean([r[name] for r in mine]) for name in mine[0] if name.endswith(("coverage", "size"))}
            few = "!" if any(r["few"] for r in mine) else ""
            row.append(
                f"{100 * mean['coverage']:.1f} / {mean['size']:.2f} "
                f"({100 * mean['raw_coverage']:.1f} / {mean['raw_size']:.2f}){few}"
            )
        lines.append("| " + " | ".join([*kind, *row]) + " |")
    return "\n".join(lines) + "\n\n! too few shots for the rate: some classes are in every set\n"


def names_of(known):
    return lambda text: [name for name in text.split(",") if name in known] or list(known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("test", type=Path, nargs="?")
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--scale", type=float, default=100.0, help="exp(logit_scale) of published features")
    parser.add_argument("--shots", default="2,4,8,16")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--heads", default="auto,linear-probe,zero-shot", help="separated by commas")
    parser.add_argument("--how", default="cross", help=f"of {', '.join(CONFORMAL_METHODS)}; 'all' for all")
    parser.add_argument("--scores", default="lac", help=f"of {', '.join(SCORES)}; 'all' for all")
    parser.add_argument("--coverage", type=float, default=0.9)
    parser.add_argument("--by-class", action="store_true", help="coverage of each class by itself")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True, help="folder for runs.jsonl and table.md, one a setting")
    args = parser.parse_args()
    args.shots, args.heads = [int(n) for n in args.shots.split(",")], args.heads.split(",")
    args.how, args.scores = names_of(CONFORMAL_METHODS)(args.how), names_of(SCORES)(args.scores)
    args.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    text = report(run(args), args.shots)
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
