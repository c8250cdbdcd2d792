"""Choice of the fastest backend and precision that may replace the plain encoder, tested on the user's own pictures.

Up to 64 of the pictures are encoded by the plain encoder and by each candidate. A candidate must come near enough to
the plain encoder (`clipadapter.runtime.engines.parity`), and is timed on the same pictures. The measurements are saved
next to the converted towers, so that similar pictures are measured once.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clipadapter.data.images import ImageSource, image_bytes, read_image
from clipadapter.encoders import BlockEncoder, Encoder, calibrations_of_passes, with_backend
from clipadapter.errors import EncoderUnavailableError, ImageError, InputError, brief, install_command
from clipadapter.features.extraction import ExtractionJob, prepare_image
from clipadapter.features.store import FeatureStore
from clipadapter.heads import TextFeatures
from clipadapter.runtime.engines import (
    PRECISIONS,
    Int8Calibration,
    backend_info,
    cache_root,
    create_backend,
    list_backends,
)
from clipadapter.runtime.engines.parity import Parity, measure_parity
from clipadapter.utils.files import write_atomically
from clipadapter.utils.pixels import PixelSpec
from clipadapter.utils.progress import progress_bar

SAMPLE_SIZE = 64  # pictures that candidates are tested on and int8 is calibrated with
FIRST_SAMPLE_SIZE = 8  # pictures that show whether a trial is worth its time
OPENVINO_HINT = "OpenVINO, which is mostly faster, is not installed: " + install_command("openvino")
CONVERSION_SECONDS, SAMPLE_PASSES = 2.0, 3
"""Cost of a trial: about 2 s to convert the tower, and the time of 3 passes of the sample through the plain encoder."""
MIN_SECONDS_FOR_INT8 = 40.0  # int8 is tried if all pictures would take more seconds with the fastest candidate so far

BATCH_SIZE, WARMUP_SIZE = 32, 16
"""Squares that are timed together, and squares before them: enough for a backend to compile for large batches."""
MIN_SPEEDUP = 1.1  # a less exact candidate is taken if it is faster by this factor
RECORD_FORMAT = 1


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
    """The same encoder in the backend and precision that are fastest on this machine.

    Args:
        encoder: any.
        sources: the pictures to encode; some of them are read.
        backend: "auto", or the backend that must be taken.
        precision: "auto", or the precision that must be taken, however much the features differ.
        text: makes the text features, which show whether zero-shot predictions stay the same.
        store: if the features are in it already, nothing is tried.
        progress: show on stderr what is tried.

    Returns:
        An encoder whose ``info`` states backend and precision, and the measurements in its note. The plain encoder if
        it can't be converted, or if a trial would take longer than to encode the pictures.

    Raises:
        InputError: if backend or precision is unknown, or the backend does not support the precision.
        MissingExtraError: if the backend that must be taken is not installed.

    >>> from clipadapter.encoders import create_encoder
    >>> choose_backend(create_encoder("toy"), []).info.backend
    'torch'
    """
    if precision not in ("auto", *PRECISIONS):
        raise InputError(f"precision must be auto, {', '.join(PRECISIONS)}, but is {brief(precision)}")
    engine = backend_info("torch" if backend == "auto" else backend).cls
    if "auto" not in (backend, precision):
        engine.check_available(precision)
    if isinstance(encoder, BlockEncoder):
        options: dict[str, Any] = {"text": text, "store": store, "progress": progress}
        first = choose_backend(encoder.passes()[0], sources, backend=backend, precision=precision, **options)
        return _run_like(first, encoder, sources, is_precision_fixed=precision != "auto")
    if encoder.tower() is None:
        return with_backend(encoder, backend.replace("auto", "torch"), precision.replace("auto", "fp32"))
    if "auto" not in (backend, precision) and precision != "int8":
        return with_backend(encoder, backend, precision)
    candidates = _candidates(encoder.device, backend, precision)
    measured = _find_measurements(encoder, sources, candidates, text, store, progress)
    choice = choose_measured([m for m in measured if (m.backend, m.precision) in candidates], precision != "auto")
    if choice is None or (choice.backend, choice.precision) == ("torch", "fp32"):
        # The most exact candidate needs no trial.
        chosen = encoder if candidates[0] == ("torch", "fp32") else with_backend(encoder, *candidates[0])
    else:
        chosen = with_backend(encoder, choice.backend, choice.precision, choice.calibration or None)
        facts = f"{choice.backend} {choice.precision}, {choice.rate:.0f} pictures/s, {choice.parity.summary()}"
        _add_note(chosen, facts)
    lacks_openvino = encoder.device == "cpu" and backend_info("openvino").cls.missing_package()
    return _add_note(chosen, OPENVINO_HINT) if measured and lacks_openvino else chosen


def _run_like(
    first: Encoder, encoder: BlockEncoder, sources: Sequence[ImageSource], is_precision_fixed: bool
) -> BlockEncoder:
    """All passes in the backend and precision chosen for the first; in fp32 if another one is not near enough to it."""
    info, passes = first.info, encoder.passes()
    if first is passes[0]:
        return encoder
    run: list[Encoder] = [first]
    for each in passes[1:]:
        tower = each.tower()
        if tower is None:
            run.append(each)
            continue
        squares = read_squares(sources[:SAMPLE_SIZE], tower.pixels) if info.precision != "fp32" else None
        candidate = with_backend(each, info.backend, info.precision, squares)
        if squares is not None and len(squares) and not is_precision_fixed:
            few = squares[:FIRST_SAMPLE_SIZE]
            if not measure(candidate, few, measure(with_backend(each), few)).parity.passes(info.precision):
                return encoder.run_on([with_backend(p, info.backend) if p.tower() else p for p in passes])
        run.append(candidate)
    return encoder.run_on(run)


def read_squares(sources: Sequence[ImageSource], pixels: PixelSpec) -> NDArray[np.uint8]:
    """(m, s, s, 3) of the pictures that can be read."""
    squares = []
    for source in sources:
        try:
            squares.append(pixels.to_square(read_image(source)))
        except ImageError:
            continue  # extraction reports it
    return np.stack(squares) if squares else np.empty((0, pixels.size, pixels.size, 3), np.uint8)


def restore_backend(
    encoder: Encoder, precision: str, preferred: str = "torch", calibration: Int8Calibration | None = None
) -> Encoder:
    """The same encoder in the precision of a saved model, by a backend that needs no conversion for it.

    Args:
        encoder: any.
        precision: "fp32", "bf16" or "int8".
        preferred: the backend to take if it is installed. int8 differs between backends, so it takes no other.
        calibration: of int8.

    Raises:
        EncoderUnavailableError: if this machine has no tower that was converted with these pictures.
        MissingExtraError: if no installed backend supports the precision.
    """
    names = [preferred] if precision == "int8" else sorted(list_backends(), key=lambda name: name != preferred)
    calibrations = calibrations_of_passes(encoder, calibration)
    towers = {i: each.info.fingerprint for i, each in enumerate(encoder.passes()) if each.tower() is not None}
    for name in names:
        cls = backend_info(name).cls
        is_supported = precision in cls.precisions and encoder.device.partition(":")[0] in cls.devices
        if not is_supported or cls.missing_package():
            continue
        if all(cls.is_ready(fingerprint, precision, calibrations.get(i)) for i, fingerprint in towers.items()):
            return with_backend(encoder, name, precision, calibration)
    backend_info(names[0]).cls.check_available(precision)
    raise EncoderUnavailableError(
        f"{encoder.info.name} was calibrated for {precision}. Neither the converted tower nor the pictures are here"
    )


def is_trial_worthwhile(n_images: int, rate: float) -> bool:
    """Whether a trial takes no longer than the plain encoder needs for all pictures, at its pictures per second."""
    return n_images >= CONVERSION_SECONDS * rate + SAMPLE_PASSES * SAMPLE_SIZE


def _find_measurements(
    plain: Encoder,
    sources: Sequence[ImageSource],
    candidates: Sequence[tuple[str, str]],
    text: Callable[[], TextFeatures] | None,
    store: FeatureStore | None,
    progress: bool,
) -> list[Measured]:
    """Saved or new measurements of the plain encoder and of worthwhile candidates; none if no trial is worthwhile."""
    tower, needs_int8, n_images = plain.tower(), candidates[0][1] == "int8", len(sources)
    assert tower is not None
    positions = {source_key(source, i): i for i, source in enumerate(sources)}
    keys = sorted(positions)[:SAMPLE_SIZE]
    path = _record_path(plain)
    measured = read_record(path, keys)
    # int8 may be missing where it was not worthwhile.
    required = {each for each in candidates if each[1] != "int8" or needs_int8}
    if not required - {(each.backend, each.precision) for each in measured}:
        return measured
    sample = [sources[positions[key]] for key in keys]
    if not needs_int8 and store is not None and sample:
        job = ExtractionJob(plain, store)
        if not any(prepare_image(job, i, source).pixels for i, source in enumerate(sample[:FIRST_SAMPLE_SIZE])):
            return []  # the features are stored
    squares = read_squares(sample[:FIRST_SAMPLE_SIZE], tower.pixels)
    if needs_int8 and not len(squares):
        raise InputError("int8 needs pictures to calibrate with, but none of those given can be read")
    if not len(squares):
        return []
    if not needs_int8 and not is_trial_worthwhile(n_images, measure(with_backend(plain), squares).rate):
        return []
    squares = read_squares(sample, tower.pixels)
    reference = measure(with_backend(plain), squares)
    text_embeddings = None if text is None else text().embeddings
    measured = [reference]
    with progress_bar(total=len(candidates), desc="backend", shown=progress, leave=False) as bar:
        for backend, precision in candidates:
            seconds = n_images / max(each.rate for each in measured)
            is_needless = precision == "int8" and not needs_int8 and seconds < MIN_SECONDS_FOR_INT8
            if (backend, precision) != ("torch", "fp32") and not is_needless:
                bar.set_postfix_str(f"{backend} {precision}")
                candidate = with_backend(plain, backend, precision, squares)
                measured.append(measure(candidate, squares, reference, text_embeddings))
            bar.update()
    write_record(path, keys, measured)
    return measured


def _add_note(encoder: Encoder, note: str) -> Encoder:
    notes = dict.fromkeys([*filter(None, encoder.info.note.split("; ")), note])
    encoder.info = replace(encoder.info, note="; ".join(notes))
    return encoder


def _candidates(device: str, backend: str, precision: str) -> list[tuple[str, str]]:
    """Backends and precisions that this machine can run, the most exact ones first, int8 last."""
    # ONNX Runtime is tried if the user names it or if OpenVINO is missing: compared with OpenVINO it was hardly faster.
    names = (
        [backend] if backend != "auto" else [n for n in list_backends() if not backend_info(n).cls.missing_package()]
    )
    names = [name for name in names if device.partition(":")[0] in backend_info(name).cls.devices]
    if backend == "auto" and "openvino" in names and "onnxruntime" in names:
        names.remove("onnxruntime")
    if not names:
        create_backend(backend, device=device)  # raises an error that says why not
    candidates = [
        (name, each)
        for each in (PRECISIONS if precision == "auto" else (precision,))
        for name in sorted(names, reverse=True)
        if each in backend_info(name).cls.precisions
    ]
    if backend != "auto" or not candidates:
        backend_info("openvino" if backend == "auto" else backend).cls.check_available(
            candidates[0][1] if candidates else precision
        )
    return candidates


@dataclass(frozen=True)
class Measured:
    """The measurement of one backend and precision."""

    backend: str
    precision: str
    rate: float  # pictures per second, from squares in memory
    parity: Parity  # of its features to those of the plain encoder
    calibration: str = ""  # digest of the pictures that int8 was calibrated with
    features: NDArray[np.float32] | None = field(default=None, compare=False)  # (n, d) of the sample; not saved


def source_key(source: ImageSource, position: int) -> str:
    """Sort key that puts pictures in a random order, which does not change when pictures are added."""
    try:
        identity = str(source).encode() if isinstance(source, str | Path) else image_bytes(source)
    except ImageError:
        identity = str(position).encode()
    return hashlib.blake2b(identity, digest_size=8).hexdigest()


def measure(
    encoder: Encoder,
    squares: NDArray[np.uint8],
    reference: Measured | None = None,
    text: NDArray[Any] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Measured:
    """Time squares (n, s, s, 3) by a result of `with_backend`; compare features, and answers to text (c, d)."""
    batches = torch.from_numpy(squares).split(batch_size)
    encoder.encode_pixels(batches[0][:WARMUP_SIZE])
    rows, rate = [], 0.0
    for batch in batches:
        start = time.perf_counter()
        rows.append(encoder.encode_pixels(batch))
        # The fastest batch, since another program may have been busy during the others.
        rate = max(rate, len(batch) / (time.perf_counter() - start))
    features = torch.cat(rows).numpy()
    expected = features if reference is None or reference.features is None else reference.features
    info = encoder.info
    return Measured(
        info.backend,
        info.precision,
        rate,
        measure_parity(expected, features, text, info.blocks),
        info.int8_calibration_digest,
        features,
    )


def choose_measured(measured: Sequence[Measured], is_precision_fixed: bool) -> Measured | None:
    """The fastest that is near enough to the plain encoder, or any; the more exact, which come first, if similar."""
    choice: Measured | None = None
    for each in measured:
        if is_precision_fixed or each.parity.passes(each.precision):
            is_equally_exact = choice is not None and choice.precision == each.precision
            if choice is None or each.rate > (1.0 if is_equally_exact else MIN_SPEEDUP) * choice.rate:
                choice = each
    return choice


def read_record(path: Path, keys: Collection[str]) -> list[Measured]:
    """The saved measurements, if at least half of these pictures were among those of the measurements; else none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if 2 * len(set(keys) & set(content["sample"])) < max(1, len(keys)):
            return []
        return [Measured(**{**row, "parity": Parity(**row["parity"])}) for row in content["measured"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_record(path: Path, keys: Sequence[str], measured: Sequence[Measured]) -> None:
    """Save measurements. A folder that can't be written only means that the next call measures again."""
    content = {"sample": list(keys), "measured": [asdict(replace(each, features=None)) for each in measured]}
    with suppress(InputError):
        write_atomically(path, json.dumps(content, indent=1), sync=False)


def _record_path(plain: Encoder) -> Path:
    """Path of the measurements; other machines and other versions have another one."""
    fingerprint = plain.info.fingerprint
    facts = [RECORD_FORMAT, fingerprint, plain.device, platform.machine(), platform.processor()]
    packages = {name for backend in list_backends() for name in backend_info(backend).attributes.get("packages", ())}
    facts += [torch.get_num_threads(), *map(_version, ["torch", *sorted(packages)])]
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()
    return cache_root() / f"{fingerprint}-measured-{digest}.json"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
