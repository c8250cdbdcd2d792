"""Small sets of many kinds, on which defaults are chosen: a head beside constant ratios, the probe and zero-shot.

DATA is a folder with caltech101-mini, clothing10, satellite7, steel6 and textures10 (folders of pictures with `train`
and `test`) and food10-clip-vitb32 (features, see `_study.read_features`); the fabric comes with the extra
`demo`. Of these, 24 sets of 3 to 30 classes are made, with class text as it is, with half of the classes' text
exchanged ("bad"), and moved half of the way to the mean of pictures that are neither shots nor judged ("good").
--small takes 30 others: ten of 2 to 6 classes with class text as it is, with the text of all classes exchanged, and
with text that means nothing ("class a", "class b"; names of other things for the features of food).

Shots and judged pictures come from the training parts alone: up to 30 of each class that are not shots, at least 4, so
that the column of 16 shots has as many as a class can spare, 12 of Caltech's. --test judges on the test parts in place
of these (fabric and food have none and are left out): it is for one final table.

Every result is a line of runs.jsonl, and a run that was stopped goes on. The tree that is measured is the one that
Python finds, so that two trees are compared by two calls:

    python benchmarks/methods/development_sets.py DATA --out after
    PYTHONPATH=OTHER_TREE/src python benchmarks/methods/development_sets.py DATA --out before
    python benchmarks/methods/development_sets.py --beside before after

Few shots are judged by the worst draws, which need many, of few heads:

    python benchmarks/methods/development_sets.py DATA --small --heads zero-shot,linear-probe,auto --ratios= \\
        --draws 20 --out few

"distance" is to the constant ratio that is best for all sets at that number of shots, in hindsight.
"""

import argparse
import multiprocessing
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from _study import Records, read_features, table_head, write_table
from safetensors.numpy import load_file

from clipadapter import FewShotClassifier, load_dataset
from clipadapter.data import textiles
from clipadapter.heads import TextFeatures, create_head

SHOTS = (1, 2, 3, 4, 8, 16)
MIN_TEST_PICTURES, MAX_TEST_PICTURES = 4, 30
HEADS = ("zero-shot", "linear-probe", "clip-adapter", "hoso", "auto")
RATIOS = (0.2, 0.4, 0.6, 0.8)
PICTURES = ("clothing10", "satellite7", "textures10", "steel6", "caltech101-mini")
SMALL = (
    ("fabric", [1, 2]), ("fabric", [0, 1, 2]), ("steel", [1, 3]), ("steel", [0, 1, 3, 5]), ("satellite", [2, 4, 5]),
    ("satellite", [0, 1, 2, 4, 5, 6]), ("textures", [1, 7]), ("textures", [0, 3, 4, 9]), ("clothing", [0, 2, 3, 7, 9]),
    ("food", [0, 2, 5, 6, 8]),
)  # fmt: skip
"""Classes of the small sets, chosen by name, before any result: alike, or of which `lite` knows little."""


