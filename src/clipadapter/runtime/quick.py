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
from clipadapter.model_folder import CONFIG_FILE, HEAD_FILE, UNCERTAINTY_FILE, model_path
from clipadapter.pixels import PixelSpec, different_squares, unpack_squares
from clipadapter.runtime.model import Outputs, RuntimeModel
from clipadapter.uncertainty import Uncertainty

BACKEND = "openvino"
CONVERTED_HEAD_FILE = "head.xml"
"""The converted head, in the entry; the arrays of the uncertainty have the same file name as in the saved model."""
MAX_HASHED_BYTES = 64 << 20
"""Models with larger files have no entry: hashing these would take longer than is saved."""
ENTRY_VERSION = 1


@dataclass(frozen=True, eq=False)
class QuickModel(RuntimeModel):
    """A saved model that predicts as `FewShotClassifier` does.

    Args:
        class_names: in the order of the logits.
        pixels: how pictures become the squares of the first tower.
        towers: squares to features, whose columns lie side by side; and the number of their squares among `inputs`.
        head: features (n, d) to logits (n, c).
        final_width: number of columns of the block ``final``, the first ones.
        uncertainty: calibration, rejection, sets and decisions.
        precision: of the towers.
        further_inputs: how pictures become the squares of towers that take others than the first one.
    """

    class_names: tuple[str, ...]
    pixels: PixelSpec
    towers: tuple[tuple[Runner, int], ...]
    head: Any
    final_width: int
    uncertainty: Uncertainty
    precision: str
    further_inputs: tuple[PixelSpec, ...] = ()

    def run(self, squares: NDArray[np.uint8]) -> Outputs:
        """See `RuntimeModel.run`."""
        by_size = [np.ascontiguousarray(part) for part in unpack_squares(squares, self.inputs)]
        parts = [run(by_size[number]) for run, number in self.towers]
        blocks = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        features = blocks[:, : self.final_width]
        return Outputs(self.head(blocks), features, blocks=blocks if blocks.shape != features.shape else None)


def locate_entry(folder: Path) -> Path | None:
    """The folder of a saved model's entry, whether it exists or not; None if the model is damaged or too large."""
    try:
        config = _read(model_path(folder, CONFIG_FILE))
        files = json.loads(config)["files"]
        for name in (HEAD_FILE, *({UNCERTAINTY_FILE} & set(files))):
            if hashlib.sha256(_read(model_path(folder, name))).hexdigest() != files[name]["sha256"]:
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

    try:
        folders = [cache_root() / Path(str(each["tower"])).name for each in facts["towers"]]
        if any(read_cache_facts(folder) is None for folder in folders):
            return None
        inputs, numbers = different_squares([PixelSpec.from_dict(each["pixels"]) for each in facts["towers"]])
        backend: Any = create_backend(BACKEND)
        runners = [backend.load(folder, facts["precision"]) for folder in folders]
        return QuickModel(
            tuple(facts["class_names"]),
            inputs[0],
            tuple(zip(runners, numbers, strict=True)),
            backend.open_graph(entry / CONVERTED_HEAD_FILE, "fp32"),
            int(facts["final_width"]),
            Uncertainty.from_state(
                facts["uncertainty"], dict(load_file(entry / UNCERTAINTY_FILE)), len(facts["class_names"])
            ),
            facts["precision"],
            inputs[1:],
        )
    except (ClipAdapterError, SafetensorError, RuntimeError, OSError, KeyError, TypeError, ValueError) as error:
        logging.getLogger(__name__).info("no quick prediction with %s: %s", folder, error)
        return None


def _read(path: Path) -> bytes:
    if path.stat().st_size > MAX_HASHED_BYTES:
        raise ValueError(f"{path} is too large")
    return path.read_bytes()
