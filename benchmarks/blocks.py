"""What inner layers, a second resolution and mirrored pictures bring to `auto`: the qualities fast, standard and best.

DATA and the sets are those of development_sets.py; the features of food are final ones only, so that its rows are
equal. Every result is a line of runs.jsonl, and a run that was stopped goes on:

    python benchmarks/blocks.py DATA --out blocks --draws 5
    python benchmarks/blocks.py DATA --out two --encoders lite,efficientnet-lite2

Beside accuracy there are seconds of a fit, and milliseconds of a picture for each quality, measured in turn on squares
in memory. --heads names further heads, which read the final feature only.
"""

import argparse
import json
import multiprocessing
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from development_sets import SETS, SHOTS, draw, load_sets, start
from PIL import Image

from clipadapter import FewShotClassifier
from clipadapter.blocks import select_blocks
from clipadapter.classifier.encoder import QUALITIES, blocks_of_quality
from clipadapter.encoders import create_encoder, open_blocks
from clipadapter.heads import TextFeatures, create_head

ROUNDS, BATCH = 5, 16


@dataclass
class Plan:
    """Names of the blocks of each quality."""

    names: dict[str, list[str]] = field(default_factory=dict)


PLAN = Plan()


def begin(sets, names) -> None:
    start(sets)
    PLAN.names.update(names)


def measure(cell):
    name, shots, seed, head = cell
    one = SETS[name]
    rows, Q, truth = draw(one, shots, seed)
    method, _, quality = head.partition(" ")
    known = [block.name for block in one.blocks]
    blocks, columns = select_blocks(one.blocks, [n for n in PLAN.names[quality or "fast"] if n in known])
    names = [f"class {k:02}" for k in range(len(one.text))]
    text = TextFeatures(names, one.text, one.scale)
    fitted = create_head(method)
    start_time = time.perf_counter()
    fitted.fit(np.ascontiguousarray(one.X[rows][:, columns]), np.array(names)[one.y[rows]], text=text, blocks=blocks)
    seconds = time.perf_counter() - start_time
    accuracy = float((fitted.predict(np.ascontiguousarray(Q[:, columns])) == np.array(names)[truth]).mean())
    return {
        "set": name, "shots": shots, "seed": seed, "head": head, "accuracy": accuracy, "judged": len(truth),
        "seconds": seconds, "used": list(fitted.used_blocks()),
    }  # fmt: skip


def seconds_per_picture(encoders, names) -> dict[str, float]:
    """Milliseconds of a picture, the smallest of some rounds in which the qualities take turns."""
    rng, first, others = np.random.default_rng(0), encoders[0], encoders[1:]
    opened = {quality: open_blocks(first, names[quality], others) for quality in names}
    pictures = [Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)) for _ in range(BATCH)]
    pixels = {quality: [[p.preprocess(one) for one in pictures] for p in e.passes()] for quality, e in opened.items()}
    best = dict.fromkeys(names, float("inf"))
    for _ in range(ROUNDS):
        for quality, encoder in opened.items():
            begun = time.perf_counter()
            for each, batch in zip(encoder.passes(), pixels[quality], strict=True):
                each.encode_pixels(torch.stack(batch))
            best[quality] = min(best[quality], 1000 * (time.perf_counter() - begun) / BATCH)
    return best


def run(args) -> tuple[list[dict], dict[str, float]]:
    path = args.out / "runs.jsonl"
    args.out.mkdir(parents=True, exist_ok=True)
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {(r["set"], r["shots"], r["seed"], r["head"]) for r in records}
    encoders = [create_encoder(uri) for uri in args.encoders]
    names = {quality: blocks_of_quality(encoders[0], encoders[1:], quality) for quality in QUALITIES}
    names = {quality: names[quality] for quality in QUALITIES if quality in {"fast", *args.qualities}}
    times = seconds_per_picture(encoders, names)

    def classifier() -> FewShotClassifier:
        model = FewShotClassifier(encoders, quality=list(names)[-1], backend="torch", precision="fp32", progress=True)
        model.prepare_encoder(create_head("auto"))
        return model

    sets = load_sets(args.data, classifier, args.test)
    heads = [*(f"auto {quality}" for quality in args.qualities), *args.heads]
    cells = [(s, k, seed, h) for seed in range(args.draws) for s in sets for k in SHOTS for h in heads]
    context = multiprocessing.get_context("spawn")
    with context.Pool(args.workers, begin, (sets, names)) as pool, path.open("a") as file:
        for record in pool.imap_unordered(measure, [cell for cell in cells if cell not in known]):
            records.append(record)
            file.write(json.dumps(record) + "\n")
            file.flush()
    return records, times


def table(records: list[dict], times: dict[str, float]) -> str:
    """Means by shots, gains over fast with the worst set, and the table of sets."""
    heads, sets = (list(dict.fromkeys(r[key] for r in records)) for key in ("head", "set"))
    cells: dict[tuple, list[float]] = {}
    for r in records:
        cells.setdefault((r["head"], r["set"], r["shots"]), []).append(100 * r["accuracy"])
    mean = {key: float(np.mean(values)) for key, values in cells.items()}
    shots = sorted({r["shots"] for r in records})
    numbers = " | ".join(map(str, shots))
    lines = [f"{len(sets)} sets, {1 + max(r['seed'] for r in records)} draws, mean accuracy in %", ""]
    lines += [f"| | {numbers} | s per fit | ms per picture |", "|---|" + "---:|" * (len(shots) + 2)]
    for h in heads:
        cost = np.mean([r["seconds"] for r in records if r["head"] == h])
        row = " | ".join(f"{np.mean([mean[h, s, k] for s in sets]):.1f}" for k in shots)
        lines.append(f"| {h} | {row} | {cost:.2f} | {times[h.partition(' ')[2] or 'fast']:.1f} |")
    lines += ["", f"| beside auto fast: mean (worst set) | {numbers} |", "|---|" + "---:|" * len(shots)]
    for h in [h for h in heads if h not in ("auto fast",) and "auto fast" in heads]:
        row = []
        for k in shots:
            gains = np.array([mean[h, s, k] - mean["auto fast", s, k] for s in sets])
            row.append(f"{gains.mean():+.1f} ({gains.min():+.1f} {sets[int(gains.argmin())]})")
        lines.append(f"| {h} | " + " | ".join(row) + " |")
    lines += ["", f"| set | | {numbers} |", "|---|---|" + "---:|" * len(shots)]
    lines += [
        f"| {s} | {h} | " + " | ".join(f"{mean[h, s, k]:.1f} ± {np.std(cells[h, s, k]):.1f}" for k in shots) + " |"
        for s in sets
        for h in heads
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoders", default="lite", type=lambda text: text.split(","))
    parser.add_argument("--qualities", default=",".join(QUALITIES), type=lambda text: text.split(","))
    parser.add_argument("--heads", default="", type=lambda text: [name for name in text.split(",") if name])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--test", action="store_true", help="judge on the test parts: once, for a final table")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs.jsonl and table.md")
    args = parser.parse_args()
    text = table(*run(args))
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
