"""What docs/trust.md promises, on many small sets: calibration, sets of classes, and rejection with two to ten classes.

DATA is a folder as `development_sets.py` reads it. Of each of its seven sources, subsets of 2, 2, 2, 3, 4, 6 and 10
classes are drawn, as far as there are so many. In turn the class text is as it is, exchanged between half of the
classes, and meaningless ("class a", "class b"; of published features it is that of other classes).

    python benchmarks/promises.py DATA --out results/promises --heads auto,clip-adapter --shots 2,4,8,16

Shots and test pictures come from the training parts, see `development_sets.draw`. "chance" is the calibration error
that true probabilities would show on as many pictures. "above uniform" counts the sets on which the mean log-loss of
the draws is above that of equal probabilities. Each result is written to runs.jsonl at once, and a stopped run
continues there.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _runs import Draw, Records, make_parser, parse, write_table
from development_sets import Set, draw, load_food, load_pictures, load_whole

from clipadapter import FewShotClassifier
from clipadapter.data import textiles
from clipadapter.heads import TextFeatures
from uncertainty import measure

SIZES = (2, 2, 2, 3, 4, 6, 10)
COLUMNS = {"log-loss": 3, "ECE": 1, "chance": 1, "coverage": 1, "size": 2, "rejected": 1}
"""Columns of the table, with their digits."""


def load_sources(data: Path, classifier) -> dict[str, Set]:
    fabric = load_pictures(textiles(), None, classifier)
    return load_whole(data, classifier, False) | {"fabric": fabric, "food": load_food(data)}


def small_sets(sources: dict[str, Set], letters: np.ndarray) -> dict[str, Set]:
    """The sets by name; ``letters`` is the text of "class a", "class b" and so on."""
    rng, sets = np.random.default_rng(42), {}
    for name, source in sources.items():
        order = rng.permutation(len(source.text))
        for c in SIZES:
            if c > len(source.text):
                continue
            chosen, others = np.sort(order[:c]), np.roll(order, c)[:c]
            order = np.roll(order, -c)
            one, kind = source.some(list(chosen)), ("as is", "exchanged", "meaningless")[len(sets) % 3]
            if kind == "exchanged":
                one = one.bad()
            elif kind == "meaningless":
                one = replace(one, text=letters[:c] if letters.shape[1] == one.text.shape[1] else source.text[others])
            sets[f"{name} {c}, {'-'.join(map(str, chosen))}, text {kind}"] = one
    return sets


def run(args) -> list[dict]:
    def classifier():
        return FewShotClassifier(encoder=args.encoder, quality="fast", precision="fp32", progress=True)

    letters = classifier().encode_classes([f"class {letter}" for letter in "abcdefghij"]).embeddings
    sets = small_sets(load_sources(args.data, classifier), letters)
    records = Records(args.out)
    known = records.keys("set", "head", "shots", "seed")
    for seed in range(args.seeds):
        for shots in args.shots:
            for name, one in sets.items():
                rows, Q, truth = draw(one, shots, seed)
                names = np.array([f"class {k:02}" for k in range(len(one.text))])
                text = TextFeatures(list(names), one.text, one.scale)
                drawn = Draw(shots, seed, one.X[rows], names[one.y[rows]], Q, names[truth], text)
                for head in args.heads:
                    if (name, head, shots, seed) not in known:
                        cell = {"set": name, "head": head, "shots": shots, "seed": seed, "classes": len(names)}
                        records.add({**cell, **measure(head, drawn)})
    return records.rows


def report(records: list[dict]) -> str:
    columns = [*COLUMNS, "ECE / chance", "above uniform"]
    lines = ["| head | shots | sets | " + " | ".join(columns) + " |", "|---|---:|---:|" + "---:|" * len(columns)]
    for head in dict.fromkeys(r["head"] for r in records):
        for shots in sorted({r["shots"] for r in records}):
            rows = [r for r in records if (r["head"], r["shots"]) == (head, shots)]
            if not rows:
                continue
            mean = {name: float(np.mean([r[name] for r in rows])) for name in COLUMNS}
            losses: dict[tuple, list[float]] = {}
            for r in rows:
                losses.setdefault((r["set"], r["classes"]), []).append(r["log-loss"])
            above = sum(np.mean(values) > np.log(c) for (_, c), values in losses.items())
            cells = [f"{mean[name]:.{digits}f}" for name, digits in COLUMNS.items()]
            cells += [f"{mean['ECE'] / mean['chance']:.2f}", f"{above} of {len(losses)}"]
            lines.append(f"| `{head}` | {shots} | {len(losses)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = make_parser(__doc__, shots="2,4,8,16", seeds=2)
    parser.add_argument("data", type=Path)
    parser.add_argument("--heads", default="auto,clip-adapter,linear-probe,gda,tip-adapter,zero-shot")
    args = parse(parser)
    args.heads = args.heads.split(",")
    torch.set_num_threads(1)
    write_table(report(run(args)), args.out)


if __name__ == "__main__":
    main()
