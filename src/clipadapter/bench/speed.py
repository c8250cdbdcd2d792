"""Measures how fast this machine encodes pictures, and compares that with the limit of its processor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from clipadapter.data.images import ImageSource
from clipadapter.encoders import Encoder, with_backend
from clipadapter.errors import InputError
from clipadapter.features.autotune import Measured, measure, read_squares
from clipadapter.runtime.engines import backend_info, list_backends
from clipadapter.runtime.engines.parity import Parity
from clipadapter.utils.formatting import describe_unreadable

MATRIX_SIDE = 2048  # side of the matrices whose product measures the limit of the processor
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class BackendSpeed:
    """The speed of one backend and precision."""

    backend: str  # registered name
    precision: str  # in which it ran
    rate: float  # pictures per second, of the fastest batch of squares in memory; the median of the rounds
    share: float | None  # fraction of the processor's limit in this precision; None if the limit was not measured
    ready: float  # seconds until its first run is finished
    parity: Parity  # of its features to those of the plain encoder


@dataclass(frozen=True)
class SpeedReport:
    """The speeds of all backends, and what they are compared with."""

    limits: dict[str, float]  # GFLOP/s of a matrix product by precision
    gflop: float  # of one picture in the plain tower; a multiplication and an addition count as two
    decode: float  # milliseconds to read one picture and make it a square, in one thread
    pictures: int  # number of pictures that were used
    speeds: tuple[BackendSpeed, ...]  # one entry per backend and precision


def measure_speed(
    encoder: Encoder,
    pictures: Sequence[ImageSource],
    *,
    batch_size: int = 32,
    rounds: int = 5,
    on_step: Callable[[str], None] = lambda name: None,
) -> SpeedReport:
    """Time every backend and precision that runs on this machine, on two batches of pictures or more."""
    tower = encoder.tower()
    if tower is None:
        raise InputError(f"the image tower of {encoder.info.name} can't be run by other backends: nothing to compare")
    on_step("matrix products")
    limits = {name: _limit(dtype, encoder.device) for name, dtype in DTYPES.items()}
    on_step("reading pictures")
    start = time.perf_counter()
    squares = read_squares(pictures, tower.pixels)
    seconds_to_read = time.perf_counter() - start
    if not len(squares):
        raise InputError(describe_unreadable(len(pictures)))
    encoders: list[tuple[Encoder, float, list[Measured]]] = []  # with the seconds until it is ready
    for backend in sorted(list_backends(), reverse=True):
        cls = backend_info(backend).cls
        if cls.missing_package() or encoder.device.partition(":")[0] not in cls.devices:
            continue
        for precision in cls.precisions:
            on_step(f"{backend} {precision}")
            start = time.perf_counter()
            converted = with_backend(encoder, backend, precision, squares)
            converted.encode_pixels(torch.from_numpy(squares[:1]))
            encoders.append((converted, time.perf_counter() - start, []))
    # Each round times all of them in turn, so that changes of the machine's speed affect all alike.
    for turn in range(rounds):
        on_step(f"round {turn + 1} of {rounds}")
        for converted, _, own in encoders:
            plain = encoders[0][2][0] if encoders[0][2] else None
            own.append(measure(converted, squares, plain, batch_size=batch_size))
    gflop, speeds = count_gflop(encoder), []
    for _, seconds_to_ready, own in encoders:
        rate, one = statistics.median(each.rate for each in own), own[0]
        share = rate * gflop / limits[one.precision] if one.precision in limits else None
        speeds.append(BackendSpeed(one.backend, one.precision, rate, share, seconds_to_ready, one.parity))
    return SpeedReport(limits, gflop, 1000 * seconds_to_read / len(squares), len(squares), tuple(speeds))


def _limit(dtype: torch.dtype, device: str) -> float:
    """GFLOP/s of a large matrix product: the best of five."""
    a = torch.ones(MATRIX_SIDE, MATRIX_SIDE, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        float((a @ a)[0, 0])  # the value makes a GPU finish
        best = min(best, time.perf_counter() - start)
    return 2 * MATRIX_SIDE**3 / best / 1e9


def count_gflop(encoder: Encoder) -> float:
    """GFLOP of one picture, by torch's own count."""
    tower = encoder.tower()
    assert tower is not None
    size = tower.pixels.size
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused kernel is not counted
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            tower.module(torch.zeros(1, 3, size, size, device=encoder.device))
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return float(counter.get_total_flops()) / 1e9
