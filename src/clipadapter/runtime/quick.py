"""Predict with a saved model without loading torch, if its tower and its head were converted to OpenVINO.

The entry of a model lies beside the converted towers, under the hash of its ``config.json``. `clipadapter.classifier`
writes it after a model was fitted or used, and can write it again at any time.
See docs/decisions/0015-quick-prediction.md.
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

from clipadapter.backends import Runner, backend_info, cache_root, create_backend, read_cache_facts
from clipadapter.errors import ClipAdapterError
from clipadapter.model_folder import CONFIG_FILE, HEAD_FILE, UNCERTAINTY_FILE
from clipadapter.pixels import PixelSpec
from clipadapter.runtime.model import Outputs, RuntimeModel
from clipadapter.uncertainty import Uncertainty

BACKEND = "openvino"
CONVERTED_HEAD_FILE = "head.xml"
"""The converted head, in the entry; the arrays of the uncertainty have the same file name as in the saved model."""
MAX_HASHED_BYTES = 64 << 20
"""Models with larger files have no entry: hashing these would take longer than is saved."""
ENTRY_VERSION = 2


@dataclass(frozen=True, eq=False)
class QuickModel(RuntimeModel):
    """A saved model that predicts as `FewShotClassifier` does.

    Args:
        class_names: in the order of the logits.
        pixels: how pictures become squares.
        tower: squares to features.
        head: features (n, d) to logits (n, c).
        uncertainty: calibration, rejection, sets and decisions.
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


def locate_entry(folder: Path) -> Path | None:
    """The folder of a saved model's entry, whether it exists or not; None if the model is damaged or too large."""
    try:
        config = _read(folder / CONFIG_FILE)
        files = json.loads(config)["files"]
        for name in (HEAD_FILE, *({UNCERTAINTY_FILE} & set(files))):
            if hashlib.sha256(_read(folder / name)).hexdigest() != files[name]["sha256"]:
                return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return cache_root() / f"model-{ENTRY_VERSION}-{hashlib.sha256(config).hexdigest()[:32]}"


def open_quick(folder: Path) -> QuickModel | None:
    """Open the entry of a saved model; None if there is none, or it can't be opened for any reason."""
    entry = locate_entry(folder)
    facts = None if entry is None else read_cache_facts(entry)
    if entry is None or facts is None or backend_info(BACKEND).cls.missing_package():
        return None
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    tower = cache_root() / Path(str(facts["tower"])).name
    if read_cache_facts(tower) is None:
        return None
    try:
        backend: Any = create_backend(BACKEND)
        return QuickModel(
            tuple(facts["class_names"]),
            PixelSpec.from_dict(facts["pixels"]),
            backend.load(tower, facts["precision"]),
            backend.open_graph(entry / CONVERTED_HEAD_FILE, "fp32"),
            Uncertainty.from_state(
                facts["trust"], dict(load_file(entry / UNCERTAINTY_FILE)), len(facts["class_names"])
            ),
            facts["precision"],
        )
    except (ClipAdapterError, SafetensorError, RuntimeError, OSError, KeyError, ValueError) as error:
        logging.getLogger(__name__).info("no quick prediction with %s: %s", folder, error)
        return None


def _read(path: Path) -> bytes:
    if path.stat().st_size > MAX_HASHED_BYTES:
        raise ValueError(f"{path} is too large")
    return path.read_bytes()
