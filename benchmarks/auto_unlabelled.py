"""`auto` with and without pictures without labels, on the development sets and on pools of several kinds.

DATA and the sets are those of development_sets.py. Of each class, the pictures that are no shots are halved: one half
is judged (30 at most), the other one is the pool. Kinds of pools:

    balanced   all of the pool's pictures
    skewed     the most frequent class has 16 times as many as the rarest
    single     one class
    small      16 pictures
    judged     the judged pictures themselves, so that the fit has seen them without labels
    foreign    60 pictures of another set

Every result is a line of runs.jsonl, and a run that was stopped goes on:

    python benchmarks/auto_unlabelled.py DATA --out OUT

With --sizes the balanced pool is cut to these numbers of pictures, and scikit-learn's digits are a set too:

    python benchmarks/auto_unlabelled.py DATA --out OUT --sizes 16,64,256,1000 --sets "fabric,food bad,digits"

A result has the accuracy and the log-loss without the pool, with it as `auto` decides, always with the learned weights,
and with constant weights of the regression. With one shot per class `auto` has a constant weight.
"""

import argparse
import json
import multiprocessing
import warnings
from pathlib import Path

import numpy as np
import torch
from development_sets import Set, load_sets

from clipadapter import FewShotClassifier
from clipadapter.heads import TextFeatures, create_head
from clipadapter.heads.auto import unlabelled

SHOTS = (1, 2, 4, 8)
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
KINDS = ("balanced", "skewed", "single", "small", "judged", "foreign")
CONSTANTS = (0.25, 0.5, 1.0)
MIN_LEFT, MAX_JUDGED, SMALL_POOL, FOREIGN_POOL, SKEW = 8, 30, 16, 60, 16

SETS: dict[str, Set] = {}


