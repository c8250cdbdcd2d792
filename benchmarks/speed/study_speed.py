"""Seconds of a whole study from features that are there already, as `clipadapter bench run` makes it.

Features are those of `head_costs.py`, 100 classes of width 512 with 20 pictures each to draw from and 2,000 queries.
Every head that compares by default and takes one encoder's features is fitted to 1, 2, 4, 8 and 16 shots of three
draws, in processes on this machine, from an empty folder of records to the last record. The bar is 60 seconds on two
cores. "busy" is the share of the workers' time in which they fitted and measured, "processor" the time of all
processes on all cores, which depends less on what else the machine does.

    python benchmarks/speed/study_speed.py
    python benchmarks/speed/study_speed.py auto taskres --shots 4 16 --seeds 1
    python benchmarks/speed/study_speed.py --blocks 3

The last line has a digest of the accuracies in percent with one decimal, means over the draws as in the tables. Two
trees that give the same tables have the same digest; the tree that is measured is the one that Python finds:

    PYTHONPATH=OTHER_TREE/src python benchmarks/speed/study_speed.py --accuracies before.csv
"""

import hashlib
import resource
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from _measure import print_table, script_parser, write_json
from head_costs import make

from clipadapter.bench import Suite, default_heads, load_study, run_suite
from clipadapter.bench.bundle import Bundle, TestPart, save_bundle
from clipadapter.bench.launcher import Launcher
from clipadapter.bench.suite import Variant
from clipadapter.features import FeatureSet
from clipadapter.heads import create_head
from clipadapter.utils.blocks import FINAL

PICTURES = 20


def from_features(name: str) -> bool:
    """Whether a head is fitted to one encoder's features alone."""
    head = create_head(name)
    return not (head.reads in ("second-encoder", "unprojected") or head.needs_tower or head.tunes_encoder)


def processor_seconds() -> float:
    """Of this process and of all that it started and that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def add_blocks(X: np.ndarray, n_blocks: int) -> np.ndarray:
    """Features (n, d) and further blocks beside them, each a random map of them with noise of half their length."""
    n, d = X.shape
    parts = [X]
    for i in range(1, n_blocks):
        mixed = X @ np.random.default_rng(i).standard_normal((d, d), dtype=np.float32) / np.sqrt(d, dtype=np.float32)
        noise = np.random.default_rng([i, n]).standard_normal((n, d), dtype=np.float32)
        parts.append(mixed + np.float32(mixed.std() / 2) * noise)
    return np.hstack(parts)


def bundle(classes: int, width: int, n_blocks: int) -> Bundle:
    X, y, queries, truth, text = make(classes, PICTURES, width)
    names = tuple(text.labels)
    blocks = ((FINAL, width), *((f"inner-{i}", width) for i in range(1, n_blocks)))
    return Bundle(
        FeatureSet(add_blocks(X, n_blocks), tuple(y.tolist()), names, blocks=blocks),
        text,
        {"test": TestPart(FeatureSet(add_blocks(queries, n_blocks), tuple(truth.tolist()), names, blocks=blocks))},
    )


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("heads", nargs="*", metavar="HEAD", help="names; all for one encoder if none is given")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=1, metavar="N", help="blocks of features, which `auto` reads")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--accuracies", type=Path, metavar="FILE", help="write the table of accuracies as CSV")
    args = parser.parse_args()
    heads = args.heads or [name for name in default_heads() if from_features(name)]
    variants = [Variant(head=name) for name in heads]
    suite = Suite(name="speed", title="Speed", heads=variants, shots=args.shots, seeds=list(range(1, args.seeds + 1)))
    with tempfile.TemporaryDirectory() as folder:
        features, records = Path(folder) / "features", Path(folder) / "records"
        save_bundle(bundle(args.classes, args.width, args.blocks), features)
        start, busy_before = time.perf_counter(), processor_seconds()
        launcher = Launcher(workers=args.workers)
        outcome = run_suite(suite, [f"features:{features}"], {}, records, launcher)
        seconds = time.perf_counter() - start
        processor = processor_seconds() - busy_before
        took: dict[str, list[float]] = defaultdict(list)
        correct: dict[tuple[str, int], list[float]] = defaultdict(list)
        for run in load_study(records, suite.name).runs:
            assert run.seconds is not None, run.error
            took[run.method].append(run.seconds.fit + run.seconds.predict)
            correct[run.method, run.shots].append(100 * run.metrics.accuracy)
    print_table([{"head": name, "seconds of one worker": sum(each)} for name, each in took.items()])
    busy = sum(map(sum, took.values()))
    rows = [f"{name},{shots},{sum(each) / len(each):.1f}" for (name, shots), each in sorted(correct.items())]
    table = "\n".join(["head,shots,accuracy", *rows, ""])
    table_digest = hashlib.sha256(table.encode()).hexdigest()[:12]
    write_json(
        args.json,
        seconds=seconds,
        processor_seconds=processor,
        accuracies=table_digest,
        runs=outcome.n_made,
        busy=busy / args.workers / seconds,
        workers=args.workers,
        heads={name: sum(each) for name, each in took.items()},
        size={name: getattr(args, name) for name in ("classes", "width", "blocks", "shots", "seeds")},
    )
    print(
        f"\n{outcome.n_made} runs: {seconds:.1f} s, of which fits {outcome.seconds:.1f}; "
        f"busy {busy / args.workers / seconds:.0%} ({busy:.1f} s of one worker); processor {processor:.1f} s"
    )
    print(f"accuracies: {table_digest}")
    if args.accuracies:
        args.accuracies.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
