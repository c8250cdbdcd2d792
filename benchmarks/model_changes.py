"""What a change of a whole model takes, beside a fit from scratch, and whether it is as good then.

SOURCE is what `bench run` takes as pictures: `textiles`, a folder, the name of a data set. Shots are drawn from its
training part, and judged are the other pictures in it; the test part is not opened. Features are in the store before,
so that what is timed is all but the image tower: head, temperature, sets, rejection. Three changes: a class is added,
one label in a thousand is corrected (one at least), and every tenth class gets one more shot.

    python benchmarks/model_changes.py FOLDER
    python benchmarks/model_changes.py FOLDER prototype clip-adapter --shots 15 --turns 3
"""

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np
import torch

from clipadapter import FewShotClassifier
from clipadapter.bench.sources import open_source
from clipadapter.data import draw_shots
from clipadapter.heads import create_head, head_info, list_heads
from clipadapter.metrics import log_loss

PARAMS = {"gda": {"stream": True}}
COLUMNS = ("fit s", "change s", "ratio", "fit %", "change %", "fit log-loss", "change log-loss", "same %")

Shots = tuple[list[str], list[str]]
Change = Callable[[FewShotClassifier], object]


def create_heads() -> list[str]:
    """All heads that `FewShotClassifier` can change and that features suffice for."""
    known = {name: head_info(name).cls for name in list_heads()}
    left_out = ("needs_tower", "tunes_encoder", "transductive")
    return [name for name, cls in known.items() if not any(getattr(cls, trait) for trait in left_out)]


def fit(name: str, args, shots: Shots) -> FewShotClassifier:
    head = create_head(name, **PARAMS.get(name, {}))
    return FewShotClassifier(args.encoder, precision="fp32", head=head).fit(*shots)


def changes(paths: np.ndarray, labels: np.ndarray, rng) -> Iterator[tuple[str, Shots, Change]]:
    """Name, what is fitted first, and what is done to that model; after it, all paths have these labels."""
    last = labels == labels[-1]
    new = paths[last].tolist()
    yield "class added", (paths[~last].tolist(), labels[~last].tolist()), lambda m: m.add_class(labels[-1], new)
    chosen = rng.permutation(len(paths))[: max(1, len(paths) // 1000)]
    wrong = labels.copy()
    wrong[chosen] = rng.choice(labels, len(chosen))
    corrections = paths[chosen].tolist(), labels[chosen].tolist()
    yield "corrected", (paths.tolist(), wrong.tolist()), lambda m: m.correct(*corrections)
    added_rows = np.array([np.flatnonzero(labels == name)[-1] for name in np.unique(labels)[::10]])
    first_rows = np.setdiff1d(np.arange(len(paths)), added_rows)
    added = paths[added_rows].tolist(), labels[added_rows].tolist()
    yield "shots added", (paths[first_rows].tolist(), labels[first_rows].tolist()), lambda m: m.add_examples(*added)


def evaluate(model: FewShotClassifier, test_pictures: Shots) -> tuple[np.ndarray, float, float]:
    """Classes, accuracy in % and log-loss on other pictures."""
    probabilities = model.predict_proba(test_pictures[0])
    names = np.array(model.class_names_)
    truth = np.array([model.class_names_.index(name) for name in test_pictures[1]])
    predicted = probabilities.argmax(axis=1)
    return names[predicted], 100 * float((predicted == truth).mean()), log_loss(probabilities, truth)


def measure_draw(name: str, args, change: tuple[str, Shots, Change], shots: Shots, test_pictures: Shots) -> list[float]:
    """The values of `COLUMNS` for one draw."""
    _, first, act = change
    before = fit(name, args, first)
    times = []
    for _ in range(args.turns):
        changed = copy.copy(before)
        start = time.perf_counter()
        act(changed)
        middle = time.perf_counter()
        refit = fit(name, args, (shots[0], shots[1]))
        times.append((time.perf_counter() - middle, middle - start))
    seconds = [median(times) for times in zip(*times, strict=True)]
    (a, right_a, loss_a), (b, right_b, loss_b) = evaluate(refit, test_pictures), evaluate(changed, test_pictures)
    return [*seconds, right_a, right_b, loss_a, loss_b, 100 * float((a == b).mean())]


def measure(name: str, args, train) -> dict[str, list[list[float]]]:
    """By change: one line per draw."""
    lines: dict[str, list[list[float]]] = {}
    paths, labels = np.array(train.paths), np.array(train.labels)
    for seed in range(args.draws):
        rows = np.array(draw_shots(list(labels), args.shots, seed))
        others = np.setdiff1d(np.arange(len(labels)), rows)
        test_pictures = paths[others].tolist(), labels[others].tolist()
        shots = paths[rows].tolist(), labels[rows].tolist()
        for change in changes(paths[rows], labels[rows], np.random.default_rng(seed)):
            lines.setdefault(change[0], []).append(measure_draw(name, args, change, shots, test_pictures))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("heads", nargs="*", metavar="HEAD", help="all that features suffice for if none is given")
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--shots", type=int, default=12)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    train = open_source(args.source).train
    FewShotClassifier(args.encoder, precision="fp32").extract_features(train.paths, train.labels, train.class_names)
    print(f"{len(train.class_names)} classes x {args.shots} shots, {args.draws} draws, {args.threads} threads\n")
    print(f"| head | change | {' | '.join(COLUMNS)} |")
    print("|---|---|" + "---:|" * len(COLUMNS))
    for name in args.heads or create_heads():
        for change, lines in measure(name, args, train).items():
            refit_seconds, change_seconds, a, b, loss_a, loss_b, same = np.mean(lines, axis=0)
            times = f"{refit_seconds:.2f} | {change_seconds:.2f} | {refit_seconds / change_seconds:.1f}"
            print(
                f"| {name} | {change} | {times} | {a:.1f} | {b:.1f} | {loss_a:.3f} | {loss_b:.3f} | {same:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
