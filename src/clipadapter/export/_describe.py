"""What a file says of itself, from the model it was made of."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from clipadapter.classifier import FewShotClassifier
from clipadapter.files import without_paths
from clipadapter.heads import Head, head_info, list_heads
from clipadapter.pixels import PixelSpec
from clipadapter.runtime import About
from clipadapter.runtime._checksum import ALGORITHM

PACKAGES = ("clipadapter", "torch", "open_clip_torch", "onnx", "onnxruntime", "openvino", "nncf")


def about(model: FewShotClassifier, pixels: PixelSpec, precision: str, source: str) -> About:
    """The description, without the figures of the gate; it names no path of this machine.

    Args:
        model: fitted.
        pixels: how a picture becomes the graph's square.
        precision: of the file.
        source: "uint8" or "float".
    """
    info = model.encoder_.info
    encoder = {
        "name": without_paths(info.name),
        "fingerprint": info.fingerprint,
        "licence": info.licence,
        "logit_scale": info.logit_scale,
        "precision": info.precision,
    }
    head = {"name": name_of(model.head_), "params": _plain(model.head_.get_params(deep=False))}
    return About(
        model.class_names_,
        pixels,
        model.uncertainty_.light(),
        source,
        precision,
        encoder,
        head,
        _provenance(model),
        checksum=ALGORITHM,
    )


def notes_of(model: FewShotClassifier) -> Iterator[str]:
    """What the file can't do that the model can."""
    conformal = model.uncertainty_.conformal
    if conformal is not None and conformal.method == "cv+":
        yield (
            "the file gives no sets of classes: sets by CV+ need the heads of all folds. Fit with sets='cross' "
            "(UncertaintyOptions, or --sets cross) to have them"
        )


def name_of(head: Head) -> str:
    """The registered name of a head, or its class's."""
    cls = type(head)
    return next((name for name in list_heads() if head_info(name).cls is cls), cls.__name__)


def _provenance(model: FewShotClassifier) -> dict[str, Any]:
    support, known = model.support_, model.support_.provenance
    shots = support.counts if len(support) else dict(known.get("shots", {}))
    skipped = known.get("skipped", 0)
    return {
        "shots": shots,
        "skipped": skipped if isinstance(skipped, int) else len(skipped),
        "views": known.get("views", 1),
        "versions": dict(_versions()),
        "python": platform.python_version(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as JSON holds them, others by their words."""
    found: dict[str, Any] = {}
    for name, value in params.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            found[name] = repr(value)
        else:
            found[name] = value
    return found
