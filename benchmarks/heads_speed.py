"""Seconds that a whole study takes from features that are there already: every head, 1 to 16 shots, three seeds.

Features are those of `head_costs.py`, 100 classes of width 512 with 2,000 queries. Every head is fitted and asked 15
times with its own defaults; transductive heads are given the queries as their unlabelled pictures. Heads for two
encoders are left out, and tuners, to which features alone say nothing. "processor s" is what all threads took, which
says more where other programs run beside. The bar is 60 seconds in all on two cores.

    python benchmarks/heads_speed.py
    python benchmarks/heads_speed.py auto taskres --shots 4,16 --seeds 1 --threads 1
"""

import argparse
import time
import warnings

import torch
from head_costs import make

from clipadapter.heads import create_head, list_heads


def measure(name: str, data) -> tuple[float, float, float]:
    """Seconds, processor seconds, and accuracy of one fit and one prediction."""
    X, y, queries, truth, text = data
    head = create_head(name)
    start, busy = time.perf_counter(), time.process_time()
    predicted = head.fit(X, y, text=text, unlabelled=queries if head.transductive else None).predict(queries)
    return time.perf_counter() - start, time.process_time() - busy, 100 * float((predicted == truth).mean())


def from_features(name: str) -> bool:
    """Whether a head is fitted to one encoder's features alone."""
    head = create_head(name)
    return not (head.reads in ("second-encoder", "unprojected") or head.needs_tower or head.tunes_encoder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", nargs="*", metavar="HEAD", help="names; all heads for one encoder if none is given")
    parser.add_argument("--shots", default="1,2,4,8,16")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    shots = [int(number) for number in args.shots.split(",")]
    names = args.heads or [name for name in list_heads() if from_features(name)]
    data = {(k, seed): make(args.classes, k, args.width, seed) for k in shots for seed in range(args.seeds)}
    columns = [f"{k} shots s" for k in shots]
    print(f"{args.classes} classes x {args.width}, {args.seeds} seeds, {args.threads} threads\n")
    print(f"| head | {' | '.join(columns)} | seconds | processor s | accuracy |")
    print("|---|" + "---:|" * (len(columns) + 3))
    total = busy = 0.0
    for name in names:
        results = {k: [measure(name, data[k, seed]) for seed in range(args.seeds)] for k in shots}
        each = [sum(run[0] for run in results[k]) for k in shots]
        processor = sum(run[1] for k in shots for run in results[k])
        accuracy = sum(run[2] for k in shots for run in results[k]) / (len(shots) * args.seeds)
        cells = " | ".join(f"{seconds:.2f}" for seconds in each)
        print(f"| {name} | {cells} | {sum(each):.2f} | {processor:.2f} | {accuracy:.1f} |", flush=True)
        total, busy = total + sum(each), busy + processor
    print(f"| all | {' |' * len(columns)} {total:.2f} | {busy:.2f} | |")


if __name__ == "__main__":
    main()
