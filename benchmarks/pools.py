"""Pools of pictures without labels: size and skew, for heads that learn from them, beside heads that do not.

DATA is the folder of development_sets.py, and the sets are those of that script. Shots, pools and other pictures come
from training parts alone: of the pictures of a class that are not shots a third, at most 60, are other pictures, and
pools are drawn from the rest:

- balanced: equally many of each class,
- skewed: class frequencies of a Dirichlet distribution with parameter 0.5,
- few: a quarter of the classes, at least two, equally frequent,
- single: one class.

A pool has fewer pictures than it should where a class has no more, and is left out below half of them: so larger pools
are of fewer sets. Accuracy is that on the pool itself, and on other pictures, equally many of each class.

    python benchmarks/pools.py DATA --out results/pools --draws 3

Every result is a line of runs.jsonl, and a run that was stopped continues. "auto, pool" is `auto` fitted with the pool.
"official" is the method of the paper: for transclip, zlap and stata without the shots.
"""

import argparse
import multiprocessing
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from _runs import Records, write_table
from development_sets import Set, load_sets

from clipadapter import FewShotClassifier
from clipadapter.heads import TextFeatures, create_head, head_info

SIZES = (16, 64, 256, 1000, 5000)
SKEWS = ("balanced", "skewed", "few", "single")
METHODS = (
    "zero-shot",
    "linear-probe",
    "auto",
    "auto, pool",
    "transclip",
    "zlap",
    "ss-text-u",
    "ss-text-u, official",
    "stata",
    "stata, official",
)
NAMES = "satellite,clothing,textures,caltech 20,fabric,food"
MAX_OTHERS = 60
DIRICHLET = 0.5
SETS: dict[str, Set] = {}


