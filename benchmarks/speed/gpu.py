"""What a GPU brings: towers and tuners on one device, as a page of Markdown with the name of the card.

    python benchmarks/speed/gpu.py --device cuda --out gpu.md  # about 7 minutes
    python benchmarks/speed/gpu.py --device cpu --small  # half a minute of a processor: shows that every part runs

The page, and gpu.json beside it, are written again after each row. A row that fails has the reason, such as too little
memory, and the next ones are measured. One that takes too long is stopped; after --seconds no further one is begun.

Towers have random weights: speed does not depend on them. "squares" are decoded pictures in the memory of the machine;
"files" are JPEG files, decoded and encoded by `extract` with its default number of threads, and with one for each core;
features arrive in the memory of the machine. "decoding" is reading the files alone, with one thread for each core: as
much as a GPU can be fed with. The share is that of the product of two large matrices in the same precision.
"""

import argparse
import gc
import json
import os
import platform
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from clipadapter.backends.pytorch import TorchBackend
from clipadapter.bench.speed import count_gflop
from clipadapter.data import read_image
from clipadapter.encoders import Encoder, create_encoder, with_backend
from clipadapter.errors import InputError
from clipadapter.features import encode_classes, extract
from clipadapter.heads import create_head
from clipadapter.utils.devices import check_device, describe_device, full_float32
from clipadapter.utils.parallel import count_cores

