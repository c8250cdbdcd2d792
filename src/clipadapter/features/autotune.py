"""The fastest backend and precision that may stand in for the plain encoder, found on a person's own pictures.

Nothing is taken on trust: up to 64 of the pictures are encoded by the plain encoder and by each candidate, which must
come near enough (`clipadapter.backends.Parity`), and is timed by the way. What was found is kept beside the converted
towers, so that it is measured once for pictures of a kind.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from clipadapter.backends import (
    PRECISIONS,
    Calibration,
    Parity,
    backend_info,
    cache_root,
    create_backend,
    list_backends,
    measure_parity,
)
from clipadapter.data.images import ImageSource, image_bytes, read_image
from clipadapter.encoders import Encoder, with_backend
from clipadapter.errors import EncoderUnavailableError, ImageError, InputError
from clipadapter.features.store import FeatureStore, feature_key
from clipadapter.features.views import ViewSpec
from clipadapter.files import write_atomically
from clipadapter.heads import TextFeatures

BACKENDS = ("auto", "torch", "openvino", "onnxruntime")


SAMPLE = 64
"""Pictures that candidates are judged by, and int8 is calibrated with."""


FIRST = 8
"""Pictures that say whether anything is worth the trouble."""


HINT = "OpenVINO, which is mostly faster, is not installed: pip install 'clipadapter[openvino]'"


READY, PASSES = 2.0, 3
"""What a trial takes: seconds to convert, and how often the sample goes through the plain encoder in the same time."""


LONG = 40.0
"""Seconds that all pictures would take by the best so far, above which int8 is tried as well."""


def choose_backend(
    encoder: Encoder,
    sources: Sequence[ImageSource],
    *,
    backend: str = "auto",
    precision: str = "auto",
    text: Callable[[], TextFeatures] | None = None,
    store: FeatureStore | None = None,
    progress: bool = False,
) -> Encoder:
    """The same encoder as it runs fastest here.

    Args:
        encoder: any.
        sources: the pictures it is to encode; some of them are looked at.
        backend: "auto", or the one that must be taken.
        precision: "auto", or the one that must be taken: then it is, whatever the features come to.
        text: makes class text, by which it is seen whether zero-shot answers stay the same.
        store: where features may be already: then nothing is tried.
        progress: show on stderr what is tried.

    Returns:
        An encoder whose ``info`` says backend and precision, and in its note what was found. The plain encoder if it
        can't be converted, or if the pictures are too few to be worth it.

    Raises:
        InputError: if backend or precision is none, or the backend has no such precision.
        MissingExtraError: if the backend that must be taken is not installed.

    >>> from clipadapter.encoders import create_encoder
    >>> choose_backend(create_encoder("toy"), []).info.backend
    'torch'
    """
    _check(backend, precision)
    if encoder.tower() is None:
        return with_backend(encoder, backend.replace("auto", "torch"), precision.replace("auto", "fp32"))
    if "auto" not in (backend, precision) and precision != "int8":
        return with_backend(encoder, backend, precision)
    return _Search(encoder, sources, backend, precision, text, store, progress).run()


def restore_backend(
    encoder: Encoder, precision: str, wish: str = "torch", calibration: Calibration | None = None
) -> Encoder:
    """The same encoder in a precision that is settled, by a backend that needs no time to be made ready.

    Args:
        encoder: any.
        precision: "fp32", "bf16" or "int8".
        wish: the backend to take if it is installed; int8 differs between backends, so no other is taken for it.
        calibration: of int8.

    Raises:
        EncoderUnavailableError: if no tower was converted with these pictures here.
        MissingExtraError: if no backend here has the precision.
    """
    names = [wish] if precision == "int8" else sorted(list_backends(), key=lambda name: name != wish)
    for name in names:
        cls = backend_info(name).cls
        fits = precision in cls.precisions and encoder.device.partition(":")[0] in cls.devices
        if fits and not cls.missing_package() and cls.is_ready(encoder.info.fingerprint, precision, calibration):
            return with_backend(encoder, name, precision, calibration)
    backend_info(names[0]).cls.check_available(precision)
    raise EncoderUnavailableError(
        f"{encoder.info.name} was calibrated for {precision} on pictures that are not here, nor is the converted tower"
    )


class _Search:
    """One choice; arguments as for `choose_backend`."""

    def __init__(
        self,
        encoder: Encoder,
        sources: Sequence[ImageSource],
        backend: str,
        precision: str,
        text: Callable[[], TextFeatures] | None,
        store: FeatureStore | None,
        progress: bool,
    ) -> None:
        self.plain, self.sources, self.text, self.store = encoder, sources, text, store
        self.wanted = _candidates(encoder.device, backend, precision)
        self.fixed = precision != "auto"
        keys = {source_key(source, i): i for i, source in enumerate(sources)}
        self.sample = {key: keys[key] for key in sorted(keys)[:SAMPLE]}
        self.record = read_record(encoder.info.fingerprint, encoder.device)
        self.bar = tqdm(total=len(self.wanted), desc="backend", file=sys.stderr, disable=not progress, leave=False)

    def run(self) -> Encoder:
        """Choose."""
        with self.bar:
            if not self._is_known() and not self._measure():
                return self._exact()
        known = [each for each in self.record.measured if (each.backend, each.precision) in self.wanted]
        found = best(known, self.fixed)
        if found is None or (found.backend, found.precision) == ("torch", "fp32"):
            return self._hinted(self._exact())
        calibration = Calibration(None, found.calibration) if found.calibration else None
        return self._hinted(found.noted(with_backend(self.plain, found.backend, found.precision, calibration)))

    def _hinted(self, encoder: Encoder) -> Encoder:
        """Say what is missing to be faster."""
        if encoder.device == "cpu" and backend_info("openvino").cls.missing_package() and HINT not in encoder.info.note:
            note = "; ".join(part for part in (encoder.info.note, HINT) if part)
            encoder.info = replace(encoder.info, note=note)
        return encoder

    def _exact(self) -> Encoder:
        """What needs no trial: the first candidate."""
        return self.plain if self.wanted[0] == ("torch", "fp32") else with_backend(self.plain, *self.wanted[0])

    def _is_known(self) -> bool:
        """Whether these pictures were measured with all that is wanted; int8 may have been left out as not worth it."""
        known = {(each.backend, each.precision) for each in self.record.measured}
        needed = {each for each in self.wanted if each[1] != "int8" or self.fixed}
        return self.record.covers(self.sample) and needed <= known

    def _measure(self) -> bool:
        """Time and judge the candidates that are worth it, from the plain encoder on; says whether any was."""
        only_int8 = self.wanted[0][1] == "int8"
        if not only_int8 and self._stored():
            return False
        squares = self._squares(FIRST)
        if not len(squares):
            if only_int8:
                raise InputError("int8 needs pictures to calibrate with, but none of those given can be read")
            return False
        if not only_int8 and not pays(len(self.sources), measure(with_backend(self.plain), squares).rate):
            return False
        squares = self._squares(SAMPLE)
        reference = measure(with_backend(self.plain), squares)
        vectors = None if self.text is None else self.text().embeddings
        found = [reference]
        for backend, precision in self.wanted:
            if (backend, precision) == ("torch", "fp32"):
                continue
            seconds = len(self.sources) / max(each.rate for each in found)
            if precision == "int8" and not only_int8 and seconds < LONG:
                continue
            self.bar.set_postfix_str(f"{backend} {precision}")
            calibration = Calibration(squares) if precision == "int8" else None
            tried = with_backend(self.plain, backend, precision, calibration)
            found.append(measure(tried, squares, reference, vectors))
            self.bar.update()
        self.record = self.record.renewed(self.sample, found)
        write_record(self.plain.info.fingerprint, self.plain.device, self.record)
        return True

    def _stored(self) -> bool:
        """Whether the plain encoder's features are there already."""
        if self.store is None or not self.sample:
            return False
        info, keys = self.plain.info, []
        for i in list(self.sample.values())[:FIRST]:
            try:
                digest = blake2b(image_bytes(self.sources[i]), digest_size=32).digest()
            except ImageError:
                continue
            keys.append(feature_key(digest, info.fingerprint, ViewSpec().key(0)))
        return len(self.store.contains_many(keys, info.dim)) == len(set(keys))

    def _squares(self, most: int) -> NDArray[np.uint8]:
        """(m, s, s, 3) of the sample."""
        tower = self.plain.tower()
        assert tower is not None
        found = []
        for i in list(self.sample.values())[:most]:
            try:
                found.append(tower.pixels.to_square(read_image(self.sources[i])))
            except ImageError:
                continue  # extraction will say so
        size = tower.pixels.size
        return np.stack(found) if found else np.empty((0, size, size, 3), np.uint8)


