"""Convert a saved model for `clipadapter.runtime.quick`, which predicts without importing torch."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from clipadapter.backends import Int8Calibration, backend_info, build_in_cache, create_backend, read_cache_facts
from clipadapter.encoders import Encoder, with_backend
from clipadapter.errors import ClipAdapterError
from clipadapter.heads import Head
from clipadapter.model_folder import UNCERTAINTY_FILE
from clipadapter.runtime import quick
from clipadapter.uncertainty import Uncertainty

MAX_CONVERTED_WEIGHTS = 32_000_000
"""Towers with more weights are not converted for this purpose alone. Converting these takes one or two seconds.

Passes of one encoder count once each: each is converted to a graph of its own.
"""
MAX_CACHE_ENTRIES = 50
"""Older entries are removed; they can be made again."""
TRACED_ROWS = 5
LOGIT_TOLERANCE = 1e-3
"""Allowed difference of the converted head, relative to the largest logit."""


class _HeadLogits(torch.nn.Module):
    """The head as a module, for tracing."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head._logits(self.head.read_columns(x))


def make_quick(
    folder: Path, encoder: Encoder, head: Head, class_names: tuple[str, ...], uncertainty: Uncertainty
) -> bool:
    """Convert a saved model for prediction without torch, if that is cheap.

    Args:
        folder: the saved model.
        encoder: encoder of the fit.
        head: fitted head.
        class_names: class names in the order of the logits.
        uncertainty: uncertainty of the model.

    Returns:
        Whether the model is converted. It is not if OpenVINO is not installed, the towers are large and were not
        converted before, one can't be converted, or the head is no fixed function of the features.
    """
    entry, backend = quick.locate_entry(folder), backend_info(quick.BACKEND).cls
    needs_fold_heads = uncertainty.conformal is not None and uncertainty.conformal.method == "cv+"
    if entry is None or backend.missing_package() or encoder.device != "cpu" or needs_fold_heads:
        return False
    if read_cache_facts(entry) is not None:
        return True
    try:
        towers = _convert_towers(encoder)
        if towers is None:
            return False
        facts = {"towers": towers, "precision": encoder.info.precision, "final_width": encoder.info.text_dim}
        uncertainty_facts, arrays = uncertainty.state()

        def build(folder: Path) -> None:
            _convert_head(head, folder / quick.CONVERTED_HEAD_FILE)
            save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, folder / UNCERTAINTY_FILE)

        build_in_cache(entry, build, {**facts, "class_names": list(class_names), "uncertainty": uncertainty_facts})
    except (ClipAdapterError, RuntimeError):
        return False
    _remove_old_entries(entry)
    return True


def _convert_towers(encoder: Encoder) -> list[dict[str, Any]] | None:
    """Facts of the converted image tower of each pass; None if one has none, or they are too large to convert them."""
    backend: Any = backend_info(quick.BACKEND).cls
    precision, n_weights = encoder.info.precision, 0
    facts, missing = [], []
    for each in encoder.passes():
        tower, info = each.tower(), each.info
        if tower is None or info.precision != precision:
            return None
        calibration = Int8Calibration(None, info.int8_calibration_digest) if info.int8_calibration_digest else None
        if not backend.is_ready(tower.fingerprint, precision, calibration):
            missing.append(each)
            n_weights += sum(p.numel() for p in tower.module.parameters())
        place = backend.cache_folder(tower.fingerprint, precision, info.int8_calibration_digest)
        facts.append({"tower": place.name, "pixels": tower.pixels.to_dict()})
    if missing and (precision == "int8" or n_weights > MAX_CONVERTED_WEIGHTS):
        return None
    for each in missing:
        with_backend(each, quick.BACKEND, precision)
    return facts


def _convert_head(head: Head, path: Path) -> None:
    """Write the function from features to logits as a graph.

    Raises:
        RuntimeError: if the logits of the graph differ from those of the head.
    """
    backend: Any = create_backend(quick.BACKEND)
    x = torch.randn(2 * TRACED_ROWS, head.n_features_in_, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backend.write_graph(torch.jit.trace(_HeadLogits(head).eval(), x[:2], check_trace=False), x[:2], path)
    run = backend.open_graph(path, "fp32")
    # Several batch sizes: tracing may have fixed the size of the batch that it saw.
    for rows in (x[:1], x[:TRACED_ROWS], x):
        expected, logits = head.logits(rows.numpy()), run(rows.numpy())
        if np.abs(expected - logits).max() > LOGIT_TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise RuntimeError("the converted head gives other logits")


def _remove_old_entries(newest: Path) -> None:
    entries = sorted(newest.parent.glob("model-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in entries[MAX_CACHE_ENTRIES:]:
        if path != newest:
            shutil.rmtree(path, ignore_errors=True)
