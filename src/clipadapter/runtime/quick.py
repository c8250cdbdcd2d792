"""Answers of a saved model without loading torch: what OpenVINO made of its tower and its head, if it did.

A model's entry lies beside the converted towers, under the hash of its ``config.json``; it is made by
`clipadapter.classifier` when a model was fitted or used, and can always be made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.backends import Runner, backend_info, cache_facts, cache_root, create_backend
from clipadapter.errors import ClipAdapterError
from clipadapter.pixels import PixelSpec
from clipadapter.runtime._model import Outputs, RuntimeModel
from clipadapter.uncertainty import Uncertainty

CONFIG, TENSORS = "config.json", "head.safetensors"
BACKEND = "openvino"
HEAD, TRUST = "head.xml", "trust.safetensors"
MAX_BYTES = 64 << 20
"""Larger files are not hashed for the sake of a quick answer."""
FORMAT = 2


@dataclass(frozen=True, eq=False)
class QuickModel(RuntimeModel):
    """A saved model, ready to answer; what it says is what `FewShotClassifier` would.

    Args:
        class_names: in the order of the logits.
        pixels: how pictures become squares.
        tower: squares to features.
        head: features (n, d) to logits (n, c).
        uncertainty: what held-out shots taught.
        precision: of the tower.
    """

    class_names: tuple[str, ...]
    pixels: PixelSpec
    tower: Runner
    head: Any
    uncertainty: Uncertainty
    precision: str

    def run(self, squares: NDArray[np.uint8]) -> Outputs:
        """See `RuntimeModel.run`."""
        features = self.tower(squares)
        return Outputs(self.head(features), features)


def entry(folder: Path) -> Path | None:
    """Where a saved model's entry is, or would be; None if the model is not sound, or too large to see that quickly."""
    try:
        text = _read(folder / CONFIG)
        listed = json.loads(text)["files"]
        for name in (TENSORS, *({TRUST} & set(listed))):
            if hashlib.sha256(_read(folder / name)).hexdigest() != listed[name]["sha256"]:
                return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return cache_root() / f"model-{FORMAT}-{hashlib.sha256(text).hexdigest()[:32]}"


def open_quick(folder: Path) -> QuickModel | None:
    """The saved model in a folder, if it can answer without torch; None if not, whatever the reason."""
    place = entry(folder)
    facts = None if place is None else cache_facts(place)
    if place is None or facts is None or backend_info(BACKEND).cls.missing():
        return None
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    tower = cache_root() / Path(str(facts["tower"])).name
    if cache_facts(tower) is None:
        return None
    try:
        backend: Any = create_backend(BACKEND)
        return QuickModel(
            tuple(facts["class_names"]),
            PixelSpec.from_dict(facts["pixels"]),
            backend.load(tower, facts["precision"]),
            backend.open(place / HEAD, "fp32"),
            Uncertainty.from_state(facts["trust"], dict(load_file(place / TRUST)), len(facts["class_names"])),
            facts["precision"],
        )
    except (ClipAdapterError, SafetensorError, RuntimeError, OSError, KeyError, ValueError) as error:
        logging.getLogger(__name__).info("no quick answer from %s: %s", folder, error)
        return None


def _read(path: Path) -> bytes:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is large")
    return path.read_bytes()
