"""Seconds that an exact head takes to change, beside a fit from scratch, and how far it then is from that fit.

Features are those of `head_costs.py`. A head that knows all classes but one gets 16 shots of known classes, loses one
shot, and gets a new class, first its name alone and then its 16 shots. Each turn does these and the fit from scratch
after each other on a copy of the same head, so that what else runs meets all of them; given is the median of the turns,
and in brackets how many times as long the fit takes. "apart" is the largest difference of a logit of 500 queries
between the head that was changed four times and one fitted to the same shots, beside the largest logit.

    python benchmarks/stream_updates.py
    python benchmarks/stream_updates.py rail "rail published" --size 100x16x512 --turns 9 --threads 1
"""

import argparse
import copy
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from head_costs import make
from sklearn.base import clone

from clipadapter.heads import ExactIncrementalHead, TextFeatures
from clipadapter.heads.gda import Gda
from clipadapter.heads.nearest_mean import NearestMean
from clipadapter.heads.prototype import Prototype
from clipadapter.heads.rail import Rail

HEADS: dict[str, ExactIncrementalHead] = {
    "prototype": Prototype(),
    "nearest-mean": NearestMean(),
    "gda": Gda(stream=True),
    "rail": Rail(),
    "rail published": Rail.official(),
    "rail dual": Rail(form="dual"),
}
CHANGES = ("16 shots", "1 gone", "a name", "its shots")
QUERIES = 500


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def turn(
    fitted: ExactIncrementalHead, X, y, text: TextFeatures, before: TextFeatures, new: np.ndarray
) -> tuple[ExactIncrementalHead, ExactIncrementalHead, list[float]]:
    """A copy of a head, changed; one fitted from scratch; and the seconds of each change, and of that fit."""
    head, c = copy.deepcopy(fitted), len(before.labels)
    some = np.flatnonzero(~new)[:: max(1, int((~new).sum()) // 16)][:16]  # learned twice: as good as others to time
    took = [
        seconds(lambda: head.partial_fit(X[some], y[some], text=before)),
        seconds(lambda: head.unlearn(X[some[:1]], y[some[:1]], text=before)),
        seconds(lambda: head.remap_classes(text.labels, [*range(c), -1], text=text)),
        seconds(lambda: head.partial_fit(X[new], y[new], text=text)),
    ]
    rows = np.concatenate([np.arange(len(X)), some[1:]])
    scratch = clone(fitted)
    took.append(seconds(lambda: scratch.fit(X[rows], y[rows], text=text)))
    return head, scratch, took


def measure(name: str, size: str, turns: int) -> str:
    """One row of the table."""
    X, y, queries, _, text = make(*map(int, size.split("x")))
    new = y == text.labels[-1]
    before = TextFeatures(text.labels[:-1], text.embeddings[:-1], text.logit_scale)
    fitted = clone(HEADS[name]).fit(X[~new], y[~new], text=before)
    times = []
    for _ in range(turns):
        head, scratch, took = turn(fitted, X, y, text, before, new)
        times.append(took)
    middle = [median(times) for times in zip(*times, strict=True)]
    cells = [f"{1000 * part:.0f} ({middle[-1] / part:.1f})" for part in middle[:-1]]
    expected, got = (one.logits(queries[:QUERIES]) for one in (scratch, head))
    apart = f"{np.abs(got - expected).max():.1g} of {np.abs(expected).max():.0f}"
    megabytes = sum(value.nbytes for value in head.state().values()) / 1e6
    return f"| {name} | {' | '.join(cells)} | {1000 * middle[-1]:.0f} | {megabytes:.1f} | {apart} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", nargs="*", metavar="HEAD", help=f"of {', '.join(HEADS)}; all if none is given")
    parser.add_argument("--size", action="append", help="classes x shots x width; may be given again")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for size in args.size or ["100x16x512", "100x16x1024"]:
        print(f"{size} (classes x shots x width), float32, {args.threads} threads, milliseconds\n")
        print(f"| head | {' | '.join(CHANGES)} | fit | MB saved | apart |")
        print("|---|" + "---:|" * (len(CHANGES) + 3))
        for name in args.heads or HEADS:
            print(measure(name, size, args.turns), flush=True)
        print()


if __name__ == "__main__":
    main()
