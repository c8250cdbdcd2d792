"""Makes a saved model ready for `clipadapter.runtime.quick`."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from clipadapter.backends import Calibration, backend_info, cache_build, cache_facts, create_backend
from clipadapter.encoders import Encoder, with_backend
from clipadapter.errors import ClipAdapterError
from clipadapter.heads import Head
from clipadapter.runtime import quick
from clipadapter.uncertainty import Uncertainty

SMALL = 32_000_000
"""Weights of a tower that is converted for the sake of quick answers alone; it takes a second or two."""
KEPT = 50
"""Entries that stay; others can be made again."""
ROWS = 5
NEAR = 1e-3


class _Logits(torch.nn.Module):
    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head._logits(x)


def make_quick(
    folder: Path, encoder: Encoder, head: Head, class_names: tuple[str, ...], uncertainty: Uncertainty
) -> bool:
    """Have a saved model answer without torch from now on, if that can be had cheaply.

    Args:
        folder: the saved model.
        encoder: as it was fitted.
        head: fitted.
        class_names: in the order of the logits.
        uncertainty: of the model.

    Returns:
        Whether it will. It will not if OpenVINO is not installed, the tower is large and was not converted, or the
        head is no fixed function of features.
    """
    place, backend = quick.entry(folder), backend_info(quick.BACKEND).cls
    by_folds = uncertainty.conformal is not None and uncertainty.conformal.method == "cv+"
    if place is None or backend.missing() or encoder.device != "cpu" or by_folds:
        return False
    if cache_facts(place) is not None:
        return True
    try:
        tower = _converted(encoder)
        if tower is None:
            return False
        told, arrays = uncertainty.state()

        def build(into: Path) -> None:
            _convert(head, into / quick.HEAD)
            save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, into / quick.TRUST)

        cache_build(place, build, {**tower, "class_names": list(class_names), "trust": told})
    except (ClipAdapterError, RuntimeError):
        return False
    _forget(place)
    return True


def _forget(newest: Path) -> None:
    """Leave the entries that were made last."""
    entries = sorted(newest.parent.glob("model-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in entries[KEPT:]:
        if path != newest:
            shutil.rmtree(path, ignore_errors=True)


def _converted(encoder: Encoder) -> dict[str, Any] | None:
    """What is known of the encoder's converted tower, which a small one is made for; None if there is none."""
    plain = getattr(encoder, "plain", encoder)
    tower, info, backend = plain.tower(), encoder.info, backend_info(quick.BACKEND).cls
    if tower is None:
        return None
    calibration = Calibration(None, info.calibration) if info.calibration else None
    if not backend.ready(tower.fingerprint, info.precision, calibration):
        if info.precision == "int8" or sum(p.numel() for p in tower.module.parameters()) > SMALL:
            return None
        with_backend(plain, quick.BACKEND, info.precision)
    place = backend.place(tower.fingerprint, info.precision, info.calibration)  # type: ignore[attr-defined]
    return {"tower": place.name, "precision": info.precision, "pixels": tower.pixels.facts()}


def _convert(head: Head, path: Path) -> None:
    """The head's logits as a graph.

    Raises:
        RuntimeError: if the graph does not answer as the head does.
    """
    backend: Any = create_backend(quick.BACKEND)
    x = torch.randn(2 * ROWS, head.n_features_in_, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backend.write(torch.jit.trace(_Logits(head).eval(), x[:2], check_trace=False), x[:2], path)
    run = backend.open(path, "fp32")
    for rows in (x[:1], x[:ROWS], x):
        wanted, found = head.logits(rows.numpy()), run(rows.numpy())
        if np.abs(wanted - found).max() > NEAR * max(1.0, float(np.abs(wanted).max())):
            raise RuntimeError("the converted head answers otherwise")