@dataclass
class Set:
    """Features and labels that shots come from, those that are judged if it is a test part, and class text."""

    X: np.ndarray
    y: np.ndarray
    text: np.ndarray
    scale: float
    test: tuple[np.ndarray, np.ndarray] | None = None
    reserved: np.ndarray | None = None
    blocks: tuple = ()

    def some(self, classes) -> "Set":
        """Of some classes only, in this order."""
        place = {old: new for new, old in enumerate(classes)}

        def part(X, y):
            kept = np.isin(y, classes)
            return X[kept], np.array([place[k] for k in y[kept]])

        return Set(
            *part(self.X, self.y), self.text[classes], self.scale, self.test and part(*self.test), blocks=self.blocks
        )

    def bad(self, share: float = 0.5) -> "Set":
        """The text of half of the classes, or another share, goes round among them."""
        rng = np.random.default_rng(0)
        chosen = rng.permutation(len(self.text))[: max(2, int(share * len(self.text)))]
        text = self.text.copy()
        text[chosen] = text[np.roll(chosen, 1)]
        return replace(self, text=text)

    def good(self) -> "Set":
        """Text half of the way to the mean of a quarter of the pictures, which are not used otherwise."""
        rng = np.random.default_rng(0)
        own = [rng.permutation(np.flatnonzero(self.y == k)) for k in range(len(self.text))]
        reserved = [rows[: min(len(rows) // 4, 30)] for rows in own]
        x = unit(self.X[:, : self.blocks[0].width])
        means = np.stack([x[rows].mean(axis=0) for rows in reserved])
        means = unit(means - means.mean(axis=0))
        middle = self.text.mean(axis=0)
        away = self.text - middle
        length = np.linalg.norm(away, axis=1).mean()
        text = unit(middle + 0.5 * away + 0.5 * length * means)
        return replace(self, text=text, reserved=np.concatenate(reserved))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def load_pictures(train, test, classifier) -> Set:
    model = classifier()
    names = train.class_names
    parts = [model.extract_features(part.paths, part.labels, names) for part in (train, test) if part is not None]
    arrays = [(part.plain, np.array([names.index(label) for label in part.y])) for part in parts]
    text = model.encode_classes(names)
    test_part = arrays[1] if len(arrays) > 1 else None
    return Set(*arrays[0], text.embeddings, text.logit_scale, test_part, blocks=parts[0].blocks)


def load_whole(data: Path, classifier, with_test: bool, names=PICTURES) -> dict[str, Set]:
    """The sets that others are parts of; `classifier` makes one whose encoder gives the features."""
    return {
        name.removesuffix("-mini").rstrip("0123456789"): load_pictures(
            load_dataset(data / name / "train"), load_dataset(data / name / "test") if with_test else None, classifier
        )
        for name in names
    }


def load_food(data: Path) -> Set:
    food, text = read_features(data / "food10-clip-vitb32", 100.0)
    labels = np.array([text.labels.index(label) for label in food.y])
    return Set(food.plain, labels, text.embeddings, text.logit_scale, blocks=food.blocks)


def load_sets(data: Path, classifier, with_test: bool) -> dict[str, Set]:
    """The 24 sets by name."""
    whole = load_whole(data, classifier, with_test)
    clothing, satellite, textures, steel, caltech = whole.values()
    order = np.random.default_rng(7).permutation(len(caltech.text))
    sets = {
        "clothing": clothing,
        "clothing bad": clothing.bad(),
        "clothing good": clothing.good(),
        "clothing 4": clothing.some([2, 5, 9, 0]),
        "satellite": satellite,
        "satellite good": satellite.good(),
        "satellite 4": satellite.some([0, 2, 1, 6]),
        "textures": textures,
        "textures bad": textures.bad(),
        "textures good": textures.good(),
        "textures 5": textures.some([0, 2, 4, 6, 8]),
        "steel": steel,
        "steel good": steel.good(),
        "steel 3": steel.some([0, 2, 4]),
        "caltech 3": caltech.some(sorted(order[:3])),
        "caltech 8": caltech.some(sorted(order[3:11])),
        "caltech 20": caltech.some(sorted(order[11:31])),
        "caltech 30": caltech.some(sorted(order[31:61])),
        "caltech 12 bad": caltech.some(sorted(order[61:73])).bad(),
        "caltech 12 good": caltech.some(sorted(order[73:85])).good(),
    }
    if with_test:
        return sets
    foods = load_food(data)
    return sets | {
        "fabric": load_pictures(textiles(), None, classifier),
        "food": foods,
        "food bad": foods.bad(),
        "food 4": foods.some([1, 3, 4, 7]),
    }


def load_small_sets(data: Path, classifier, with_test: bool) -> dict[str, Set]:
    """The ten sets of 2 to 6 classes, each with three kinds of class text."""
    whole = load_whole(data, classifier, with_test, PICTURES[:-1])
    if not with_test:
        whole |= {"fabric": load_pictures(textiles(), None, classifier), "food": load_food(data)}
    meaningless = classifier().encode_classes([f"class {letter}" for letter in "abcdef"]).embeddings
    other_names = load_file(data / "clip-text-vitb32" / "text_features.safetensors")["imagenet1k"]
    sets = {}
    for name, classes in SMALL:
        if name in whole:
            one = whole[name].some(classes)
            unrelated = other_names if name == "food" else meaningless
            sets[f"{name} {len(classes)}"] = one
            sets[f"{name} {len(classes)} exchanged"] = one.bad(1.0)
            sets[f"{name} {len(classes)} meaningless"] = replace(one, text=unrelated[: len(classes)].astype(np.float32))
    return sets


def draw(one: Set, shots: int, seed: int):
    """Rows of the shots, and features and labels of what is judged."""
    rng = np.random.default_rng(1000 * seed + shots)
    rows, test_rows = [], []
    for k in range(len(one.text)):
        class_rows = np.flatnonzero(one.y == k)
        class_rows = rng.permutation(class_rows if one.reserved is None else np.setdiff1d(class_rows, one.reserved))
        n = min(shots, len(class_rows) - (0 if one.test else MIN_TEST_PICTURES))
        rows.extend(class_rows[:n])
        test_rows.extend(class_rows[n : n + MAX_TEST_PICTURES])
    test_part = one.test or (one.X[test_rows], one.y[test_rows])
    return np.array(rows), *test_part


SETS: dict[str, Set] = {}


def start(sets: dict[str, Set]) -> None:
    SETS.update(sets)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def measure(cell):
    name, shots, seed, head = cell
    one = SETS[name]
    rows, Q, truth = draw(one, shots, seed)
    names = [f"class {k:02}" for k in range(len(one.text))]
    text = TextFeatures(names, one.text, one.scale)
    method, _, ratio = head.partition(" ")
    fitted = create_head(method, **({"alpha": float(ratio)} if ratio else {}))
    start_time = time.perf_counter()
    fitted.fit(one.X[rows], np.array(names)[one.y[rows]], text=text)
    seconds = time.perf_counter() - start_time
    accuracy = float((fitted.predict(Q) == np.array(names)[truth]).mean())
    alpha = getattr(fitted, "alpha_", None)
    return {
        "set": name, "shots": shots, "seed": seed, "head": head, "accuracy": accuracy, "judged": len(truth),
        "ratio": alpha, "seconds": seconds,
    }  # fmt: skip


def run(args) -> list[dict]:
    records = Records(args.out)
    known = records.keys("set", "shots", "seed", "head")
    sets = (load_small_sets if args.small else load_sets)(
        args.data,
        lambda: FewShotClassifier(encoder=args.encoder, quality="fast", precision="fp32", progress=True),
        args.test,
    )
    heads = [*args.heads, *(f"clip-adapter {ratio}" for ratio in args.ratios)]
    cells = [(s, k, seed, h) for seed in range(args.draws) for s in sets for k in SHOTS for h in heads]
    context = multiprocessing.get_context("spawn")
    with context.Pool(args.workers, start, (sets,)) as pool:
        for record in pool.imap_unordered(measure, [cell for cell in cells if cell not in known]):
            records.add(record)
    return records.rows


def table(done) -> str:
    """Means by shots; the distance to the best constant; and the cells in which the head is farthest behind."""
    heads = list(dict.fromkeys(r["head"] for r in done))
    sets = list(dict.fromkeys(r["set"] for r in done))
    values: dict[tuple, list[float]] = {}
    for r in done:
        values.setdefault((r["head"], r["set"], r["shots"]), []).append(100 * r["accuracy"])
    mean = {key: float(np.mean(accuracies)) for key, accuracies in values.items()}
    draws = 1 + max(r["seed"] for r in done)
    lines = [f"{len(sets)} sets, {draws} draws, mean accuracy in %", ""]
    lines += table_head(["head", *SHOTS, "seconds a fit"])
    every = {(h, k): np.array([mean[h, s, k] for s in sets]) for h in heads for k in SHOTS}
    for h in heads:
        cost = np.mean([r["seconds"] for r in done if r["head"] == h])
        lines.append(f"| {h} | " + " | ".join(f"{every[h, k].mean():.1f}" for k in SHOTS) + f" | {cost:.2f} |")
    constants = [h for h in heads if h.startswith("clip-adapter ")]
    for h in (h for h in heads if h in ("clip-adapter", "hoso") and constants):
        best = [max(constants, key=lambda c: every[c, k].mean()) for k in SHOTS]  # noqa: B023
        rows = {"beside the best constant": [every[h, k] - every[c, k] for k, c in zip(SHOTS, best, strict=True)]}
        for other in ("clip-adapter 0.2", "zero-shot", "linear-probe"):
            if other in heads:
                rows[f"beside {other}"] = [every[h, k] - every[other, k] for k in SHOTS]
        lines += ["", f"{h}: mean difference, and that of the set which is farthest behind", ""]
        lines += table_head(["", *SHOTS])
        lines.append("| best constant | " + " | ".join(c.partition(" ")[2] for c in best) + " |")
        for what, accuracies in rows.items():
            cells = [f"{d.mean():+.1f} ({d.min():+.1f} {sets[int(d.argmin())]})" for d in accuracies]
            lines.append(f"| {what} | " + " | ".join(cells) + " |")
        falls = [
            f"{s} {a} to {b}: {mean[h, s, b] - mean[h, s, a]:+.1f} ± {error(values[h, s, a], values[h, s, b]):.1f}"
            for s in sets
            for a, b in zip(SHOTS, SHOTS[1:], strict=False)
            if mean[h, s, b] < mean[h, s, a]
        ]
        lines += ["", "falls as shots grow: " + ("; ".join(falls) or "none")]
    lines += worst_draws(done)
    lines += ["", *table_head(["set", "head", *SHOTS], 2)]
    for s in sets:
        for h in heads:
            lines.append(f"| {s} | {h} | " + " | ".join(f"{mean[h, s, k]:.1f}" for k in SHOTS) + " |")
    return "\n".join(lines) + "\n"


def worst_draws(done) -> list[str]:
    """How far a head is behind the better of the probe and zero-shot in single draws."""
    accuracy = {(r["head"], r["set"], r["shots"], r["seed"]): 100 * r["accuracy"] for r in done}
    heads = dict.fromkeys(r["head"] for r in done)
    if not {"zero-shot", "linear-probe"} <= heads.keys():
        return []
    lines = ["", "% of draws more than 10 points below the better of probe and zero-shot, and the 5 % quantile", ""]
    lines += table_head(["head", *SHOTS])
    for h in heads:
        cells = []
        for k in SHOTS:
            draws = [key[1:] for key in accuracy if key[0] == h and key[2] == k]
            better = [max(accuracy[(other, *key)] for other in ("zero-shot", "linear-probe")) for key in draws]
            behind = np.array([accuracy[(h, *key)] for key in draws]) - better
            cells.append(f"{100 * (behind < -10).mean():.1f} ({np.quantile(behind, 0.05):+.1f})")
        lines.append(f"| {h} | " + " | ".join(cells) + " |")
    return lines


def error(first, second) -> float:
    """Standard error of a difference of means over draws."""
    return float(np.sqrt(np.var(first) / max(len(first) - 1, 1) + np.var(second) / max(len(second) - 1, 1)))


def compare_runs(before, after) -> str:
    """Paired differences of heads that both have, over the cells that both have."""
    records_by_cell = [{(r["head"], r["set"], r["shots"], r["seed"]): r for r in part} for part in (before, after)]
    cells_of_both = records_by_cell[0].keys() & records_by_cell[1].keys()
    lines = table_head(["head", *SHOTS, "seconds"])
    for head in dict.fromkeys(key[0] for key in records_by_cell[1] if key in cells_of_both):
        cells = []
        for k in SHOTS:
            pairs = [
                [part[key]["accuracy"] for part in records_by_cell]
                for key in cells_of_both
                if key[0] == head and key[2] == k
            ]
            old, new = 100 * np.array(pairs).T
            cells.append(f"{old.mean():.1f} to {new.mean():.1f}")
        cells_of_head = [key for key in cells_of_both if key[0] == head]
        cost = [np.mean([part[key]["seconds"] for key in cells_of_head]) for part in records_by_cell]
        lines.append(f"| {head} | " + " | ".join(cells) + f" | {cost[0]:.2f} to {cost[1]:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--heads", default=",".join(HEADS))
    parser.add_argument("--ratios", default=",".join(map(str, RATIOS)), help="constants of clip-adapter beside it")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="the 30 small sets in place of the 24")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--test", action="store_true", help="judge on the test parts: once, for a final table")
    parser.add_argument("--out", type=Path, help="folder for runs.jsonl and table.md")
    parser.add_argument("--beside", type=Path, nargs=2, metavar=("BEFORE", "AFTER"), help="compare two such folders")
    args = parser.parse_args()
    if args.beside:
        print(compare_runs(*(Records(folder).rows for folder in args.beside)))
        return
    if args.data is None or args.out is None:
        parser.error("give DATA and --out, or --beside")
    args.heads = [name for name in args.heads.split(",") if name]
    args.ratios = [name for name in args.ratios.split(",") if name]
    write_table(table(run(args)), args.out)


if __name__ == "__main__":
    main()
