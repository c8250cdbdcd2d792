"""What a GPU brings: towers, decoding and tuners on one device, with pytest-benchmark.

    python benchmarks/speed/gpu.py --device cuda --out gpu.json  # about 7 minutes
    python benchmarks/speed/gpu.py --device cpu --small  # half a minute of a processor: shows that every part runs

Each row is a test. One that fails, such as with too little memory, gives its reason, and the next ones are measured.
One that takes too long is stopped; after --seconds no further one is begun.

Towers have random weights: speed does not depend on them. "squares" are decoded pictures in the memory of the machine;
"files" are JPEG files, decoded and encoded by `extract` with its default number of threads, and with one for each core;
features arrive in the memory of the machine. "decoding" is reading the files alone, with one thread for each core: as
much as a GPU can be fed with. "share" is that of the product of two large matrices in the same precision. Rates are of
the shortest round; "GiB" is the peak of the device.
"""

import argparse
import gc
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _measure import timed
from _rivals import write_open_clip
from PIL import Image

from clipadapter.bench.speed import count_gflop
from clipadapter.data import read_image
from clipadapter.encoders import Encoder, create_encoder, with_backend
from clipadapter.errors import InputError
from clipadapter.features import encode_classes, extract
from clipadapter.heads import create_head
from clipadapter.runtime.engines.pytorch import TorchBackend
from clipadapter.utils.devices import check_device, describe_device, full_float32
from clipadapter.utils.parallel import count_cores

TOWERS = ("ViT-B-32", "ViT-B-16", "ViT-L-14")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PRODUCTS = 10
of_first_tower = pytest.mark.parametrize("encoder", TOWERS[:1], indirect=True, scope="session")
each_precision = pytest.mark.parametrize("precision", DTYPES)


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    batch: int = 256
    pictures: int = 1024
    matrix: int = 8192
    classes: int = 100
    steps: int = 50
    tuner_batch: int = 32
    layers: int | None = None  # blocks of each tower; None for all


SMALL = Size(4, 8, 256, 5, 2, 4, 1)


class Setting:
    """What all tests share, as a plugin of pytest: its fixtures, and what is added to pytest-benchmark's JSON."""

    def __init__(self, device: str, is_small: bool) -> None:
        self.name, self.is_small = device, is_small

    @pytest.fixture(scope="session")
    def device(self) -> str:
        return self.name

    @pytest.fixture(scope="session")
    def size(self) -> Size:
        return SMALL if self.is_small else Size()

    @pytest.fixture(scope="session")
    def limits(self) -> dict[str, float]:
        """TFLOP/s of the device by precision, filled by the first tests."""
        return {}

    @pytest.fixture(scope="session", params=TOWERS)
    def encoder(self, request: pytest.FixtureRequest, size: Size, tmp_path_factory: Any) -> Encoder:
        if self.is_small and request.param != TOWERS[0]:
            pytest.skip("--small")
        folder = tmp_path_factory.mktemp("tower") / request.param
        write_open_clip(folder, request.param, size.layers)
        return create_encoder(f"open_clip:local-dir:{folder}", self.name)

    @pytest.fixture(scope="session")
    def paths(self, size: Size, tmp_path_factory: Any) -> list[str]:
        """JPEG files of 500 x 375 with smooth and sharp parts. They differ: `extract` encodes equal ones once."""
        folder = tmp_path_factory.mktemp("pictures")

        def write(i: int) -> str:
            coarse = Image.fromarray(np.random.default_rng(i).integers(0, 256, (24, 32, 3), dtype=np.uint8))
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
            return str(folder / f"{i}.jpg")

        with ThreadPoolExecutor(count_cores()) as pool:
            return list(pool.map(write, range(size.pictures)))

    def pytest_benchmark_update_machine_info(self, machine_info: dict[str, Any]) -> None:
        machine_info |= {"device": describe_device(self.name), "cores": count_cores()}
        machine_info |= {"torch": torch.__version__, "cuda": torch.version.cuda}

    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        print(f"\n\n{output_json['machine_info']['device']}")
        for row in output_json["benchmarks"]:
            values = ", ".join(f"{name} {value:,.4g}" for name, value in row["extra_info"].items() if value is not None)
            print(f"{row['name']}: {values}")


def measure(benchmark: Any, device: str, work: Callable[[], object], n: float, unit: str, rounds: int = 5) -> float:
    """How many of `unit` a second, of which one call does n; the row gets it, and the peak of memory."""
    is_cuda = device.startswith("cuda")

    def run() -> None:
        work()
        if is_cuda:
            torch.cuda.synchronize(device)

    gc.collect()  # a failed row before this one left tensors in the frames of its exception
    if is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    benchmark.pedantic(run, rounds=rounds, warmup_rounds=int(rounds > 1))
    rate = n / benchmark.stats.stats.min
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if is_cuda else None
    benchmark.extra_info.update({unit: rate, "GiB": peak})
    return rate


