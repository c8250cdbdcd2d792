"""The table of heads in docs/guides/which-head.md: year, needs, cost, and how each did in a study.

RECORDS is the folder of a finished `clipadapter bench run few-shot`, in which every head was fitted to the same shots.
"mean" is the mean accuracy over all data sets and numbers of shots; "near the best" counts the cells of the table in
which a head is less than one standard error of the difference below the best one that sees the same pictures.

    clipadapter bench run few-shot --data ... --encoder lite --out RECORDS
    python benchmarks/which_head.py RECORDS
"""

import argparse
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import tomllib

from clipadapter.bench import read_runs
from clipadapter.heads import head_info, list_heads

NEEDS = {"unprojected": "features before the projection", "second-encoder": "two encoders"}


def year_of(paper: str) -> str:
    """Year of an arXiv number."""
    number = re.search(r"arxiv\.org/abs/(\d\d)\d\d\.", paper or "")
    return f"20{number[1]}" if number else ""


def needs_of(cls) -> str:
    needs = [
        *(["class text"] if cls.needs_text else []),
        *(["pictures without labels"] if cls.transductive else []),
        *([NEEDS[cls.reads]] if cls.reads in NEEDS else []),
        *(["text tower"] if cls.needs_tower else []),
        *(["both towers"] if cls.tunes_encoder else []),
    ]
    return ", ".join(needs)


def accuracies(folder: Path) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """By data set and shots, the accuracy of each head in % by seed."""
    cells: dict[tuple[str, int], dict[str, dict[int, float]]] = {}
    for run in read_runs(folder / "runs.jsonl"):
        if run.metrics is not None:
            by_head = cells.setdefault((run.data.support, run.shots), {})
            by_head.setdefault(run.head, {})[run.seed] = 100 * run.metrics.accuracy
    return {
        cell: {head: np.array([by_seed[seed] for seed in sorted(by_seed)]) for head, by_seed in by_head.items()}
        for cell, by_head in cells.items()
    }


def count_near_best(cells, heads) -> dict[str, int]:
    """In how many cells each of some heads is the best one or not clearly below it."""
    near = dict.fromkeys(heads, 0)
    for by_head in cells.values():
        known = {head: values for head, values in by_head.items() if head in near}
        best = max(known.values(), key=np.mean)
        for head, values in known.items():
            gaps = best - values
            near[head] += bool(gaps.mean() <= gaps.std(ddof=1) / np.sqrt(len(gaps)))
    return near


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    args = parser.parse_args()
    cells = accuracies(args.records)
    costs = tomllib.loads((files("clipadapter.bench") / "costs.toml").read_text(encoding="utf-8"))
    classes = {name: head_info(name).cls for name in list_heads()}
    measured = {head for by_head in cells.values() for head in by_head}
    inductive = [head for head in measured if not classes[head].transductive]
    near = count_near_best(cells, inductive) | count_near_best(cells, measured - set(inductive))
    mean = {h: np.mean([by_head[h].mean() for by_head in cells.values() if h in by_head]) for h in measured}
    print(f"{len(cells)} cells")
    print("| head | year | needs | seconds of a fit | mean | near the best |\n|---|---|---|---:|---:|---:|")
    for head in sorted(mean, key=lambda h: -mean[h]):
        paper = head_info(head).facts.get("paper", "")
        cost = f"{costs[head][0]:g}" if head in costs else ""
        star = "*" if classes[head].transductive else ""
        known = f"{year_of(paper)} | {needs_of(classes[head])} | {cost}"
        print(f"| `{head}`{star} | {known} | {mean[head]:.1f} | {near[head]} |")


if __name__ == "__main__":
    main()
