"""What the authors' own code gave: see golden/README.md."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

FOLDER = Path(__file__).parent / "golden"


def golden(method: str) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """Tensors of one method by name, and the parameters that its authors' code was run with."""
    with safe_open(FOLDER / f"{method}.safetensors", framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["parameters"])


def doubles(tensors: dict[str, np.ndarray[Any, Any]], *names: str) -> list[np.ndarray[Any, Any]]:
    """Inputs in float64, in which the ``f64_`` outputs were computed from them."""
    return [tensors[name].astype(np.float64) for name in names]