def draw(one: Set, shots: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Rows of the shots, of the judged pictures, and of the pool by class."""
    rng = np.random.default_rng(1000 * seed + shots)
    rows, judged, pool = [], [], []
    for k in range(len(one.text)):
        own = np.flatnonzero(one.y == k)
        own = rng.permutation(own if one.reserved is None else np.setdiff1d(own, one.reserved))
        left = own[max(1, min(shots, len(own) - MIN_LEFT)) :]
        n_judged = min(len(left) // 2, MAX_JUDGED)
        rows.extend(own[: len(own) - len(left)])
        judged.extend(left[:n_judged])
        pool.append(left[n_judged:])
    return np.array(rows), np.array(judged), pool


def make_pool(one: Set, name: str, kind: str, judged: np.ndarray, pool: list[np.ndarray], seed: int) -> np.ndarray:
    """Features of the pictures without labels."""
    rng = np.random.default_rng(seed)
    c = len(pool)
    if kind == "judged":
        return one.X[judged]
    if kind.isdigit():
        return one.X[rng.permutation(np.concatenate(pool))[: int(kind)]]
    if kind == "foreign":
        other = next((other for other in ("steel", "clothing") if other not in name and other in SETS), None)
        if other is None or SETS[other].X.shape[1] != one.X.shape[1]:
            return rng.standard_normal((FOREIGN_POOL, one.X.shape[1])).astype(np.float32)
        return SETS[other].X[rng.permutation(len(SETS[other].X))[:FOREIGN_POOL]]
    if kind == "skewed":
        shares = SKEW ** -(np.arange(c) / max(c - 1, 1))
        order = rng.permutation(c)
        pool = [pool[k][: max(1, round(share * len(pool[k])))] for k, share in zip(order, shares, strict=True)]
    elif kind == "single":
        pool = [pool[int(rng.integers(c))]]
    rows = rng.permutation(np.concatenate(pool))
    return one.X[rows[:SMALL_POOL] if kind == "small" else rows]


def fit(one: Set, rows: np.ndarray, pool: np.ndarray | None):
    names = [f"class {k:02}" for k in range(len(one.text))]
    text = TextFeatures(names, one.text, one.scale)
    blocks = [(block.name, block.width) for block in one.blocks]
    return create_head("auto").fit(one.X[rows], np.array(names)[one.y[rows]], text, pool, blocks)


def judge(logits: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Accuracy and log-loss, with one label in twenty taken for wrong."""
    p = torch.from_numpy(logits).double().softmax(dim=1).numpy()
    right = p[np.arange(len(truth)), truth]
    loss = -np.log(0.95 * right + 0.05 / p.shape[1])
    return float((logits.argmax(axis=1) == truth).mean()), float(loss.mean())


def measure(cell: tuple[str, int, int, tuple[str, ...]]) -> list[dict]:
    name, shots, seed, kinds = cell
    one = SETS[name]
    rows, judged, by_class = draw(one, shots, seed)
    truth, base = one.y[judged], fit(one, rows, None).logits(one.X[judged])
    results = []
    for kind in kinds:
        pool = make_pool(one, name, kind, judged, by_class, seed)
        record = {"set": name, "shots": shots, "seed": seed, "kind": kind, "pool": len(pool), "judged": len(judged)}
        decided, chosen = {}, unlabelled.choose_weights

        def always(*args, chosen=chosen, decided=decided):
            weights, gain = chosen(*args)
            decided.update(weights=weights, gain=gain)
            return [weights[0], max(weights[1], 1e-6)], 1.0

        min_class_ratio = unlabelled.MIN_CLASS_RATIO
        unlabelled.choose_weights, unlabelled.MIN_CLASS_RATIO = always, 0.0
        try:
            mixed = fit(one, rows, pool).logits(one.X[judged])
        finally:
            unlabelled.choose_weights, unlabelled.MIN_CLASS_RATIO = chosen, min_class_ratio
        weights = decided.get("weights", [1.0, unlabelled.ONE_SHOT_WEIGHT])
        regression = (mixed - weights[0] * base) / max(weights[1], 1e-6)
        if decided:
            is_used = decided["gain"] > unlabelled.MIN_GAIN and weights[1] > 0
        else:
            is_used = fit(one, rows, pool).unlabelled_share_ > 0
        record |= {"gain": decided.get("gain"), "weight": weights[1] if is_used else 0.0}
        parts = {"without": base, "with": mixed if is_used else base, "always": mixed}
        parts |= {f"constant {weight}": base + weight * regression for weight in CONSTANTS}
        for column, logits in parts.items():
            record[column], record[f"{column} loss"] = judge(logits, truth)
        results.append(record)
    return results


def load_digits_set(model: FewShotClassifier) -> Set:
    """110 handwritten digits of each class, from scikit-learn."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = np.concatenate([np.flatnonzero(digits.target == k)[:110] for k in range(10)])
    pictures = [np.uint8(255 - 15.9 * digits.images[i]) for i in rows]
    pictures = [np.asarray(Image.fromarray(each).resize((224, 224)).convert("RGB")) for each in pictures]
    features = model.extract_features(pictures, [DIGITS[digits.target[i]] for i in rows], DIGITS)
    text = model.encode_classes(DIGITS)
    labels = np.array([DIGITS.index(label) for label in features.y])
    return Set(features.plain, labels, text.embeddings, text.logit_scale, blocks=features.blocks)


def start(sets: dict[str, Set]) -> None:
    SETS.update(sets)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def run(args) -> list[dict]:
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "runs.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {(r["set"], r["shots"], r["seed"], r["kind"]) for r in records}

    def classifier():
        model = FewShotClassifier(encoder=args.encoder, quality=args.quality, precision="fp32", progress=True)
        model.prepare_encoder(create_head("auto"))
        return model

    sets = load_sets(args.data, classifier, False)
    if args.sizes:
        sets["digits"] = load_digits_set(classifier())
    sets = {name: one for name, one in sets.items() if not args.sets or name in args.sets.split(",")}
    kinds = tuple(args.sizes.split(",")) if args.sizes else KINDS
    cells = [(s, k, seed, kinds) for seed in range(args.draws) for k in SHOTS for s in sets]
    cells = [cell for cell in cells if (*cell[:3], kinds[0]) not in known]
    context = multiprocessing.get_context("spawn")
    with context.Pool(args.workers, start, (sets,)) as workers, path.open("a") as file:
        for results in workers.imap_unordered(measure, cells):
            records += results
            file.write("".join(json.dumps(record) + "\n" for record in results))
            file.flush()
    return records


def table(records: list[dict]) -> str:
    """Means over the sets in points of accuracy beside the fit without the pool, and of log-loss."""
    columns = ["with", "always", *(f"constant {weight}" for weight in CONSTANTS)]
    lines = []
    for shots in sorted({r["shots"] for r in records}):
        part = [r for r in records if r["shots"] == shots]
        own = {(r["set"], r["seed"]): r for r in part}
        without = 100 * np.mean([r["without"] for r in own.values()])
        lines += [
            "",
            f"{shots} shots: {without:.1f} % without, {len(own)} draws of {len({r['set'] for r in part})} sets",
        ]
        lines += ["", "| pool | used | " + " | ".join(columns) + " | best constant | worst set | log-loss |"]
        lines.append("|---|" + "---:|" * (len(columns) + 4))
        for kind in dict.fromkeys(r["kind"] for r in part):
            of_kind = [r for r in part if r["kind"] == kind]
            if not of_kind:
                continue
            gain = {c: np.array([100 * (r[c] - r["without"]) for r in of_kind]) for c in columns}
            error = gain["with"].std() / np.sqrt(len(of_kind))
            best = np.maximum(0, np.max([gain[c] for c in columns[2:]], axis=0))
            by_set = {
                r["set"]: [100 * (o["with"] - o["without"]) for o in of_kind if o["set"] == r["set"]] for r in of_kind
            }
            worst = min(by_set, key=lambda name: np.mean(by_set[name]))  # noqa: B023
            used = np.mean([r["weight"] > 0 for r in of_kind])
            loss = np.mean([r["with loss"] - r["without loss"] for r in of_kind])
            cells = [f"{used:.0%}", f"{gain['with'].mean():+.1f} ± {error:.1f}"]
            cells += [f"{gain[c].mean():+.1f}" for c in columns[1:]]
            cells += [f"{best.mean():+.1f}", f"{np.mean(by_set[worst]):+.1f} {worst}", f"{loss:+.3f}"]
            lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines).strip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--quality", default="standard")
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sets", default="", help="names of the sets; by default all")
    parser.add_argument("--sizes", default="", help="numbers of pictures, in place of the kinds of pools")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs.jsonl and table.md")
    args = parser.parse_args()
    text = table(run(args))
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
