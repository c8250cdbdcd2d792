"""The encoder that a saved model needs, as it can be had here; and the store beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from clipadapter.backends import Calibration
from clipadapter.data.images import ImageSource
from clipadapter.encoders import Encoder, EncoderInfo, create_encoder, fingerprint_in, with_backend
from clipadapter.errors import EncoderUnavailableError, FingerprintError, MissingExtraError
from clipadapter.features import FeatureStore, choose_backend, ready_backend
from clipadapter.heads import TextFeatures


@contextmanager
def open_store(cache: str | Path | None) -> Iterator[FeatureStore | None]:
    """The feature store that `FewShotClassifier` means by its ``cache``."""
    if cache is None:
        yield None
        return
    with FeatureStore(None if cache == "auto" else cache) as store:
        yield store


def chosen(
    encoder: Encoder,
    images: Sequence[ImageSource],
    backend: str,
    precision: str,
    text: Callable[[], TextFeatures],
    cache: str | Path | None,
    progress: bool,
) -> Encoder:
    """The encoder as it runs fastest on these pictures; see `choose_backend`."""
    with open_store(cache) as store:
        return choose_backend(
            encoder, images, backend=backend, precision=precision, text=text, store=store, progress=progress
        )


def reopened(
    saved: EncoderInfo, given: str | Encoder | None, device: str, backend: str = "auto", precision: str = "auto"
) -> Encoder:
    """The encoder of a saved model, in the precision it was fitted with.

    Args:
        saved: what the model knows of it.
        given: where it is now, or the open encoder; the saved name if not given.
        device: torch device, if it must be opened.
        backend: "auto" takes one that is ready here.
        precision: "auto" is the saved one; another gives features that are near, not equal, to those of the fit.

    Raises:
        FingerprintError: if it is another encoder.
        MissingExtraError: if the backend that was asked for is not installed.
    """
    encoder = given if isinstance(given, Encoder) else create_encoder(given or saved.name, device)
    if isinstance(given, Encoder) and given.info.fingerprint == saved.fingerprint:
        return given
    check_same(saved, encoder.info)
    return as_saved(saved, encoder, backend, precision)


def check_same(saved: EncoderInfo, here: EncoderInfo) -> None:
    """Refuse a plain encoder that is not the one of a saved model.

    Raises:
        FingerprintError: if it is another.
    """
    if fingerprint_in(here.fingerprint, saved.backend, saved.precision, saved.calibration) != saved.fingerprint:
        raise FingerprintError(
            f"the model was fitted with {saved.name} of fingerprint {saved.fingerprint[:12]}, but "
            f"{here.name} here has {here.fingerprint[:12]}: its weights or preprocessing differ, so "
            "predictions would be wrong. Give the encoder it was fitted with (encoder=..., or --encoder), or fit again"
        )


def as_saved(saved: EncoderInfo, encoder: Encoder, backend: str = "auto", precision: str = "auto") -> Encoder:
    """A plain encoder in the precision of a saved model; see `reopened`."""
    wanted = saved.precision if precision == "auto" else precision
    calibration = Calibration(None, saved.calibration) if wanted == "int8" and saved.calibration else None
    if encoder.tower() is None:
        return encoder
    if backend != "auto":
        return with_backend(encoder, backend, wanted, calibration)
    try:
        return ready_backend(encoder, wanted, saved.backend, calibration)
    except (EncoderUnavailableError, MissingExtraError) as error:
        if precision != "auto":
            raise
        note = f"the model was fitted on {wanted} features, these are fp32, near but not equal: {error}"
        encoder.info = replace(encoder.info, note="; ".join(part for part in (encoder.info.note, note) if part))
        return encoder
