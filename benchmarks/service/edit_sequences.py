"""Random sequences of changes of a model, each compared with a model that is fitted from scratch to a plain list.

Hypothesis draws what is done: classes and examples that come, corrections, classes that go or get another name, undo to
any version, saving and loading. The model must then have the classes, shots and history that the list has, the same
logits to 1e-5 and the same answers. At the level of features: pictures are rows of a table;
tests/classifier/test_edit_sequences.py does the same with pictures.

    python benchmarks/service/edit_sequences.py                                  # ten thousand, in two processes
    python benchmarks/service/edit_sequences.py --sequences 200 --heads rail     # to try it
"""

import argparse
import json
import os
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from _edits import Edits
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

HEADS = "rail,gda:stream,prototype,nearest-mean,tip-adapter"


def run(name: str, sequences: int, steps: int, first: int, every_step: bool) -> tuple[str, Counter[str]]:
    """Sequences of one head; raises what differs, with the steps that lead there."""
    import torch

    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    machine = type("Machine", (Edits,), {"heads": (name,), "done": counts, "every_step": every_step})
    run_state_machine_as_test(
        seed(first)(machine),
        settings=settings(
            max_examples=sequences,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    return name, counts


def main() -> None:
    """Run them and print what was checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=10_000, help="in all")
    parser.add_argument("--steps", type=int, default=12, help="at most, in one sequence")
    parser.add_argument("--heads", default=HEADS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--every-step", action="store_true", help="compare after each step, not at the end alone")
    args = parser.parse_args()
    heads, started = args.heads.split(","), time.monotonic()
    each, parts = -(-args.sequences // len(heads)), 4
    jobs = [
        (name, -(-each // parts), args.steps, args.seed + parts * i + part, args.every_step)
        for i, name in enumerate(heads)
        for part in range(parts)
    ]
    counts_by_head: dict[str, Counter[str]] = {name: Counter() for name in heads}
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        for name, counts in pool.map(run, *zip(*jobs, strict=True)):
            counts_by_head[name] += counts
    for name, counts in counts_by_head.items():
        print(json.dumps({"head": name, **counts}))
    total = sum(counts_by_head.values(), Counter())
    print(json.dumps({"all": args.sequences, **total, "seconds": round(time.monotonic() - started)}))


if __name__ == "__main__":
    main()
