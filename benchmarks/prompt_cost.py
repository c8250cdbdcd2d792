"""What prompt learning costs: CoOp beside CLIP-Adapter on the same shots, and its memory by the number of classes.

Both train on features that are there already, so that the image tower runs in no step of either: what differs is that
each step of CoOp goes through the text tower and back, for all classes. Weights and features are random, on which the
cost does not depend. Seconds to the end are a few steps, scaled up: CoOp's recipe has 200 epochs of batches of 32, and
so has the released one of CLIP-Adapter; our default for that is timed whole. Each figure is of a process of its own;
memory is the most that is resident while CoOp is fitted, the whole model included.

    python benchmarks/prompt_cost.py                            # about half an hour on two cores
    python benchmarks/prompt_cost.py --models RN50 --classes 10 100 --threads 1
    python benchmarks/prompt_cost.py --memory 0.5               # gigabytes that the tower may keep for its gradient
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

from clipadapter.encoders import create_encoder, open_text_tower
from clipadapter.heads import TextFeatures
from clipadapter.heads.clip_adapter import ClipAdapter
from clipadapter.tuners.coop import CoOp

BATCH, EPOCHS = 32, 200
METHODS = ("coop", "released", "default")
ADJECTIVES = ("red", "old", "small", "wild", "striped", "wooden", "northern", "giant", "common", "spotted")
NOUNS = ("finch", "lake", "car", "tower", "flower", "boat", "dog", "pizza", "glider", "carpet")


def write_model(folder: Path, name: str) -> None:
    """A model with random weights as open_clip reads it."""
    config = open_clip.get_model_config(name)
    pixels = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    folder.mkdir()
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": pixels}))


def names(classes: int) -> list[str]:
    """Names of two to four tokens."""
    return [f"{ADJECTIVES[i % 10]} {NOUNS[i // 10 % 10]} {i // 100 or ''}".strip() for i in range(classes)]


def resident(what: str) -> float:
    """Megabytes of this process: "VmRSS" now, "VmHWM" at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


class Timed(CoOp):
    """CoOp that keeps the time of each step."""

    def _backward(self, parameters: list[Tensor], value: Tensor) -> None:
        super()._backward(parameters, value)
        self.moments.append(time.perf_counter())


def measure(folder: str, method: str, classes: int, shots: int, steps: int, memory: float) -> dict[str, float]:
    """Seconds and peak memory of one method, in this process."""
    encoder = create_encoder(f"open_clip:local-dir:{folder}")
    rng = np.random.default_rng(0)
    d, labels = encoder.info.dim, names(classes)
    text = TextFeatures(labels, rng.standard_normal((classes, d)), tower=partial(open_text_tower, encoder))
    X = rng.standard_normal((classes * shots, d)).astype(np.float32)
    y = np.repeat(labels, shots)
    Path("/proc/self/clear_refs").write_text("5")  # from here on, the peak is that of the fit (Linux)
    figures = {"before": resident("VmRSS")}
    if method == "coop":
        head = Timed(epochs=1, memory=memory, batch_size=BATCH, checkpoint=None)
        head.moments = []
        row_numbers = np.arange(BATCH * steps) % len(X)
        head.fit(X[row_numbers], y[row_numbers], text=text)
        figures["step"] = statistics.median(np.diff(head.moments))
        figures["epoch"] = figures["step"] * max(1, len(X) // BATCH)
        figures["end"] = figures["epoch"] * EPOCHS
    if method == "released":
        seconds = []
        for epochs in (2, 2 + steps):
            start = time.perf_counter()
            ClipAdapter.official(epochs=epochs).fit(X, y, text=text)
            seconds.append(time.perf_counter() - start)
        figures["epoch"] = (seconds[1] - seconds[0]) / steps
        figures["end"] = figures["epoch"] * EPOCHS
    if method == "default":
        start = time.perf_counter()
        ClipAdapter().fit(X, y, text=text)
        figures["end"] = time.perf_counter() - start
    return {**figures, "peak": resident("VmHWM")}


def run(threads: int, **options: object) -> dict[str, float]:
    """Run `measure` in a separate process."""
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, __file__, "--one", "--threads", str(threads), *arguments]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(process.stdout.splitlines()[-1])


def table(args: argparse.Namespace) -> None:
    """Markdown, a row for each model and number of classes."""
    print(
        f"{args.shots} shots a class, {args.threads} threads, {args.memory} GB for the gradient. "
        f"CoOp and the released recipe to the end: {EPOCHS} epochs, extrapolated; CLIP-Adapter, default: measured.\n"
    )
    columns = (
        *("model", "classes", "CoOp, s a step", "s an epoch", "h to the end"),
        *("CLIP-Adapter released, s an epoch", "s to the end", "CoOp / released", "CLIP-Adapter default, s"),
        *("CoOp / default", "CoOp, peak MB", "MB before it"),
    )
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)
    with tempfile.TemporaryDirectory() as root:
        for model in args.models:
            folder = Path(root) / model
            write_model(folder, model)
            for classes in args.classes:
                shape = {"classes": classes, "shots": args.shots, "steps": args.steps, "memory": args.memory}
                coop, released, default = (
                    run(args.threads, folder=folder, method=method, **shape) for method in METHODS
                )
                cells = (
                    *(model, classes, f"{coop['step']:.2f}", f"{coop['epoch']:.1f}", f"{coop['end'] / 3600:.2f}"),
                    *(f"{released['epoch']:.3f}", f"{released['end']:.1f}", f"{coop['end'] / released['end']:.0f}"),
                    *(f"{default['end']:.1f}", f"{coop['end'] / default['end']:.0f}"),
                    *(f"{coop['peak']:.0f}", f"{coop['before']:.0f}"),
                )
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["RN50", "ViT-B-32"])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="steps of CoOp, or epochs of CLIP-Adapter, that are timed")
    parser.add_argument("--memory", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.one:
        only = argparse.Namespace(**{**vars(given), "classes": given.classes[0]})
        figures = measure(only.folder, only.method, only.classes, only.shots, only.steps, only.memory)
        print(json.dumps(figures))
    else:
        table(given)
