"""The fastest engine and precision that may stand in for the plain encoder, found on a person's own pictures.

Nothing is taken on trust: up to 64 of the pictures are encoded by the plain encoder and by each candidate, which must
come near enough (`clipadapter.engines.Parity`), and is timed by the way. What was found is kept beside the converted
towers, so that it is measured once for pictures of a kind.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from clipadapter.data.images import ImageSource, image_bytes, read_image
from clipadapter.encoders import Encoder, with_engine
from clipadapter.engines import PRECISIONS, Calibration, create_engine, engine_info, list_engines
from clipadapter.errors import EncoderUnavailableError, ImageError, InputError
from clipadapter.features._measured import best, measure, read_record, source_key, write_record
from clipadapter.features.store import FeatureStore, feature_key
from clipadapter.features.views import ViewSpec
from clipadapter.heads import ClassText

ENGINES = ("auto", "torch", "openvino", "onnxruntime")
SAMPLE = 64
"""Pictures that candidates are judged by, and int8 is calibrated with."""
FIRST = 8
"""Pictures that say whether anything is worth the trouble."""
HINT = "OpenVINO, which is mostly faster, is not installed: pip install 'clipadapter[openvino]'"
READY, PASSES = 2.0, 3
"""What a trial takes: seconds to convert, and how often the sample goes through the plain encoder in the same time."""
LONG = 40.0
"""Seconds that all pictures would take by the best so far, above which int8 is tried as well."""


def choose_engine(
    encoder: Encoder,
    sources: Sequence[ImageSource],
    *,
    engine: str = "auto",
    precision: str = "auto",
    text: Callable[[], ClassText] | None = None,
    store: FeatureStore | None = None,
    progress: bool = False,
) -> Encoder:
    """The same encoder as it runs fastest here.

    Args:
        encoder: any.
        sources: the pictures it is to encode; some of them are looked at.
        engine: "auto", or the one that must be taken.
        precision: "auto", or the one that must be taken: then it is, whatever the features come to.
        text: makes class text, by which it is seen whether zero-shot answers stay the same.
        store: where features may be already: then nothing is tried.
        progress: show on stderr what is tried.

    Returns:
        An encoder whose ``info`` says engine and precision, and in its note what was found. The plain encoder if it
        can't be converted, or if the pictures are too few to be worth it.

    Raises:
        InputError: if engine or precision is none, or the engine has no such precision.
        MissingExtraError: if the engine that must be taken is not installed.

    >>> from clipadapter.encoders import create_encoder
    >>> choose_engine(create_encoder("toy"), []).info.engine
    'torch'
    """
    _check(engine, precision)
    if encoder.tower() is None:
        return with_engine(encoder, engine.replace("auto", "torch"), precision.replace("auto", "fp32"))
    if "auto" not in (engine, precision) and precision != "int8":
        return with_engine(encoder, engine, precision)
    return _Search(encoder, sources, engine, precision, text, store, progress).run()


def ready_engine(
    encoder: Encoder, precision: str, wish: str = "torch", calibration: Calibration | None = None
) -> Encoder:
    """The same encoder in a precision that is settled, by an engine that needs no time to be made ready.

    Args:
        encoder: any.
        precision: "fp32", "bf16" or "int8".
        wish: the engine to take if it is installed; int8 differs between engines, so no other is taken for it.
        calibration: of int8.

    Raises:
        EncoderUnavailableError: if no tower was converted with these pictures here.
        MissingExtraError: if no engine here has the precision.
    """
    names = [wish] if precision == "int8" else sorted(list_engines(), key=lambda name: name != wish)
    for name in names:
        cls = engine_info(name).cls
        fits = precision in cls.precisions and encoder.device.partition(":")[0] in cls.devices
        if fits and not cls.missing() and cls.ready(encoder.info.fingerprint, precision, calibration):
            return with_engine(encoder, name, precision, calibration)
    engine_info(names[0]).cls.check(precision)
    raise EncoderUnavailableError(
        f"{encoder.info.name} was calibrated for {precision} on pictures that are not here, nor is the converted tower"
    )


class _Search:
    """One choice; arguments as for `choose_engine`."""

    def __init__(
        self,
        encoder: Encoder,
        sources: Sequence[ImageSource],
        engine: str,
        precision: str,
        text: Callable[[], ClassText] | None,
        store: FeatureStore | None,
        progress: bool,
    ) -> None:
        self.plain, self.sources, self.text, self.store = encoder, sources, text, store
        self.wanted = _candidates(encoder.device, engine, precision)
        self.fixed = precision != "auto"
        keys = {source_key(source, i): i for i, source in enumerate(sources)}
        self.sample = {key: keys[key] for key in sorted(keys)[:SAMPLE]}
        self.record = read_record(encoder.info.fingerprint, encoder.device)
        self.bar = tqdm(total=len(self.wanted), desc="engine", file=sys.stderr, disable=not progress, leave=False)

    def run(self) -> Encoder:
        """Choose."""
        with self.bar:
            if not self._is_known() and not self._measure():
                return self._exact()
        known = [each for each in self.record.measured if (each.engine, each.precision) in self.wanted]
        found = best(known, self.fixed)
        if found is None or (found.engine, found.precision) == ("torch", "fp32"):
            return self._hinted(self._exact())
        calibration = Calibration(None, found.calibration) if found.calibration else None
        return self._hinted(found.noted(with_engine(self.plain, found.engine, found.precision, calibration)))

    def _hinted(self, encoder: Encoder) -> Encoder:
        """Say what is missing to be faster."""
        if encoder.device == "cpu" and engine_info("openvino").cls.missing() and HINT not in encoder.info.note:
            note = "; ".join(part for part in (encoder.info.note, HINT) if part)
            encoder.info = replace(encoder.info, note=note)
        return encoder

    def _exact(self) -> Encoder:
        """What needs no trial: the first candidate."""
        return self.plain if self.wanted[0] == ("torch", "fp32") else with_engine(self.plain, *self.wanted[0])

    def _is_known(self) -> bool:
        """Whether these pictures were measured with all that is wanted; int8 may have been left out as not worth it."""
        known = {(each.engine, each.precision) for each in self.record.measured}
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
        if not only_int8 and not pays(len(self.sources), measure(with_engine(self.plain), squares).rate):
            return False
        squares = self._squares(SAMPLE)
        reference = measure(with_engine(self.plain), squares)
        vectors = None if self.text is None else self.text().embeddings
        found = [reference]
        for engine, precision in self.wanted:
            if (engine, precision) == ("torch", "fp32"):
                continue
            seconds = len(self.sources) / max(each.rate for each in found)
            if precision == "int8" and not only_int8 and seconds < LONG:
                continue
            self.bar.set_postfix_str(f"{engine} {precision}")
            calibration = Calibration(squares) if precision == "int8" else None
            tried = with_engine(self.plain, engine, precision, calibration)
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
                found.append(tower.pixels.square(read_image(self.sources[i])))
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


def _check(engine: str, precision: str) -> None:
    if engine != "auto":
        engine_info(engine)
    if precision not in ("auto", *PRECISIONS):
        raise InputError(f"precision must be auto, {', '.join(PRECISIONS)}, but is {precision!r}")
    if "auto" not in (engine, precision):
        engine_info(engine).cls.check(precision)


def _candidates(device: str, engine: str, precision: str) -> list[tuple[str, str]]:
    """Engines and precisions that can run here, exact ones first, int8 last.

    ONNX Runtime is left to those who ask for it, and to machines without OpenVINO: beside it, it was hardly faster.

    Raises:
        InputError: if the engine has no such precision, or can't run on the device.
        MissingExtraError: if nothing that is installed has the precision.
    """
    names = [engine] if engine != "auto" else [n for n in list_engines() if not engine_info(n).cls.missing()]
    names = [name for name in names if device.partition(":")[0] in engine_info(name).cls.devices]
    if engine == "auto" and "openvino" in names and "onnxruntime" in names:
        names.remove("onnxruntime")
    if not names:
        create_engine(engine, device=device)  # says why not
    wanted = [
        (name, kind)
        for kind in (PRECISIONS if precision == "auto" else (precision,))
        for name in sorted(names, reverse=True)
        if kind in engine_info(name).cls.precisions
    ]
    if engine != "auto" or not wanted:
        engine_info("openvino" if engine == "auto" else engine).cls.check(wanted[0][1] if wanted else precision)
    return wanted
