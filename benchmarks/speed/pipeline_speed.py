"""Share of a backend's own rate that is left from JPEG files, and peak memory by the number of pictures.

The backend's own rate is that of squares that are in memory already; the other is `embed`, from files into a fresh
store on disk. The two run in turns. Where other programs use the machine, trust the share by seconds of CPU rather than
the one by the clock.

    python benchmarks/speed/pipeline_speed.py PICTURES --encoder open_clip:local-dir:DIR --precision bf16
    python benchmarks/speed/pipeline_speed.py PICTURES --encoder lite --backend openvino --memory  # some minutes
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _output import add_json, summarise, write_json

from clipadapter.backends import Int8Calibration
from clipadapter.data import IMAGE_SUFFIXES, read_image
from clipadapter.encoders import Encoder, create_encoder, with_backend
from clipadapter.features import FeatureStore, extract

BATCH = 32
CALIBRATION = 64
COUNTS = (2_000, 20_000)


def find(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise SystemExit(f"no pictures in {folder}")
    return paths


def open_encoder(uri: str, backend: str, precision: str, paths: list[Path]) -> Encoder:
    plain, calibration = create_encoder(uri), None
    tower = plain.tower()
    if precision == "int8" and tower is not None:
        some = paths[:: max(1, len(paths) // CALIBRATION)][:CALIBRATION]
        calibration = Int8Calibration(np.stack([tower.pixels.to_square(read_image(path)) for path in some]))
    return with_backend(plain, backend, precision, calibration)


def timed(work: Callable[[], object], n: int) -> tuple[float, float]:
    """Pictures a second by the clock, and milliseconds of CPU a picture."""
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return n / (time.perf_counter() - clock), 1e3 * (time.process_time() - cpu) / n


def speed(encoder: Encoder, paths: list[Path], repeats: int) -> list[dict]:
    n = len(paths)
    squares = torch.stack([encoder.preprocess(read_image(path)) for path in paths[:BATCH]])

    def tensors() -> None:
        for i in range(0, n, BATCH):
            encoder.encode_pixels(squares[: min(BATCH, n - i)])

    def files() -> None:
        with tempfile.TemporaryDirectory() as folder, FeatureStore(Path(folder) / "features.sqlite") as store:
            extract(encoder, paths, store=store, batch_size=BATCH, strict=True, keep=False)

    tensors(), files()
    runs = []
    for _ in range(repeats):
        (rate, cpu), (rate_all, cpu_all) = timed(tensors, n), timed(files, n)
        runs.append((rate, rate_all, rate_all / rate, cpu, cpu_all, cpu / cpu_all))
        print("{:7.1f} {:7.1f} img/s  {:6.1%}   {:7.1f} {:7.1f} ms CPU  {:6.1%}".format(*runs[-1]), flush=True)
    rate, rate_all, share, cpu, cpu_all, cpu_share = (statistics.median(column) for column in zip(*runs, strict=True))
    print(f"tensors    {rate:7.1f} img/s {cpu:7.1f} ms CPU a picture")
    print(f"from files {rate_all:7.1f} img/s {cpu_all:7.1f} ms CPU a picture")
    print(f"share      {share:7.1%} by the clock, {cpu_share:.1%} by CPU; medians of {repeats} runs of {n} pictures")
    names = ("memory", "files", "share", "memory_cpu_ms", "files_cpu_ms", "cpu_share")
    measured = {name: summarise(column) for name, column in zip(names, zip(*runs, strict=True), strict=True)}
    info = encoder.info
    return [{"encoder": info.name, "backend": info.backend, "precision": info.precision, "pictures": n} | measured]


def memory(encoder: Encoder, paths: list[Path]) -> list[dict]:
    """Peak memory after each count, in one process: it never falls, so what grows shows."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(folder) / f"{i:06}{paths[i % len(paths)].suffix}" for i in range(max(COUNTS))]
        for i, copy in enumerate(copies):  # bytes after the end of a picture make it another one
            copy.write_bytes(paths[i % len(paths)].read_bytes() + i.to_bytes(4, "big"))
        for count in COUNTS:
            with FeatureStore(Path(folder) / f"{count}.sqlite") as store:
                rate, _ = timed(
                    lambda n=count, store=store: extract(
                        encoder, copies[:n], store=store, batch_size=BATCH, keep=False
                    ),
                    count,
                )
                entries = len(store)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"{count:7,} pictures, {entries:7,} in the store: peak {peak:7.1f} MiB, {rate:6.1f} img/s", flush=True
            )
            rows.append({"pictures": count, "peak_mib": peak, "rate": rate})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="a folder")
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--count", type=int, default=320, help="pictures a run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="peak memory instead of speed")
    add_json(parser)
    args = parser.parse_args()
    paths = find(args.pictures)
    encoder = open_encoder(args.encoder, args.backend, args.precision, paths)
    print(f"{encoder.info.name}, {encoder.info.backend} {encoder.info.precision}, {torch.get_num_threads()} threads")
    if args.memory:
        rows = memory(encoder, paths)
    else:
        rows = speed(encoder, paths[:: max(1, len(paths) // args.count)][: args.count], args.repeats)
    write_json(args.json, repeats=args.repeats, rows=rows)


if __name__ == "__main__":
    main()