def pays(pictures: int, rate: float) -> bool:
    """Whether a trial takes no longer than the plain encoder does for so many pictures, at its pictures a second.

    >>> pays(300, 100), pays(1000, 100)
    (False, True)
    """
    return pictures >= READY * rate + PASSES * SAMPLE


def _check(backend: str, precision: str) -> None:
    if backend != "auto":
        backend_info(backend)
    if precision not in ("auto", *PRECISIONS):
        raise InputError(f"precision must be auto, {', '.join(PRECISIONS)}, but is {precision!r}")
    if "auto" not in (backend, precision):
        backend_info(backend).cls.check_available(precision)


def _candidates(device: str, backend: str, precision: str) -> list[tuple[str, str]]:
    """Backends and precisions that can run here, exact ones first, int8 last.

    ONNX Runtime is left to those who ask for it, and to machines without OpenVINO: beside it, it was hardly faster.

    Raises:
        InputError: if the backend has no such precision, or can't run on the device.
        MissingExtraError: if nothing that is installed has the precision.
    """
    names = (
        [backend] if backend != "auto" else [n for n in list_backends() if not backend_info(n).cls.missing_package()]
    )
    names = [name for name in names if device.partition(":")[0] in backend_info(name).cls.devices]
    if backend == "auto" and "openvino" in names and "onnxruntime" in names:
        names.remove("onnxruntime")
    if not names:
        create_backend(backend, device=device)  # says why not
    wanted = [
        (name, kind)
        for kind in (PRECISIONS if precision == "auto" else (precision,))
        for name in sorted(names, reverse=True)
        if kind in backend_info(name).cls.precisions
    ]
    if backend != "auto" or not wanted:
        backend_info("openvino" if backend == "auto" else backend).cls.check_available(
            wanted[0][1] if wanted else precision
        )
    return wanted


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
    near = measure_parity(
        features if reference is None or reference.features is None else reference.features, features, text
    )
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