PIXELS = {"mean": [0.481, 0.458, 0.408], "std": [0.269, 0.261, 0.276], "interpolation": "bicubic"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COLUMNS = {
    "towers": ("tower", "precision", "squares/s", "share", "one square, ms", "files/s", "files/s, all cores", "GiB"),
    "decoding": ("pixels", "files/s", "threads"),
    "tuners": ("tuner", "classes", "batch", "steps/s", "GiB"),
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    towers: tuple[str, ...] = ("ViT-B-32", "ViT-B-16", "ViT-L-14")
    batch: int = 256
    pictures: int = 2048
    matrix: int = 8192
    classes: int = 100
    steps: int = 50
    tuner_batch: int = 32
    layers: int | None = None
    """Blocks of each tower; None for all."""


SMALL = Size(("ViT-B-32",), 4, 8, 256, 5, 2, 4, 1)


class TimeIsOver(BaseException):
    """A row took too long. No `Exception`, since methods catch some of these."""


@contextmanager
def limit_seconds(seconds: float) -> Iterator[None]:
    """Raise `TimeIsOver` after some seconds; Windows has no such alarm."""

    def stop(*_: object) -> None:
        raise TimeIsOver

    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Meter:
    """Seconds and memory on a device."""

    device: str
    is_cuda: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_cuda = self.device.startswith("cuda")

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

    def peak(self) -> float | None:
        """GiB of the device since the last measurement began; None on the CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 2**30 if self.is_cuda else None

    def limit(self, dtype: torch.dtype, side: int) -> float:
        """TFLOP/s of the product of two matrices: the best of five times ten."""
        a = torch.randn(side, side, device=self.device).to(dtype)
        with full_float32(self.device):
            best = min(self.seconds(lambda: [a @ a for _ in range(10)]) for _ in range(6))
        return 10 * 2 * side**3 / best / 1e12

    def free(self) -> None:
        """Give back what a row left on the device."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()


class Report:
    """Rows by part, in the files after each row.

    Args:
        meter: of the device.
        size: what is measured.
        out: file of the page, with JSON beside it; None writes neither.
        seconds: after which no further row is begun.
    """

    def __init__(self, meter: Meter, size: Size, out: Path | None, seconds: float) -> None:
        self.meter, self.size, self.out = meter, size, out
        self.start = time.perf_counter()
        self.deadline = self.start + seconds
        self.limits: dict[str, float] = {}
        self.parts: dict[str, list[Row]] = {name: [] for name in COLUMNS}
        self.seconds: dict[str, float] = dict.fromkeys(("setup", *COLUMNS), 0.0)

    def measure(self, part: str, row: Row, fill: Callable[[Row], None], limit: float) -> bool:
        """Let a function fill a row; what it filled until it failed stays.

        Returns:
            Whether it did not fail.
        """
        begun = time.perf_counter()
        self.parts.setdefault(part, []).append(row)
        left = self.deadline - begun
        try:
            if left <= 0:
                raise TimeIsOver
            with limit_seconds(min(limit, left)):
                fill(row)
        except TimeIsOver:
            row["error"] = f"stopped after {min(limit, left):.0f} s" if left > 0 else "not begun: the time was over"
        except torch.OutOfMemoryError as error:
            row["error"] = f"out of memory: {first_line(error)}"
        except Exception as error:  # what does not run on the device is a result too
            row["error"] = f"{type(error).__name__}: {first_line(error)}"
        self.meter.free()  # after the exception, whose frames hold tensors
        self.seconds[part] += time.perf_counter() - begun
        print(part, *(show(value) for value in row.values()), file=sys.stderr)
        self.write()
        return "error" not in row

    def write(self) -> None:
        """Write the page and the JSON."""
        if self.out is not None:
            self.out.write_text(self.page(), encoding="utf-8")
            facts = {**self.facts(), "size": asdict(self.size), "limits": self.limits}
            text = json.dumps({**facts, "seconds": self.seconds, **self.parts}, indent=1, default=float)
            self.out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")

    def facts(self) -> dict[str, str | int | None]:
        """What it ran on."""
        return {
            "device": describe_device(self.meter.device),
            "cores": count_cores(),
            "platform": f"{platform.system()} {platform.machine()}",
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
        }

    def page(self) -> str:
        """The tables."""
        facts, size = self.facts(), self.size
        limits = ", ".join(f"{name} {limit:,.1f}" for name, limit in self.limits.items()) or "not measured"
        titles = {
            "towers": f"Towers, batches of {size.batch}",
            "decoding": "Decoding of JPEG files of 500 x 375",
            "tuners": f"Tuners, {size.towers[0]}",
        }
        lines = [
            f"# {facts['device']}\n",
            ", ".join(f"{name} {value}" for name, value in facts.items() if name != "device") + ".",
            f"TFLOP/s of the product of two matrices of {size.matrix} x {size.matrix}: {limits}.\n",
            "Seconds: " + ", ".join(f"{part} {seconds:.0f}" for part, seconds in self.seconds.items()) + ".\n",
        ]
        for part, columns in COLUMNS.items():
            rows = [[show(row.get(name, "")) for name in columns] for row in self.parts[part]]
            errors = [
                f"- {show(next(iter(row.values())))}: {row['error']}" for row in self.parts[part] if "error" in row
            ]
            lines += [f"## {titles[part]}\n", table(list(columns), rows), *errors, ""]
        return "\n".join(lines)


def first_line(error: BaseException) -> str:
    """Of a message, without an end of hundreds of letters."""
    return (str(error).strip().splitlines() or [""])[0][:160]


def show(value: object) -> str:
    """A cell."""
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)


def table(columns: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


# Towers


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
    """Paths of JPEG files of 500 x 375 with smooth and sharp parts. They differ: `extract` encodes equal ones once."""
    folder.mkdir()

    def write(i: int) -> str:
        coarse = Image.fromarray(np.random.default_rng(i).integers(0, 256, (24, 32, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
        return str(folder / f"{i}.jpg")

    with ThreadPoolExecutor(count_cores()) as pool:
        return list(pool.map(write, range(count)))


def measure_tower(report: Report, encoder: Encoder, precision: str, paths: list[str], row: Row) -> None:
    """Fill the row of one tower in one precision."""
    meter, size, tower = report.meter, report.size, encoder.tower()
    assert tower is not None
    side = tower.pixels.size
    squares = np.random.default_rng(0).integers(0, 256, (size.batch, side, side, 3), dtype=np.uint8)
    run = TorchBackend(meter.device).prepare(tower, precision)
    run(squares)
    rate = size.batch / min(meter.seconds(lambda: run(squares)) for _ in range(5))
    row["squares/s"], row["GiB"] = rate, meter.peak()
    if precision in report.limits:
        row["share"] = rate * count_gflop(encoder) / 1e3 / report.limits[precision]
    run(squares[:1])
    row["one square, ms"] = 1000 * min(meter.seconds(lambda: run(squares[:1])) for _ in range(10))
    prepared = with_backend(encoder, "torch", precision)
    some = paths[: max(size.batch, int(8 * rate))]  # at most 8 s, unless decoding is slower than the tower
    for column, workers in (("files/s", None), ("files/s, all cores", count_cores())):

        def read(workers: int | None = workers) -> None:
            extract(prepared, some, store=None, batch_size=size.batch, workers=workers)

        row[column] = len(some) / meter.seconds(read)


def measure_decoding(encoder: Encoder, paths: list[str], row: Row) -> None:
    """Fill the row of reading pictures to squares."""
    tower = encoder.tower()
    assert tower is not None
    start = time.perf_counter()
    with ThreadPoolExecutor(count_cores()) as pool:
        list(pool.map(lambda path: tower.pixels.to_square(read_image(path)), paths))
    row |= {"files/s": len(paths) / (time.perf_counter() - start), "threads": count_cores()}


def measure_tuner(report: Report, encoder: Encoder, name: str, precision: str | None, row: Row) -> None:
    """Fill the row of CoOp or CLIP-LoRA: the seconds of many steps minus those of one, so without what comes first."""
    meter, steps, batch = report.meter, report.size.steps, report.size.tuner_batch
    names = [f"class {i:04d}" for i in range(report.size.classes)]
    prompts = {name: [f"a photo of a {name}."] for name in names}
    labels, rng = [names[i % len(names)] for i in range(batch)], np.random.default_rng(0)
    row |= {"classes": len(names), "batch": batch}
    tower = encoder.tower()
    assert tower is not None
    squares = rng.integers(0, 256, (batch, 1, tower.pixels.size, tower.pixels.size, 3), dtype=np.uint8)
    text = encode_classes(encoder, prompts)
    X = rng.standard_normal((batch, text.embeddings.shape[1])).astype(np.float32)

    def fit(count: int) -> None:
        if precision is None:
            head = create_head(name, epochs=count, checkpoint=None, batch_size=batch)
            head.fit(X, labels, text=text)  # computes where the text tower of the encoder is
        else:
            head = create_head(name, steps=count, checkpoint=None, batch_size=batch, precision=precision)
            head.tune(encoder, squares, labels, prompts)

    fit(1)
    few = meter.seconds(lambda: fit(1))
    row["steps/s"] = steps / max(meter.seconds(lambda: fit(1 + steps)) - few, 1e-9)
    row["GiB"] = meter.peak()


def measure_towers(report: Report) -> None:
    """Rows of all towers, of decoding, and of tuners of the first tower."""
    with tempfile.TemporaryDirectory() as place:
        folder, size = Path(place), report.size
        paths = write_pictures(size.pictures, folder / "pictures")
        for name in size.towers:
            opened: list[Encoder] = []

            def open_tower(row: Row, opened: list[Encoder] = opened) -> None:
                uri = write_tower(row["tower"], size.layers, folder / row["tower"])
                opened.append(create_encoder(uri, report.meter.device))

            if not report.measure("setup", {"tower": name}, open_tower, 120):
                report.parts["towers"].append(report.parts["setup"][-1])
                continue
            measure_precisions(report, opened[0], name, paths)
            if name == size.towers[0]:
                measure_tuners(report, opened[0], paths)


def measure_precisions(report: Report, encoder: Encoder, name: str, paths: list[str]) -> None:
    """A row of one tower for each precision."""
    for precision in DTYPES:
        row = {"tower": name, "precision": precision}
        report.measure("towers", row, lambda row: measure_tower(report, encoder, row["precision"], paths, row), 60)


def measure_tuners(report: Report, encoder: Encoder, paths: list[str]) -> None:
    """Rows of decoding, and of tuners of one tower."""
    row: Row = {"pixels": encoder.info.image_size}
    report.measure("decoding", row, lambda row: measure_decoding(encoder, paths, row), 30)
    for name, precision in (("coop", None), ("clip-lora", "fp32"), ("clip-lora", "bf16")):

        def fill(row: Row, name: str = name, precision: str | None = precision) -> None:
            measure_tuner(report, encoder, name, precision, row)

        report.measure("tuners", {"tuner": f"{name} {precision or ''}".strip()}, fill, 45)


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes that a CPU measures in half a minute")
    parser.add_argument("--seconds", type=float, default=440, help="after which no further row is begun")
    parser.add_argument("--out", type=Path, help="file of the page, and JSON beside it; without it the page is printed")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        meter = Meter(check_device(options.device))
    except InputError as error:
        parser.error(str(error))
    size = SMALL if options.small else Size()
    report = Report(meter, size, options.out, options.seconds)
    for name in DTYPES:

        def fill(row: Row) -> None:
            report.limits[row["limit"]] = row["TFLOP/s"] = meter.limit(DTYPES[row["limit"]], size.matrix)

        report.measure("setup", {"limit": name}, fill, 60)
    measure_towers(report)
    if options.out is None:
        print(report.page())


if __name__ == "__main__":
    main()
