"""What a GPU brings: towers, heads and tuners on one device, as a page of Markdown with the name of the card.

    python benchmarks/gpu.py --device cuda --out gpu.md
    python benchmarks/gpu.py --device cpu --small          # a minute: shows that every part runs

Towers have random weights: speed does not depend on them. "squares" are decoded pictures in the memory of the machine,
"files" the same as JPEG files, decoded and encoded by `extract`; features arrive in the memory of the machine in both.
The share is that of the product of two large matrices in the same precision. Heads get random features. Each line of a
head has the seconds of one fit and of one prediction after a fit that warms up, on the device and on the CPU, and the
largest difference of the logits in units of their largest value.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from clipadapter.backends.pytorch import TorchBackend
from clipadapter.devices import check_device, full_float32
from clipadapter.encoders import Encoder, create_encoder, with_backend
from clipadapter.features import encode_classes, extract
from clipadapter.heads import TextFeatures, create_head, head_info, list_heads

PIXELS = {"mean": [0.481, 0.458, 0.408], "std": [0.269, 0.261, 0.276], "interpolation": "bicubic"}
Array = NDArray[Any]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    towers: tuple[str, ...] = ("ViT-B-32", "ViT-B-16", "ViT-L-14")
    batch: int = 256
    pictures: int = 4096
    matrix: int = 8192
    classes: int = 1000
    shots: int = 16
    width: int = 1024
    queries: int = 10_000
    steps: int = 100
    layers: int | None = None
    """Blocks of each tower; None for all."""


SMALL = Size(("ViT-B-32",), 4, 8, 256, 5, 4, 32, 50, 3, 2)


class Meter:
    """Seconds and memory on a device."""

    def __init__(self, device: str) -> None:
        self.device, self.is_cuda = device, device.startswith("cuda")

    def name(self) -> str:
        """Of the card, or of the processor."""
        return torch.cuda.get_device_name(self.device) if self.is_cuda else platform.processor() or platform.machine()

    def seconds(self, run: Callable[[], object]) -> float:
        """Until the device is done."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        run()
        if self.is_cuda:
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def peak(self) -> str:
        """GiB of the device since the last measurement began."""
        return f"{torch.cuda.max_memory_allocated(self.device) / 2**30:.2f}" if self.is_cuda else ""

    def limit(self, dtype: torch.dtype, side: int) -> float:
        """TFLOP/s of the product of two matrices: the best of five."""
        a = torch.randn(side, side, device=self.device).to(dtype)
        with full_float32(self.device):
            best = min(self.seconds(lambda: a @ a) for _ in range(6))
        return 2 * side**3 / best / 1e12


def table(columns: list[str], rows: list[list[object]]) -> str:
    """In Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines) + "\n"


def write_tower(name: str, layers: int | None, folder: Path) -> str:
    """The URI of a model of open_clip with random weights."""
    config = open_clip.get_model_config(name)
    if layers is not None:
        config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = layers
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PIXELS}))
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    return f"open_clip:local-dir:{folder}"


def write_pictures(count: int, folder: Path) -> list[str]:
    """Paths of JPEG files of 500 x 375 with smooth and sharp parts."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
    return [str(folder / f"{i}.jpg") for i in range(count)]


def measure_tower(meter: Meter, encoder: Encoder, name: str, size: Size, paths: list[str]) -> list[list[object]]:
    """Lines of one tower: each precision."""
    tower = encoder.tower()
    assert tower is not None
    side, rows = tower.pixels.size, []
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        tower.module(torch.zeros(1, 3, side, side, device=meter.device))
    squares = np.random.default_rng(0).integers(0, 256, (size.batch, side, side, 3), dtype=np.uint8)
    for precision, dtype in DTYPES.items():
        run = TorchBackend(meter.device).prepare(tower, precision)
        run(squares)
        rate = size.batch / min(meter.seconds(lambda run=run: run(squares)) for _ in range(5))
        peak = meter.peak()
        one = 1 / min(meter.seconds(lambda run=run: run(squares[:1])) for _ in range(5))
        prepared = with_backend(encoder, "torch", precision)
        seconds = meter.seconds(lambda prepared=prepared: extract(prepared, paths, store=None, batch_size=size.batch))
        share = rate * counter.get_total_flops() / 1e12 / meter.limit(dtype, size.matrix)
        files = len(paths) / seconds
        rows.append([name, precision, f"{rate:,.0f}", f"{share:.0%}", f"{one:,.0f}", f"{files:,.0f}", peak])
    return rows


