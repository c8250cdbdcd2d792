"""Unequal shots and wrong labels: logit adjustment and generalised cross-entropy on the development sets.

DATA is that of development_sets.py, and the judged pictures come from the training parts alone. Two tables:

    python benchmarks/tails_and_noise.py tails DATA --out results/tails --heads linear-probe,taskres --tau 0,1
    python benchmarks/tails_and_noise.py noise DATA --out results/noise --heads taskres --q 0,0.7,auto --wrong 0,0.2

"tails" draws 16 shots of one class and 1 of another, geometrically in between, in random order of the classes. It
shows the mean accuracy per class, "balanced", and that of pictures as frequent as the shots, "as shots".
"noise" draws --shots of each class and gives a share of them the label of another class, each as likely.
Differences are to the first value of --tau or --q, with their standard error over sets, and the set that is farthest
behind. A head without the parameter has one row.

--width rotates features and text of a set to so many columns, the principal ones: without loss if the set has fewer
pictures than that, and fits take a tenth of the time. Every result is a line of runs.jsonl; a run that was stopped goes
on there.
"""

import argparse
import json
import multiprocessing
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from development_sets import MAX_TEST_PICTURES, MIN_TEST_PICTURES, Set, load_sets, unit

from clipadapter import FewShotClassifier
from clipadapter.blocks import FINAL, Block
from clipadapter.heads import TextFeatures, create_head

MOST_SHOTS = 16
DEFAULT_SETS = (
    "clothing,satellite,textures,steel,caltech 8,fabric,food,textures good,clothing bad,caltech 20,satellite 4,food 4"
)
PARAMETERS = {"tails": "logit_adjustment", "noise": "gce_q"}
SETS: dict[str, Set] = {}


