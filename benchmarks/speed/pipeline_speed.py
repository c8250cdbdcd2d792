"""Share of a backend's own rate that is left from JPEG files, and peak memory by the number of pictures.

The backend's own rate is that of squares that are in memory already; the other is `embed`, from files into a fresh
store on disk. The two run in turns. Where other programs use the machine, trust the share by seconds of CPU rather than
the one by the clock.

    python benchmarks/speed/pipeline_speed.py PICTURES --encoder open_clip:local-dir:DIR --precision bf16
    python benchmarks/speed/pipeline_speed.py PICTURES --encoder lite --backend openvino --memory  # some minutes
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from _measure import copy_pictures, find_pictures, peak_mb, print_table, script_parser, summarise, timed, write_json

from clipadapter.data import read_image
from clipadapter.encoders import Encoder, create_encoder, with_backend
from clipadapter.features import FeatureStore, extract

BATCH = 32
CALIBRATION = 64
COUNTS = (2_000, 20_000)
MEASURED = ("memory", "files", "share", "memory_cpu_ms", "files_cpu_ms", "cpu_share")
"""Pictures a second from squares and from files, their ratio, and the same by the processor's time of a picture."""


def prepare(encoder: Encoder, backend: str, precision: str, paths: list[Path]) -> Encoder:
    """The encoder on a backend; for int8 calibrated on some of the pictures."""
    tower, calibration = encoder.tower(), None
    if precision == "int8" and tower is not None:
        squares = [tower.pixels.to_square(read_image(path)) for path in spread(paths, CALIBRATION)]
        calibration = np.stack(squares)
    return with_backend(encoder, backend, precision, calibration)


def spread(paths: list[Path], count: int) -> list[Path]:
    """Some of all, evenly."""
    count = min(count, len(paths))
    return [paths[i * len(paths) // count] for i in range(count)]


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
    runs: dict[str, list[float]] = {name: [] for name in MEASURED}
    for _ in range(repeats):
        (_, memory), (_, read) = timed(tensors), timed(files)
        values = (n / memory["seconds"], n / read["seconds"], memory["seconds"] / read["seconds"])
        values += (1e3 * memory["cpu"] / n, 1e3 * read["cpu"] / n, memory["cpu"] / read["cpu"])
        for name, value in zip(MEASURED, values, strict=True):
            runs[name].append(value)
    measured = {name: summarise(column) for name, column in runs.items()}
    info = encoder.info
    return [{"encoder": info.name, "backend": info.backend, "precision": info.precision, "pictures": n} | measured]


def memory(encoder: Encoder, paths: list[Path]) -> list[dict]:
    """Peak memory after each count, in one process: it never falls, so what grows shows."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        copies = copy_pictures(paths, max(COUNTS), Path(folder) / "pictures")
        for count in COUNTS:
            with FeatureStore(Path(folder) / f"{count}.sqlite") as store:
                some = copies[:count]
                _, cost = timed(lambda: extract(encoder, some, store=store, batch_size=BATCH, keep=False))  # noqa: B023
                row = {"pictures": count, "stored": len(store), "peak_mb": peak_mb(), "rate": count / cost["seconds"]}
                rows.append(row)
    return rows


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("pictures", type=Path, help="a folder")
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--count", type=int, default=320, help="pictures a run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="peak memory instead of speed")
    args = parser.parse_args()
    paths = find_pictures(args.pictures)
    encoder = prepare(create_encoder(args.encoder), args.backend, args.precision, paths)
    print(f"{encoder.info.name}, {encoder.info.backend} {encoder.info.precision}, {torch.get_num_threads()} threads")
    rows = memory(encoder, paths) if args.memory else speed(encoder, spread(paths, args.count), args.repeats)
    print_table(rows)
    write_json(args.json, repeats=args.repeats, rows=rows)


if __name__ == "__main__":
    main()