def split(one: Set, shots: int, seed: int):
    """Rows of the shots, rows of each class that pools are drawn from, and rows of the other pictures."""
    rng = np.random.default_rng(1000 * seed + shots)
    shot_rows, sources, others = [], [], []
    for k in range(len(one.text)):
        class_rows = np.flatnonzero(one.y == k)
        class_rows = rng.permutation(class_rows if one.reserved is None else np.setdiff1d(class_rows, one.reserved))
        remaining = class_rows[shots:]
        n_others = min(MAX_OTHERS, len(remaining) // 3)
        shot_rows.append(class_rows[:shots])
        others.append(remaining[:n_others])
        sources.append(remaining[n_others:])
    return np.concatenate(shot_rows), sources, np.concatenate(others)


def draw_pool(sources, size: int, skew: str, seed: int):
    """Rows of a pool, or None if it would have less than half of its pictures."""
    rng, c = np.random.default_rng([seed, size, SKEWS.index(skew)]), len(sources)
    order = rng.permutation(c)
    if skew == "balanced":
        counts = size // c + (order < size % c)
    elif skew == "skewed":
        counts = rng.multinomial(size, rng.dirichlet(np.full(c, DIRICHLET)))
    else:
        present = 1 if skew == "single" else min(c, max(2, c // 4))
        counts = np.where(order < present, -(-size // present), 0)
    rows = [source[:n] for source, n in zip(sources, counts, strict=True)]
    pool = np.concatenate(rows)
    return pool if len(pool) >= size / 2 else None


def start(sets: dict[str, Set]) -> None:
    SETS.update(sets)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def fit(method: str, one: Set, rows, pool):
    name, _, variant = method.partition(", ")
    head = create_head(name) if variant != "official" else head_info(name).cls.official()
    labels = np.array([f"class {k:03}" for k in range(len(one.text))])
    text = TextFeatures(labels, one.text, one.scale)
    options = {"unlabelled": one.X[pool]} if head.transductive or variant == "pool" else {}
    return head.fit(one.X[rows], labels[one.y[rows]], text=text, blocks=one.blocks, **options), labels


def measure(cell):
    """Results of one draw of one set: all pools, all methods. A head that takes no pool is fitted once."""
    name, seed, shots, methods, sizes = cell
    one = SETS[name]
    rows, sources, others = split(one, shots, seed)
    fitted, results = {}, []
    for skew in SKEWS:
        for size in sizes:
            pool = draw_pool(sources, size, skew, seed)
            if pool is None:
                continue
            for method in methods:
                takes_pool = head_info(method.partition(", ")[0]).cls.transductive or method.endswith(", pool")
                start_time = time.perf_counter()
                if takes_pool or method not in fitted:
                    fitted[method] = fit(method, one, rows, pool)
                seconds = time.perf_counter() - start_time
                head, labels = fitted[method]
                parts = {"pool": pool, "others": others}
                accuracy = {
                    part: float((head.predict(one.X[part_rows]) == labels[one.y[part_rows]]).mean())
                    for part, part_rows in parts.items()
                }
                results.append(
                    {"set": name, "seed": seed, "shots": shots, "skew": skew, "size": size, "pictures": len(pool)}
                    | {"method": method, "seconds": seconds, **accuracy}
                )
    return results


def run(args) -> list[dict]:
    records = Records(args.out)
    known = records.keys("set", "seed", "shots")
    sets = load_sets(
        args.data,
        lambda: FewShotClassifier(encoder=args.encoder, quality="fast", precision="fp32", progress=True),
        False,
    )
    cells = [
        (name, seed, args.shots, args.methods, args.sizes)
        for seed in range(args.draws)
        for name in args.sets
        if (name, seed, args.shots) not in known
    ]
    context = multiprocessing.get_context("spawn")
    chosen = {name: sets[name] for name in args.sets}
    with context.Pool(args.workers, start, (chosen,)) as pool:
        for results in pool.imap_unordered(measure, cells):
            records.add(*results)
    return [r for r in records.rows if r["shots"] == args.shots]


def mean_cell(rows) -> str:
    """Accuracy on the pool and on other pictures, means over sets of their means over draws."""
    by_set: dict[str, list] = {}
    for r in rows:
        by_set.setdefault(r["set"], []).append((r["pool"], r["others"]))
    if not by_set:
        return "-"
    pool, others = 100 * np.mean([np.mean(values, axis=0) for values in by_set.values()], axis=0)
    return f"{pool:.1f} / {others:.1f}"


def table(rows, args) -> str:
    lines = [
        f"{args.shots} shots, {args.draws} draws, accuracy in % on the pool / on other pictures. "
        "In brackets: number of sets that have such a pool.",
    ]
    for skew in SKEWS:
        of_skew = [r for r in rows if r["skew"] == skew]
        sizes = [size for size in args.sizes if any(r["size"] == size for r in of_skew)]
        n_sets = {size: len({r["set"] for r in of_skew if r["size"] == size}) for size in sizes}
        lines += ["", f"**{skew}**", "", f"| | {' | '.join(f'{size} ({n_sets[size]})' for size in sizes)} | all |"]
        lines.append("|---|" + "---:|" * (len(sizes) + 1))
        for method in args.methods:
            own = [r for r in of_skew if r["method"] == method]
            cells = [mean_cell([r for r in own if r["size"] == size]) for size in sizes]
            lines.append(f"| {method} | {' | '.join(cells)} | {mean_cell(own)} |")
    lines += ["", "**by set, all pools**", "", f"| | {' | '.join(args.sets)} | seconds a fit |"]
    lines.append("|---|" + "---:|" * (len(args.sets) + 1))
    for method in args.methods:
        own = [r for r in rows if r["method"] == method]
        cells = [mean_cell([r for r in own if r["set"] == name]) for name in args.sets]
        fits = [r["seconds"] for r in own if r["seconds"] > 1e-4]  # the others were fitted already
        lines.append(f"| {method} | {' | '.join(cells)} | {np.mean(fits):.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for runs.jsonl and table.md")
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--sets", default=NAMES, help="of development_sets.py, separated by commas")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="separated by commas")
    parser.add_argument("--methods", default=";".join(METHODS), help="separated by semicolons")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    args.sets, args.methods = args.sets.split(","), args.methods.split(";")
    args.sizes = [int(size) for size in args.sizes.split(",")]
    args.out.mkdir(parents=True, exist_ok=True)
    write_table(table(run(args), args), args.out)


if __name__ == "__main__":
    main()
