"""All heads on the same shots: accuracies, and the regret of `auto` (best head in hindsight minus auto).

SOURCE and TEST are folders of pictures. Without TEST, SOURCE is a folder of published features as
`few_shot_features.py` reads it, and the rows that are not drawn are the test part. Three protocols:

    python benchmarks/heads.py SOURCE [TEST] --out results/x                  # equal shots, correct labels
    python benchmarks/heads.py SOURCE [TEST] --out results/x --wrong 0.1      # one label in ten is wrong
    python benchmarks/heads.py SOURCE [TEST] --out results/x --unequal        # 1 to 16 shots per class, drawn at random

Each result is written to runs.jsonl at once, and a stopped run continues there. Transductive heads have a *. `auto` is
not compared with them, because they see the test pictures.
"""

import time
from functools import partial

import numpy as np
from _runs import Records, add_source, draw_rows, each_draw, make_parser, parse, write_table

from clipadapter.bench import default_heads


def draw_unequal_or_wrong(y, shots, seed, args):
    """Row numbers of the shots and their labels, some of them wrong."""
    rng = np.random.default_rng(seed)
    rows, _ = draw_rows(y, 16 if args.unequal else shots, seed)
    if args.unequal:
        counts = {name: rng.integers(1, 17) for name in sorted(set(y))}
        rows = np.concatenate([rows[y[rows] == name][: counts[name]] for name in sorted(set(y))])
    labels = y[rows].copy()
    wrong = rng.permutation(len(rows))[: round(args.wrong * len(rows))]
    names = sorted(set(y))
    for i in wrong:
        labels[i] = rng.choice([name for name in names if name != labels[i]])
    return rows, labels


def measure(name, head, draw):
    start = time.perf_counter()
    head.fit(draw.X, draw.y, text=draw.text, unlabelled=draw.Q if head.transductive else None)
    fitted = time.perf_counter()
    accuracy = float((head.predict(draw.Q) == draw.truth).mean())
    return {"head": name, "accuracy": accuracy, "fit": fitted - start, "predict": time.perf_counter() - fitted}


def run(args):
    records = Records(args.out)
    known = records.keys("head", "shots", "seed")
    for draw in each_draw(args, partial(draw_unequal_or_wrong, args=args)):
        for name, head in default_heads().items():
            if (name, draw.shots, draw.seed) in known or (args.heads and name not in args.heads):
                continue
            if "seed" in head.get_params():
                head.set_params(seed=draw.seed)
            result = measure(name, head, draw)
            records.add({**result, "shots": draw.shots, "seed": draw.seed, "transductive": head.transductive})
    return records.rows


def report(records, shots):
    names = list(dict.fromkeys(r["head"] for r in records))
    pairs = [(n, k) for n in names for k in shots]
    cells = {pair: [r["accuracy"] for r in records if (r["head"], r["shots"]) == pair] for pair in pairs}
    transductive = {r["head"] for r in records if r["transductive"]}
    lines = ["| head | " + " | ".join(map(str, shots)) + " |", "|---|" + "---:|" * len(shots)]
    for n in names:
        values = [100 * np.array(cells[n, k]) for k in shots]
        row = [f"{v.mean():.1f} ± {v.std(ddof=1) if len(v) > 1 else 0:.1f}" for v in values]
        lines.append(f"| {n}{'*' if n in transductive else ''} | " + " | ".join(row) + " |")
    means = {(n, k): 100 * np.mean(cells[n, k]) for n in names if n not in transductive for k in shots}
    if not {"auto"} < {n for n in names if n not in transductive}:
        return "\n".join(lines) + "\n"
    regrets = []
    for k in shots:
        others = {n: means[n, k] for n in names if n not in transductive and n != "auto"}
        best = max(others, key=others.get)
        regrets.append(others[best] - means["auto", k])
        lines.append(
            f"\nshots {k}: best head in hindsight {best} {others[best]:.1f}, regret of auto {regrets[-1]:+.2f}"
        )
    lines.append(f"\nregret of auto: mean {np.mean(regrets):+.2f}, max {np.max(regrets):+.2f}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = make_parser(__doc__, shots="1,2,4,8,16", seeds=3)
    add_source(parser)
    parser.add_argument("--heads", help="only these, separated by commas")
    parser.add_argument("--wrong", type=float, default=0.0, help="share of labels that are wrong")
    parser.add_argument("--unequal", action="store_true", help="1 to 16 shots a class")
    args = parse(parser)
    args.shots = [0] if args.unequal else args.shots
    args.heads = args.heads.split(",") if args.heads else None
    write_table(report(run(args), args.shots), args.out)


if __name__ == "__main__":
    main()
