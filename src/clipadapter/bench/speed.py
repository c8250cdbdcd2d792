"""Measures how fast this machine encodes pictures, and compares that with the limit of its processor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from clipadapter.backends import Int8Calibration, backend_info, list_backends
from clipadapter.backends.parity import Parity, measure_parity
from clipadapter.data.images import ImageSource, image_bytes, read_image
from clipadapter.encoders import Encoder, with_backend
from clipadapter.errors import ImageError, InputError
from clipadapter.utils.formatting import describe_unreadable

MATRIX_SIDE = 2048
"""Side of the matrices whose product measures the limit of the processor."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class BackendSpeed:
    """The speed of one backend and precision.

    Args:
        backend: registered name.
        precision: in which it ran.
        rate: pictures per second, from squares in memory; the median of the rounds.
        share: fraction of the processor's limit in this precision; None if the limit was not measured.
        ready: seconds until its first run is finished.
        parity: of its features to those of the plain encoder.
    """

    backend: str
    precision: str
    rate: float
    share: float | None
    ready: float
    parity: Parity


@dataclass(frozen=True)
class SpeedReport:
    """The speeds of all backends, and what they are compared with.

    Args:
        limits: GFLOP/s of a matrix product by precision.
        gflop: of one picture in the plain tower; a multiplication and an addition count as two.
        decode: milliseconds to read one picture and make it a square, in one thread.
        pictures: number of pictures that were used.
        speeds: one entry per backend and precision.
    """

    limits: dict[str, float]
    gflop: float
    decode: float
    pictures: int
    speeds: tuple[BackendSpeed, ...]


def measure_speed(
    encoder: Encoder,
    pictures: Sequence[ImageSource],
    *,
    batch_size: int = 32,
    rounds: int = 5,
    on_step: Callable[[str], None] = lambda name: None,
) -> SpeedReport:
    """Time every backend and precision that runs on this machine.

    Each round times all of them in turn, so that changes of the machine's speed affect all alike.

    Args:
        encoder: whose tower is timed.
        pictures: for the comparison of features and the calibration of int8; two batches are enough.
        batch_size: pictures per batch.
        rounds: how often each is timed.
        on_step: called with the name of each step before it starts.

    Raises:
        InputError: if the encoder can't be converted, or no picture can be read.
    """
    tower = encoder.tower()
    if tower is None:
        raise InputError(f"the image tower of {encoder.info.name} can't be run by other backends: nothing to compare")
    on_step("matrix products")
    limits = {name: _limit(dtype, encoder.device) for name, dtype in DTYPES.items()}
    on_step("reading pictures")
    squares, decode = _squares(encoder, pictures)
    encoders: list[tuple[Encoder, float]] = []
    for backend in sorted(list_backends(), reverse=True):
        cls = backend_info(backend).cls
        if cls.missing_package() or encoder.device.partition(":")[0] not in cls.devices:
            continue
        for precision in cls.precisions:
            on_step(f"{backend} {precision}")
            start = time.perf_counter()
            converted = with_backend(
                encoder, backend, precision, Int8Calibration(squares) if precision == "int8" else None
            )
            converted.encode_pixels(torch.from_numpy(squares[:1]))
            encoders.append((converted, time.perf_counter() - start))
    rates, features = _timed([converted for converted, _ in encoders], squares, batch_size, rounds, on_step)
    gflop = _gflop(encoder)
    speeds = []
    for i, (converted, seconds_to_ready) in enumerate(encoders):
        precision = converted.info.precision
        fraction = rates[i] * gflop / limits[precision] if precision in limits else None
        speeds.append(
            BackendSpeed(
                converted.info.backend,
                precision,
                rates[i],
                fraction,
                seconds_to_ready,
                measure_parity(features[0], features[i]),
            )
        )
    return SpeedReport(limits, gflop, decode, len(squares), tuple(speeds))


def _limit(dtype: torch.dtype, device: str) -> float:
    """GFLOP/s of a large matrix product: the best of five."""
    a = torch.ones(MATRIX_SIDE, MATRIX_SIDE, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        float((a @ a)[0, 0])  # the value makes a GPU finish
        best = min(best, time.perf_counter() - start)
    return 2 * MATRIX_SIDE**3 / best / 1e9


def _squares(encoder: Encoder, pictures: Sequence[ImageSource]) -> tuple[NDArray[np.uint8], float]:
    tower = encoder.tower()
    assert tower is not None
    squares, times = [], []
    for source in pictures:
        start = time.perf_counter()
        try:
            image = read_image(source, data=image_bytes(source) if isinstance(source, str) else None)
        except ImageError:
            continue
        squares.append(tower.pixels.to_square(image))
        times.append(time.perf_counter() - start)
    if not squares:
        raise InputError(describe_unreadable(len(pictures)))
    return np.stack(squares), 1000 * statistics.median(times)


def _timed(
    encoders: Sequence[Encoder],
    squares: NDArray[np.uint8],
    batch_size: int,
    rounds: int,
    on_step: Callable[[str], None],
) -> tuple[list[float], list[NDArray[np.float32]]]:
    """Median pictures per second of each encoder, and its features of the squares."""
    batches = torch.from_numpy(squares).split(batch_size)
    seconds: list[list[float]] = [[] for _ in encoders]
    features: list[NDArray[np.float32]] = []
    for turn in range(rounds + 1):  # the first warms up
        on_step(f"round {turn} of {rounds}" if turn else "warming up")
        for i, encoder in enumerate(encoders):
            start = time.perf_counter()
            rows = [encoder.encode_pixels(batch) for batch in batches]
            if turn:
                seconds[i].append(time.perf_counter() - start)
            else:
                features.append(torch.cat(rows).numpy())
    return [len(squares) / statistics.median(each) for each in seconds], features


def _gflop(encoder: Encoder) -> float:
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