def measure_heads(meter: Meter, size: Size, with_cpu: bool) -> list[list[object]]:
    """A line for each head that needs no tower."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((size.classes, size.width)).astype(np.float32)
    y = np.repeat([f"class {i:04d}" for i in range(size.classes)], size.shots)
    noise = rng.standard_normal((len(y), size.width)).astype(np.float32)
    X = np.repeat(means, size.shots, axis=0) + noise
    queries = rng.standard_normal((size.queries, size.width)).astype(np.float32)
    text = TextFeatures(sorted(set(y)), means + 0.5 * rng.standard_normal(means.shape).astype(np.float32))
    rows: list[list[object]] = []
    for name in list_heads():
        cls = head_info(name).cls
        if cls.needs_tower or cls.tunes_encoder:
            continue
        pool = queries if cls.transductive else None

        def time_head(device: str, name: str = name, pool: Array | None = pool) -> tuple[list[object], Array]:
            head, logits = create_head(name).to(device), []
            fit = meter.seconds(lambda: head.fit(X, y, text=text, unlabelled=pool))
            predict = meter.seconds(lambda: logits.append(head.logits(queries)))
            return [f"{fit:.2f}", f"{predict:.3f}"], logits[0]

        try:
            if meter.is_cuda:
                time_head(meter.device)
            seconds, logits = time_head(meter.device)
            cells, peak = [name, *seconds], meter.peak()
            if with_cpu:
                seconds, expected = time_head("cpu")
                difference = float(np.abs(logits - expected).max() / (np.abs(expected).max() or 1.0))
                cells += [*seconds, f"{difference:.1e}"]
            cells.append(peak)
        except (RuntimeError, ValueError, TypeError) as error:  # what does not run on the device is a result too
            cells = [name, f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"]
        rows.append(cells)
        print(*cells, file=sys.stderr)
    return rows


def measure_tuners(meter: Meter, encoder: Encoder, size: Size) -> list[list[object]]:
    """Steps per second of CoOp and CLIP-LoRA."""
    names = [f"class {i:04d}" for i in range(min(100, size.classes))]
    prompts = {name: [f"a photo of a {name}."] for name in names}
    text = encode_classes(encoder, prompts)
    tower = encoder.tower()
    assert tower is not None
    batch, side = 32, tower.pixels.size
    features = np.random.default_rng(0).standard_normal((batch, text.embeddings.shape[1])).astype(np.float32)
    labels = [names[i % len(names)] for i in range(batch)]
    coop = create_head("coop", epochs=size.steps, checkpoint=None, batch_size=batch).to(meter.device)
    seconds = meter.seconds(lambda: coop.fit(features, labels, text=text))
    rows: list[list[object]] = [["coop", len(names), batch, f"{size.steps / seconds:.2f}", meter.peak()]]
    squares = np.random.default_rng(0).integers(0, 256, (batch, 1, side, side, 3), dtype=np.uint8)
    for precision in DTYPES:
        lora = create_head("clip-lora", steps=size.steps, checkpoint=None, batch_size=batch, precision=precision)
        seconds = meter.seconds(lambda lora=lora: lora.tune(encoder, squares, labels, prompts))
        cells = [f"clip-lora {precision}", len(names), batch, f"{size.steps / seconds:.2f}", meter.peak()]
        rows.append(cells)
    return rows


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a minute on a CPU")
    parser.add_argument("--no-cpu", action="store_true", help="heads on the device only")
    parser.add_argument("--out", type=Path, help="file of the page; without it it is printed")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    meter, size = Meter(check_device(options.device)), SMALL if options.small else Size()
    limits = ", ".join(f"{name} {meter.limit(dtype, size.matrix):,.1f}" for name, dtype in DTYPES.items())
    towers: list[list[object]] = []
    tuners: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pictures(size.pictures, Path(folder) / "pictures")
        for i, name in enumerate(size.towers):
            encoder = create_encoder(write_tower(name, size.layers, Path(folder) / name), meter.device)
            towers += measure_tower(meter, encoder, name, size, paths)
            tuners += measure_tuners(meter, encoder, size) if i == 0 else []
    heads = measure_heads(meter, size, not options.no_cpu and meter.device != "cpu")
    shape = f"{size.classes} classes x {size.shots} shots x {size.width}"
    sides = [meter.device] if options.no_cpu or meter.device == "cpu" else [meter.device, "cpu"]
    columns = [f"{what}, {side} s" for side in sides for what in ("fit", f"{size.queries:,} queries")]
    page = "\n".join(
        [
            f"# {meter.name()}\n",
            f"torch {torch.__version__}, CUDA {torch.version.cuda}, {platform.python_version()}. Product of two "
            f"matrices of {size.matrix} x {size.matrix}, TFLOP/s: {limits}.\n",
            f"Pictures per second, batches of {size.batch}:\n",
            table(["tower", "precision", "squares", "share", "one at a time", "files", "GiB"], towers),
            f"Heads, {shape}:\n",
            table(["head", *columns, *(["difference"] if len(sides) > 1 else []), "GiB"], heads),
            f"Tuners, {size.towers[0]}:\n",
            table(["tuner", "classes", "batch", "steps per second", "GiB"], tuners),
        ]
    )
    if options.out is None:
        print(page)
    else:
        options.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