@each_precision
def test_product_of_matrices(benchmark, device, size, limits, precision):
    a = torch.randn(size.matrix, size.matrix, device=device).to(DTYPES[precision])
    tflop = PRODUCTS * 2 * size.matrix**3 / 1e12
    with full_float32(device):
        limits[precision] = measure(benchmark, device, lambda: [a @ a for _ in range(PRODUCTS)], tflop, "TFLOP/s")


@pytest.mark.timeout(30)
@of_first_tower
def test_decoding(benchmark, device, encoder, paths):
    pixels = encoder.tower().pixels

    def read() -> None:
        with ThreadPoolExecutor(count_cores()) as pool:
            list(pool.map(lambda path: pixels.to_square(read_image(path)), paths))

    measure(benchmark, device, read, len(paths), "files/s", rounds=1)


def squares_of(count: int, encoder: Encoder) -> np.ndarray:
    side = encoder.info.image_size
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.mark.timeout(60)
@each_precision
def test_squares(benchmark, device, size, limits, encoder, precision):
    squares = squares_of(size.batch, encoder)
    run = TorchBackend(device).prepare(encoder.tower(), precision)
    rate = measure(benchmark, device, lambda: run(squares), size.batch, "squares/s")
    if precision in limits:
        benchmark.extra_info["share"] = rate * count_gflop(encoder) / 1e3 / limits[precision]


@pytest.mark.timeout(60)
@each_precision
def test_one_square(benchmark, device, encoder, precision):
    square = squares_of(1, encoder)
    run = TorchBackend(device).prepare(encoder.tower(), precision)
    measure(benchmark, device, lambda: run(square), 1, "squares/s", rounds=10)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("threads", ["default threads", "all cores"])
@each_precision
def test_files(benchmark, device, size, encoder, precision, threads, paths):
    prepared = with_backend(encoder, "torch", precision)
    workers = count_cores() if threads == "all cores" else None

    def read() -> None:
        extract(prepared, paths, store=None, batch_size=size.batch, workers=workers)

    measure(benchmark, device, read, len(paths), "files/s", rounds=1)


@pytest.mark.timeout(45)
@of_first_tower
@pytest.mark.parametrize("name, precision", [("coop", None), ("clip-lora", "fp32"), ("clip-lora", "bf16")])
def test_tuner(benchmark, device, size, encoder, name, precision):
    """CoOp or CLIP-LoRA: the seconds of many steps minus those of one, so without what comes first."""
    names, batch = [f"class {i:04d}" for i in range(size.classes)], size.tuner_batch
    prompts = {name: [f"a photo of a {name}."] for name in names}
    labels = [names[i % len(names)] for i in range(batch)]
    squares = squares_of(batch, encoder)[:, None]
    text = encode_classes(encoder, prompts)
    X = np.random.default_rng(0).standard_normal((batch, text.embeddings.shape[1])).astype(np.float32)

    def fit(count: int) -> None:
        if precision is None:
            head = create_head(name, epochs=count, checkpoint=None, batch_size=batch)
            head.fit(X, labels, text=text)  # computes where the text tower of the encoder is
        else:
            head = create_head(name, steps=count, checkpoint=None, batch_size=batch, precision=precision)
            head.tune(encoder, squares, labels, prompts)

    fit(1)
    _, first = timed(lambda: fit(1))
    measure(benchmark, device, lambda: fit(1 + size.steps), size.steps, "steps/s with the first", rounds=1)
    benchmark.extra_info["steps/s"] = size.steps / max(benchmark.stats.stats.min - first["seconds"], 1e-9)


def main() -> None:
    """Let pytest run this file, without the settings of the repository's tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes that a CPU measures in half a minute")
    parser.add_argument("--seconds", type=float, default=440, help="after which no further row is begun")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="JSON of pytest-benchmark")
    options = parser.parse_args()
    try:
        setting = Setting(check_device(options.device), options.small)
    except InputError as error:
        parser.error(str(error))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    arguments = [f"--session-timeout={options.seconds}", f"--benchmark-json={options.out}", "--benchmark-group-by=func"]
    quiet = ["-c", os.devnull, "-q", "--tb=line", "-W", "ignore", "-p", "no:cacheprovider", "-p", "no:schemathesis"]
    sys.exit(pytest.main([__file__, *quiet, *arguments], plugins=[setting]))


if __name__ == "__main__":
    main()
