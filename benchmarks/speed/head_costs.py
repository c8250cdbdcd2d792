"""Time and memory of every head: fit on random clusters of features, then predict 2,000 queries.

Each head runs in a process of its own, so that its peak memory is its own, and is killed at the limit. Transductive
heads are given the queries as their unlabelled pictures; a head that takes two encoders gets one. "over data MB" is by
how much fitting and predicting raised the peak of the process above that with the features made; "process MB" is the
whole peak, of which importing Python, torch and scikit-learn is about 300.

    python benchmarks/speed/head_costs.py                                            # all heads, two sizes
    python benchmarks/speed/head_costs.py clip-adapter hoso --size 1000x16x1024 --limit-seconds 300 --out costs.md
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from _output import add_json, write_json

from clipadapter.heads import TextFeatures, create_head, list_heads

QUERIES = 2000
COLUMNS = ("fit s", "predict s", "over data MB", "process MB", "accuracy")


def make(classes: int, shots: int, d: int, seed: int = 0):
    """Shots, labels, queries, their labels and class text: noise around class means, float32."""
    rng = np.random.default_rng(seed)

    def around(rows, spread):
        noise = rng.standard_normal(rows.shape, dtype=np.float32)
        noise *= spread / np.sqrt(d)  # in place: what is freed here would hide as much of what the head takes
        noise += rows
        return noise

    means = rng.standard_normal((classes, d), dtype=np.float32) / np.sqrt(d, dtype=np.float32)
    names = np.array([f"class {i}" for i in range(classes)])
    labels = np.repeat(np.arange(classes), shots)
    truth = rng.integers(classes, size=QUERIES)
    text = TextFeatures(names.tolist(), around(means, 3))
    return around(means[labels], 3), names[labels], around(means[truth], 3), names[truth], text


def peak_mb() -> float:
    """Highest resident memory of this process so far; Linux counts in KB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def measure(name: str, size: str, threads: int) -> dict[str, float]:
    """One head, in this process."""
    torch.set_num_threads(threads)
    X, y, queries, truth, text = make(*map(int, size.split("x")))
    head = create_head(name)
    before, start = peak_mb(), time.perf_counter()
    head.fit(X, y, text=text, unlabelled=queries if head.transductive else None)
    fitted = time.perf_counter()
    found = head.predict(queries)
    done, peak = time.perf_counter(), peak_mb()
    return {
        "fit s": fitted - start,
        "predict s": done - fitted,
        "over data MB": peak - before,
        "process MB": peak,
        "accuracy": 100 * float((found == truth).mean()),
    }


def in_a_process(script: str, arguments: list[str], limit: float) -> dict[str, float] | str:
    """What a script prints with ``--inside`` as JSON in a fresh process, or why there is nothing."""
    command = [sys.executable, script, *arguments, "--inside"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"killed after {limit:g} s"
    if process.returncode != 0:
        last = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        return last.replace("|", "/")
    return json.loads(process.stdout.splitlines()[-1])


def row(name: str, found: dict[str, float] | str) -> str:
    if isinstance(found, str):
        return f"| {name} | {found} |" + " |" * (len(COLUMNS) - 1)
    cells = (f"{found[column]:.{2 if column.endswith(' s') else 0}f}" for column in COLUMNS)
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", nargs="*", metavar="HEAD", help="names; all registered heads if none is given")
    parser.add_argument("--size", action="append", help="classes x shots x width; may be given again")
    parser.add_argument("--limit-seconds", type=float, default=300.0, help="for one head at one size, imports included")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    add_json(parser)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = args.size or ["100x16x512", "1000x16x1024"]
    if args.inside:
        print(json.dumps(measure(args.heads[0], sizes[0], args.threads)))
        return
    lines: list[str] = []
    rows: list[dict] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)
        if args.out:
            args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")

    for size in sizes:
        say(f"{size} (classes x shots x width), {QUERIES} queries, float32, {args.threads} threads\n")
        say("| head | " + " | ".join(COLUMNS) + " |")
        say("|---|" + "---:|" * len(COLUMNS))
        for name in args.heads or list_heads():
            arguments = [name, "--size", size, "--threads", str(args.threads)]
            costs = in_a_process(__file__, arguments, args.limit_seconds)
            say(row(name, costs))
            costs = {"error": costs} if isinstance(costs, str) else costs
            rows.append({"head": name, "size": size} | costs)
        say("")
    write_json(args.json, threads=args.threads, queries=QUERIES, rows=rows)


if __name__ == "__main__":
    main()