def narrow(one: Set, width: int) -> Set:
    """In the principal directions of pictures and text; all lengths and cosines stay if there are so many rows."""
    final = one.blocks[0].width
    if final <= width:
        return replace(one, X=one.X[:, :final], blocks=(Block(FINAL, final),))
    X = unit(one.X[:, :final])
    rows = np.concatenate([X[:: 1 + len(X) // 2000], one.text]).astype(np.float64)
    basis = np.linalg.svd(rows, full_matrices=False)[2][:width].T.astype(one.X.dtype)
    return replace(one, X=X @ basis, text=one.text @ basis, blocks=(Block(FINAL, basis.shape[1]),))


def draw(one: Set, counts, seed: int):
    """Rows of the shots, counts (c,) of each class, and of up to 30 other pictures of each class."""
    rng = np.random.default_rng(seed)
    rows, test_rows = [], []
    for k, count in enumerate(counts):
        class_rows = np.flatnonzero(one.y == k)
        class_rows = rng.permutation(class_rows if one.reserved is None else np.setdiff1d(class_rows, one.reserved))
        n = min(count, len(class_rows) - MIN_TEST_PICTURES)
        rows.extend(class_rows[:n])
        test_rows.extend(class_rows[n : n + MAX_TEST_PICTURES])
    return np.array(rows), np.array(test_rows)


def tail_counts(c: int, seed: int):
    """(c,) shots per class from 16 to 1, geometrically, in random order."""
    return np.random.default_rng(seed).permutation(np.round(np.geomspace(MOST_SHOTS, 1, c)).astype(int))


def with_wrong_labels(y, share: float, c: int, seed: int):
    """Labels of which a share is replaced by other ones."""
    rng = np.random.default_rng(seed)
    wrong = rng.permutation(len(y))[: round(share * len(y))]
    y = y.copy()
    y[wrong] = (y[wrong] + rng.integers(1, c, len(wrong))) % c
    return y


def start(sets: dict[str, Set]) -> None:
    SETS.update(sets)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def measure(cell: dict) -> dict:
    one, seed = SETS[cell["set"]], cell["seed"]
    c = len(one.text)
    rows, judged = draw(one, tail_counts(c, seed) if cell["shots"] == 0 else [cell["shots"]] * c, seed)
    y = with_wrong_labels(one.y[rows], cell["wrong"], c, seed)
    names = np.array([f"class {k:02}" for k in range(c)])
    head = create_head(cell["head"], **({} if cell["value"] is None else {cell["parameter"]: cell["value"]}))
    start_time = time.perf_counter()
    head.fit(one.X[rows], names[y], text=TextFeatures(list(names), one.text, one.scale))
    seconds = time.perf_counter() - start_time
    is_right = head.logits(one.X[judged]).argmax(axis=1) == one.y[judged]
    by_class = np.array([is_right[one.y[judged] == k].mean() for k in range(c)])
    as_shots = float(by_class @ np.bincount(y, minlength=c) / len(y))
    return {
        **cell, "balanced": float(by_class.mean()), "as shots": as_shots, "chosen": getattr(head, "gce_q_", None),
        "seconds": seconds,
    }  # fmt: skip


def values_of(head: str, parameter: str, values: list) -> list:
    return values if parameter in create_head(head).get_params() else [None]


def make_cells(args) -> list[dict]:
    parameter = PARAMETERS[args.table]
    conditions = [(0, 0.0)] if args.table == "tails" else [(k, w) for k in args.shots for w in args.wrong]
    values = args.tau if args.table == "tails" else args.q
    return [
        {"head": h, "parameter": parameter, "value": v, "shots": shots, "wrong": wrong, "set": s, "seed": seed}
        for seed in range(args.draws)
        for shots, wrong in conditions
        for h in args.heads
        for s in args.sets
        for v in values_of(h, parameter, values)
    ]


CELL = ("head", "parameter", "value", "shots", "wrong", "set", "seed")


def run(args) -> list[dict]:
    path = args.out / "runs.jsonl"
    args.out.mkdir(parents=True, exist_ok=True)
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {tuple(r[name] for name in CELL) for r in records}
    sets = load_sets(
        args.data,
        lambda: FewShotClassifier(encoder=args.encoder, quality="fast", precision="fp32", progress=True),
        False,
    )
    sets = {name: narrow(sets[name], args.width) if args.width else sets[name] for name in args.sets}
    cells = [cell for cell in make_cells(args) if tuple(cell[name] for name in CELL) not in known]
    context = multiprocessing.get_context("spawn")
    with context.Pool(args.workers, start, (sets,)) as pool, path.open("a") as file:
        for record in pool.imap_unordered(measure, cells):
            records.append(record)
            file.write(json.dumps(record) + "\n")
            file.flush()
    return records


def table(records: list[dict]) -> str:
    """One row for each head, value, number of shots and share of wrong labels; cells that all values have."""
    groups: dict[tuple, dict] = {}
    for r in records:
        group = groups.setdefault((r["shots"], r["wrong"], r["head"]), {})
        group.setdefault(r["value"], {})[r["set"], r["seed"]] = r
    lines = [
        "| shots | wrong | head | value | balanced | difference | farthest behind | as shots | difference | fits |"
    ]
    lines.append("|---|---|---|---|" + "---:|" * 6)
    for (shots, wrong, head), by_value in sorted(groups.items()):
        cells = sorted(set.intersection(*map(set, by_value.values())))
        sets = sorted({name for name, _ in cells})
        if not sets:
            continue

        def means(value, metric, cells=cells, by_value=by_value, sets=sets):
            return np.array([np.mean([100 * by_value[value][c][metric] for c in cells if c[0] == s]) for s in sets])

        first, *_ = values = sorted(by_value, key=str)  # "auto" last
        for value in values:
            gain, other = (means(value, m) - means(first, m) for m in ("balanced", "as shots"))
            error = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else 0.0
            chosen = [by_value[value][c]["chosen"] for c in cells]
            note = f" (mean {np.mean([q or 0 for q in chosen]):.2f})" if value == "auto" else ""
            balanced = means(value, "balanced").mean()
            lines.append(
                f"| {shots or '1 to 16'} | {wrong:.0%} | {head} | {value}{note} | {balanced:.1f} "
                f"| {gain.mean():+.1f} ± {error:.1f} | {gain.min():+.1f} {sets[int(gain.argmin())]} "
                f"| {means(value, 'as shots').mean():.1f} | {other.mean():+.1f} | {len(cells)} |"
            )
    return "\n".join(lines) + "\n"


def numbers(text: str) -> list:
    return [part if part == "auto" else float(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=sorted(PARAMETERS, reverse=True))
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--heads", default="linear-probe,taskres,clip-adapter,auto")
    parser.add_argument("--sets", default=DEFAULT_SETS, help="names of development_sets.py, separated by commas")
    parser.add_argument("--tau", type=numbers, default=[0.0, 1.0], help="values of logit_adjustment")
    parser.add_argument("--q", type=numbers, default=[0.0, 0.7], help="values of gce_q")
    parser.add_argument("--wrong", type=numbers, default=[0.0, 0.1, 0.2, 0.3], help="shares of wrong labels")
    parser.add_argument("--shots", type=lambda text: [int(part) for part in text.split(",")], default=[8])
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--width", type=int, default=256, help="columns of the features; 0 for all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="folder for runs.jsonl and table.md")
    args = parser.parse_args()
    args.heads, args.sets = args.heads.split(","), args.sets.split(",")
    text = table(run(args))
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
