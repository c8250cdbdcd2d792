"""docs/results.md from what the other scripts left.

ROOT holds `costs.md` of `head_costs.py`, and for each set a folder with `equal/`, `wrong/` and `unequal/`, each an
--out of `heads.py`. The first line of the set's `title` file is its name.

    python benchmarks/results.py ROOT --out docs/results.md
"""

import argparse
import json
from collections.abc import Collection
from pathlib import Path

import numpy as np

from clipadapter.heads import fidelity_of

PREFACE = """# Results

Made by `benchmarks/heads.py`, `head_costs.py` and `results.py`; data is not part of the project. Accuracy in %,
mean ± sd over seeds. Every head has one default. Nothing is chosen on test pictures within a run.
[A decision record](decisions/0029-auto.md) and the heads' files say how the defaults were chosen. Some of these sets
were seen meanwhile. Heads with a * use the test pictures (without labels) when they are fitted; `auto` is not compared
with them. Heads with a ‡ are not the published method: the differences are [below](#heads-that-are-not-as-published).

Published figures of these methods are on other sets (the eleven of CoOp, ImageNet first) with encoders whose weights
were not available here. These tables neither confirm nor refute them. The arithmetic can be checked: the formulas are
tested against plain loops, and {verified} of these {count} heads, in some form, against outputs of released code. The
tables have the defaults of this project, which may differ from that form: `clipadapter heads NAME`
says how.
"""
FIDELITY = """## Heads that are not as published

| head | what it is |
|---|---|
"""
REGRET = """## Regret of auto

Best of the other heads in hindsight, cell by cell, minus `auto`; below zero `auto` was better than each of them.

| set | shots | best other head | its accuracy | regret |
|---|---|---|---:|---:|
"""
COSTS = """## What it costs

Seconds and peak memory of one fit and of predicting, on two cores, while other programs were running. "over data" is
what it adds to the process that holds the features; a limit of 90 s for the whole process.

"""
PROTOCOLS = {"equal": "", "wrong": ", 10 % wrong labels", "unequal": ", 1 to 16 shots a class"}


class Runs:
    """The runs of one folder: accuracy in % by head, shots and seed."""

    def __init__(self, folder: Path) -> None:
        runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
        self.shots = sorted({run["shots"] for run in runs})
        self.seeds = len({run["seed"] for run in runs})
        self.heads = list(dict.fromkeys(run["head"] for run in runs if run["head"] != "auto"))
        self.heads.insert(self.heads.index("clip-adapter") + 1, "auto")
        self.transductive = {run["head"] for run in runs if run["transductive"]}
        self.cells = {(h, k): [] for h in self.heads for k in self.shots}
        for run in runs:
            self.cells[run["head"], run["shots"]].append(100 * run["accuracy"])
        short = [cell for cell, values in self.cells.items() if len(values) != self.seeds]
        if short:
            raise SystemExit(f"{folder}: not every seed is there for {short[0]}; run heads.py on it to the end")

    def table(self) -> str:
        names = ["1 to 16" if k == 0 else str(k) for k in self.shots]
        lines = ["| head | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
        for head in self.heads:
            values = [np.array(self.cells[head, k]) for k in self.shots]
            row = " | ".join(f"{v.mean():.1f} ± {v.std(ddof=1):.1f}" for v in values)
            mark = "" if fidelity_of(head).is_as_published else "‡"
            lines.append(f"| {head}{'*' if head in self.transductive else ''}{mark} | {row} |")
        return "\n".join(lines)

    def regrets(self) -> list[tuple[int, str, float, float]]:
        """Shots, best other head, its accuracy, what `auto` lacks of it."""
        others = [head for head in self.heads if head != "auto" and head not in self.transductive]
        found = []
        for k in self.shots:
            best = max(others, key=lambda head: np.mean(self.cells[head, k]))
            accuracy = float(np.mean(self.cells[best, k]))
            found.append((k, best, accuracy, accuracy - float(np.mean(self.cells["auto", k]))))
        return found


def preface(heads: Collection[str]) -> str:
    """What is said above the tables of some heads."""
    verified = sum(fidelity_of(head).kind == "verified" for head in heads)
    return PREFACE.format(verified=verified, count=len(heads))


def fidelity_table(heads: Collection[str]) -> str:
    """What each head is that is not the published method."""
    stated = {head: fidelity_of(head) for head in sorted(heads)}
    return FIDELITY + "".join(f"| {head} | {found} |\n" for head, found in stated.items() if not found.is_as_published)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    parts, rows, every, heads = [], [], {name: [] for name in PROTOCOLS}, set()
    folders = sorted(path.parent for path in args.root.glob("*/title"))
    sets = {folder: (folder / "title").read_text().splitlines()[0] for folder in folders}
    for protocol, words in PROTOCOLS.items():
        for folder, title in sets.items():
            runs = Runs(folder / protocol)
            heads.update(runs.heads)
            parts.append(f"## {title}{words}, {runs.seeds} seeds\n\n{runs.table()}\n")
            for k, best, accuracy, regret in runs.regrets():
                every[protocol].append(regret)
                rows.append(f"| {title}{words} | {k or '1-16'} | {best} | {accuracy:.1f} | {regret:+.2f} |")
        worst = f"{np.mean(every[protocol]):+.2f}, {max(every[protocol]):+.2f}"
        rows.append(f"| **both{words or ', right labels'}** | mean, worst | | | **{worst}** |")
    parts[:0] = [preface(heads)]
    parts.append(fidelity_table(heads))
    parts.append(REGRET + "\n".join(rows) + "\n")
    parts.append(COSTS + (args.root / "costs.md").read_text().strip() + "\n")
    args.out.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
