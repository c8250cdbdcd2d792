"""Conformal prediction sets: coverage and size.

SOURCE and TEST are folders of pictures. Without TEST, SOURCE is a folder of published features as
`few_shot_features.py` reads it, and the rows that are not drawn are the test part:

    python benchmarks/conformal.py SOURCE [TEST] --out results/x --heads auto,linear-probe

"cross": each fit scores the shots that it did not see, and a fit to all shots predicts. "cv+": those fits predict
together. "split": half of the shots of each class are not used for the fit. Probabilities are calibrated by one
temperature on the held-out shots; for "cross" it is in units of the spread of logits, which differs between fits to one
and to two shots. Each result is written to runs.jsonl at once, and a stopped run continues there.

A cell is "coverage / size (coverage / size)": the share of test pictures, in percent, whose class is in the set, and
the mean number of classes in a set; in brackets the same for sets that may be empty, to which the
theorems apply.
"""

import itertools

import numpy as np
from _runs import Records, add_source, each_draw, make_parser, parse, write_table
from scipy.optimize import minimize_scalar
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold

from clipadapter.heads import create_head
from clipadapter.prediction import softmax
from clipadapter.uncertainty.conformal import CONFORMAL_METHODS, SCORES, learn_conformal


def temperature(logits, labels):
    """The temperature with the least log-loss on held-out shots."""
    rows = np.arange(len(labels))

    def loss(log):
        return -np.log(softmax(logits, np.exp(log))[rows, labels] + 1e-300).mean()

    return float(np.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded").x))


def spread(fit, X):
    """Typical standard deviation over the classes of the logits of a fit's own shots."""
    return float(fit.logits(X).std(axis=1).mean())


def predict(head, X, y, positions, Q, text, how, folds, seed):
    """Logits of held-out shots, their labels and folds, and logits (k, m, c) of the queries on the same scale."""
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


def measure(predictions, truth, how, args):
    """A record for each score: coverage, size and share of single classes of sets; the same if they may be empty."""
    held, labels, fold, logits = predictions
    fitted_temperature = temperature(held, labels)
    queries = np.stack([softmax(each, fitted_temperature) for each in logits])
    queries = queries if how == "cv+" else queries[0]
    for score in args.scores:
        model = learn_conformal(
            softmax(held, fitted_temperature),
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
    records = Records(args.out)
    known = records.keys("head", "how", "shots", "seed", "score")
    for draw in each_draw(args):
        shots, seed = draw.shots, draw.seed
        position = {name: i for i, name in enumerate(draw.text.labels)}
        truth = np.array([position[name] for name in draw.truth])
        for name, how in itertools.product(args.heads, args.how):
            if all((name, how, shots, seed, score) in known for score in args.scores):
                continue
            labels = np.array([position[label] for label in draw.y])
            predictions = predict(create_head(name), draw.X, draw.y, labels, draw.Q, draw.text, how, args.folds, seed)
            for record in measure(predictions, truth, how, args):
                records.add({"head": name, "how": how, "shots": shots, "seed": seed, **record})
    return records.rows


def report(records, shots):
    kinds = list(dict.fromkeys((r["head"], r["how"], r["score"]) for r in records))
    lines = ["| head | sets | score | " + " | ".join(map(str, shots)) + " |", "|---|---|---|" + "---:|" * len(shots)]
    for kind in kinds:
        row = []
        for k in shots:
            rows = [r for r in records if (r["head"], r["how"], r["score"]) == kind and r["shots"] == k]
            mean = {name: np.mean([r[name] for r in rows]) for name in rows[0] if name.endswith(("coverage", "size"))}
            mark = "!" if any(r["few"] for r in rows) else ""
            row.append(
                f"{100 * mean['coverage']:.1f} / {mean['size']:.2f} "
                f"({100 * mean['raw_coverage']:.1f} / {mean['raw_size']:.2f}){mark}"
            )
        lines.append("| " + " | ".join([*kind, *row]) + " |")
    return "\n".join(lines) + "\n\n! too few shots for the rate: some classes are in every set\n"


def names_of(known):
    return lambda text: [name for name in text.split(",") if name in known] or list(known)


def main() -> None:
    parser = make_parser(__doc__, shots="2,4,8,16", seeds=5)
    add_source(parser)
    parser.add_argument("--heads", default="auto,linear-probe,zero-shot", help="separated by commas")
    parser.add_argument("--how", default="cross", help=f"of {', '.join(CONFORMAL_METHODS)}; 'all' for all")
    parser.add_argument("--scores", default="lac", help=f"of {', '.join(SCORES)}; 'all' for all")
    parser.add_argument("--coverage", type=float, default=0.9)
    parser.add_argument("--by-class", action="store_true", help="coverage of each class by itself")
    parser.add_argument("--folds", type=int, default=4)
    args = parse(parser)
    args.heads = args.heads.split(",")
    args.how, args.scores = names_of(CONFORMAL_METHODS)(args.how), names_of(SCORES)(args.scores)
    write_table(report(run(args), args.shots), args.out)


if __name__ == "__main__":
    main()
