"""Every head on the same shots: table of accuracies, and the regret of `auto` (best head in hindsight minus auto).

SOURCE is a folder of pictures (with TEST beside it and --encoder), or a folder of published features as
`few_shot_features.py` takes it (then the rows that were not drawn are the test part). Three protocols:

    python benchmarks/heads.py SOURCE [TEST] --out results/x                  # equal shots, right labels
    python benchmarks/heads.py SOURCE [TEST] --out results/x --wrong 0.1      # one label in ten is wrong
    python benchmarks/heads.py SOURCE [TEST] --out results/x --unequal        # 1 to 16 shots a class, drawn at random

Every result is a line of runs.jsonl as soon as it is there; a run that was stopped goes on. Transductive heads are
listed with a *, and are not among those that `auto` is held against: they see the test pictures.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
from few_shot_features import read

from clipadapter import FewShotClassifier, load_dataset
from clipadapter.bench import default_heads
from clipadapter.data import draw_shots


def load(args):
    """Shots' features and labels, test features and labels (None: the rest of the shots), class text."""
    if args.test is None:
        features, text = read(args.source, args.scale)
        return features.plain, np.array(features.y), None, None, text
    model = FewShotClassifier(encoder=args.encoder, precision="fp32", progress=True)
    train, test = load_dataset(args.source), load_dataset(args.test)
    names = train.class_names
    parts = [model.extract_features(part.paths, part.labels, names) for part in (train, test)]
    text = model.encode_classes(names)
    return parts[0].plain, np.array(parts[0].y), parts[1].plain, np.array(parts[1].y), text


def draw(y, shots, seed, args):
    """Row numbers of the shots and their labels."""
    rng = np.random.default_rng(seed)
    rows = np.array(draw_shots(list(y), 16 if args.unequal else shots, seed))
    if args.unequal:
        kept = {name: rng.integers(1, 17) for name in sorted(set(y))}
        rows = np.concatenate([rows[y[rows] == name][: kept[name]] for name in sorted(set(y))])
    labels = y[rows].copy()
    wrong = rng.permutation(len(rows))[: round(args.wrong * len(rows))]
    names = sorted(set(y))
    for i in wrong:
        labels[i] = rng.choice([name for name in names if name != labels[i]])
    return rows, labels


def measure(name, head, X, rows, labels, Q, truth, text):
    start = time.perf_counter()
    head.fit(X[rows], labels, text=text, unlabelled=Q if head.transductive else None)
    fitted = time.perf_counter()
    right = float((head.predict(Q) == truth).mean())
    return {"head": name, "accuracy": right, "fit": fitted - start, "predict": time.perf_counter() - fitted}


def run(args):
    X, y, Q, truth, text = load(args)
    records = args.out / "runs.jsonl"
    done = [json.loads(line) for line in records.read_text().splitlines()] if records.exists() else []
    known = {(r["head"], r["shots"], r["seed"]) for r in done}
    for seed in range(args.seeds):
        for shots in args.shots:
            rows, labels = draw(y, shots, seed, args)
            rest = np.setdiff1d(np.arange(len(y)), rows)
            queries, answers = (X[rest], y[rest]) if Q is None else (Q, truth)
            for name, head in default_heads().items():
                if (name, shots, seed) in known or (args.heads and name not in args.heads):
                    continue
                if "seed" in head.get_params():
                    head.set_params(seed=seed)
                found = measure(name, head, X, rows, labels, queries, answers, text)
                done.append({**found, "shots": shots, "seed": seed, "transductive": head.transductive})
                with records.open("a") as file:
                    file.write(json.dumps(done[-1]) + "\n")
    return done


def report(done, shots):
    names = list(dict.fromkeys(r["head"] for r in done))
    cells = {(n, k): [r["accuracy"] for r in done if r["head"] == n and r["shots"] == k] for n in names for k in shots}
    seen = {r["head"] for r in done if r["transductive"]}
    lines = ["| head | " + " | ".join(map(str, shots)) + " |", "|---|" + "---:|" * len(shots)]
    for n in names:
        values = [100 * np.array(cells[n, k]) for k in shots]
        row = [f"{v.mean():.1f} ± {v.std(ddof=1) if len(v) > 1 else 0:.1f}" for v in values]
        lines.append(f"| {n}{'*' if n in seen else ''} | " + " | ".join(row) + " |")
    means = {(n, k): 100 * np.mean(cells[n, k]) for n in names if n not in seen for k in shots}
    if not {"auto"} < {n for n in names if n not in seen}:
        return "\n".join(lines) + "\n"
    regrets = []
    for k in shots:
        others = {n: means[n, k] for n in names if n not in seen and n != "auto"}
        best = max(others, key=others.get)
        regrets.append(others[best] - means["auto", k])
        lines.append(
            f"\nshots {k}: best head in hindsight {best} {others[best]:.1f}, regret of auto {regrets[-1]:+.2f}"
        )
    lines.append(f"\nregret of auto: mean {np.mean(regrets):+.2f}, max {np.max(regrets):+.2f}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("test", type=Path, nargs="?")
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--scale", type=float, default=100.0, help="exp(logit_scale) of published features")
    parser.add_argument("--shots", default="1,2,4,8,16")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--heads", help="only these, separated by commas")
    parser.add_argument("--wrong", type=float, default=0.0, help="share of labels that are wrong")
    parser.add_argument("--unequal", action="store_true", help="1 to 16 shots a class")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs.jsonl and table.md")
    args = parser.parse_args()
    args.shots = [0] if args.unequal else [int(n) for n in args.shots.split(",")]
    args.heads = args.heads.split(",") if args.heads else None
    args.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    text = report(run(args), args.shots)
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
