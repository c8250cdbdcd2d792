"""What backends were measured to do with an encoder on this machine, and on which pictures."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clipadapter.backends import PRECISIONS, Parity, cache_root, measure_parity
from clipadapter.data.images import ImageSource, image_bytes
from clipadapter.encoders import Encoder
from clipadapter.errors import ImageError, InputError
from clipadapter.files import write_atomically

BATCH, WARM = 32, 16
"""Squares that are timed together, and those before: so many that a backend opens what it takes many with."""
WORTH = 1.1
"""How much faster something less exact must be to be taken."""
FORMAT = 2


@dataclass(frozen=True)
class Measured:
    """One backend and precision.

    Args:
        backend: registered name.
        precision: in which it ran.
        rate: pictures a second, from squares in memory.
        parity: of its features to the plain encoder's.
        calibration: digest of the pictures for int8.
        features: (n, d) of the sample; not kept.
    """

    backend: str
    precision: str
    rate: float
    parity: Parity
    calibration: str = ""
    features: NDArray[np.float32] | None = field(default=None, compare=False)

    def noted(self, encoder: Encoder) -> Encoder:
        """The encoder, with what was found in its note."""
        words = f"{self.backend} {self.precision}, {self.rate:.0f} pictures/s, {self.parity.summary()}"
        note = "; ".join(part for part in (encoder.info.note, words) if part)
        encoder.info = replace(encoder.info, note=note)
        return encoder


@dataclass(frozen=True)
class Record:
    """What was measured.

    Args:
        sample: keys of the pictures.
        measured: one entry a candidate.
    """

    sample: tuple[str, ...] = ()
    measured: tuple[Measured, ...] = ()

    def covers(self, sample: Collection[str]) -> bool:
        """Whether at least half of these pictures were among those that it was measured on."""
        return bool(sample) and 2 * len(set(sample) & set(self.sample)) >= len(sample)

    def renewed(self, sample: Collection[str], measured: Sequence[Measured]) -> Record:
        """The record with newer measurements; older ones stay if they were made on these pictures."""
        both = {(each.backend, each.precision): each for each in self.measured} if self.covers(sample) else {}
        both |= {(each.backend, each.precision): each for each in measured}
        return Record(tuple(sample), tuple(sorted(both.values(), key=lambda each: PRECISIONS.index(each.precision))))


def source_key(source: ImageSource, position: int) -> str:
    """A picture's place in a random order that does not change when others are added."""
    try:
        known = str(source).encode() if isinstance(source, str | Path) else image_bytes(source)
    except ImageError:
        known = str(position).encode()
    return hashlib.blake2b(known, digest_size=8).hexdigest()


def measure(
    encoder: Encoder,
    squares: NDArray[np.uint8],
    reference: Measured | None = None,
    text: NDArray[Any] | None = None,
) -> Measured:
    """Encode squares and take the time.

    Args:
        encoder: as `with_backend` gives it.
        squares: (n, s, s, 3).
        reference: the plain encoder, measured on the same squares.
        text: class text (c, d).
    """
    batches = torch.from_numpy(squares).split(BATCH)
    encoder.encode_pixels(batches[0][:WARM])
    rows, rate = [], 0.0
    for batch in batches:
        start = time.perf_counter()
        rows.append(encoder.encode_pixels(batch))
        # The best batch, since another program may have been busy beside the others.
        rate = max(rate, len(batch) / (time.perf_counter() - start))
    features = torch.cat(rows).numpy()
    exact = features if reference is None or reference.features is None else reference.features
    near = measure_parity(exact, features, text)
    info = encoder.info
    return Measured(info.backend, info.precision, rate, near, info.calibration, features)


def best(measured: Sequence[Measured], fixed: bool) -> Measured | None:
    """The fastest that is near enough; of near equals the more exact.

    Args:
        measured: exact ones first.
        fixed: the precision must be taken, near or not.
    """
    found: Measured | None = None
    for each in measured:
        if fixed or each.parity.passes(each.precision):
            same = found is not None and found.precision == each.precision
            if found is None or each.rate > (1.0 if same else WORTH) * found.rate:
                found = each
    return found


def read_record(fingerprint: str, device: str) -> Record:
    """What is known of an encoder on this machine; empty if nothing is."""
    try:
        found = json.loads(_place(fingerprint, device).read_text(encoding="utf-8"))
        rows = [Measured(**{**row, "parity": Parity.from_record(row["parity"])}) for row in found["measured"]]
        return Record(tuple(found["sample"]), tuple(rows))
    except (OSError, ValueError, KeyError, TypeError):
        return Record()


def write_record(fingerprint: str, device: str, record: Record) -> None:
    """Keep it; a folder that can't be written costs only the next measurement."""
    rows = [
        {k: v for k, v in asdict(replace(row, features=None)).items() if k != "features"}
        | {"parity": row.parity.to_record()}
        for row in record.measured
    ]
    place = _place(fingerprint, device)
    with suppress(InputError):
        write_atomically(place, json.dumps({"sample": record.sample, "measured": rows}, indent=1), sync=False)


def _place(fingerprint: str, device: str) -> Path:
    """The file; another machine, or other versions, have another."""
    facts = [FORMAT, fingerprint, device, platform.machine(), platform.processor(), torch.get_num_threads()]
    facts += [_version(name) for name in ("torch", "openvino", "onnxruntime")]
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()
    return cache_root() / f"{fingerprint}-measured-{digest}.json"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
