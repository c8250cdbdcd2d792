"""What is saved of a `Rejector`, and its way back, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import ArtifactError
from clipadapter.uncertainty._columns import NEEDS, Memory
from clipadapter.uncertainty._spread import Spread

Array = NDArray[Any]
MATRICES = ("text", "distractors", "background", "shots")
_FACTS = {"method", "parts", "bound", "names", "scale", "floor"}
_PART = {"name", "weight", "centre", "deviation"}


def memory_arrays(memory: Memory) -> dict[str, Array]:
    """The arrays of a memory by name."""
    found = {name: getattr(memory, name) for name in MATRICES if getattr(memory, name) is not None}
    if memory.spread is not None:
        found |= {"means": memory.spread.means, "basis": memory.spread.basis}
    return found


def read_state(
    facts: Mapping[str, Any], arrays: Mapping[str, Array], light: bool = False
) -> tuple[list[dict[str, Any]], tuple[str, ...], Memory]:
    """Parts, names of distractors, and memory, which may be empty if it is ``light``.

    Raises:
        ArtifactError: if something is missing, or of the wrong shape or kind, or not finite.
    """
    _demand(isinstance(facts, Mapping) and set(facts) == _FACTS, f"it must say {', '.join(sorted(_FACTS))}")
    _demand(facts["method"] in ("auto", *NEEDS), f"its method is {facts['method']!r}")
    parts = facts["parts"]
    _demand(isinstance(parts, list) and len(parts) > 0, "its parts must be a list")
    for part in parts:
        _demand(isinstance(part, dict) and set(part) == _PART and part["name"] in NEEDS, f"it has a part {part!r}")
        numbers = [part["weight"], part["centre"], part["deviation"]]
        _demand(all(_number(x) for x in numbers) and part["weight"] >= 0 < part["deviation"], f"{part!r} is no part")
    _demand(_number(facts["scale"]) and facts["scale"] > 0, f"its scale is {facts['scale']!r}")
    _demand(isinstance(facts["bound"], bool), f"its bound is {facts['bound']!r}")
    names = facts["names"]
    _demand(isinstance(names, list) and all(isinstance(name, str) for name in names), "its names must be texts")
    memory = _memory(arrays, facts)
    _demand(arrays["held_out"].shape[1:] == (len(parts),), "its held-out scores don't fit its parts")
    # A table with a stranger's row or column would give a wrong answer, not an error.
    for part in parts:
        _demand(light or _has(memory, part["name"]), f"it lacks the arrays of {part['name']!r}")
    k = 0 if memory.distractors is None else len(memory.distractors)
    _demand(len(names) in (0, k), f"it has {len(names)} names of {k} distractors")
    return parts, tuple(names), memory


def _memory(arrays: Mapping[str, Array], facts: Mapping[str, Any]) -> Memory:
    known = {"held_out", "means", "basis", *MATRICES}
    _demand("held_out" in arrays and set(arrays) <= known, f"its arrays are {sorted(arrays)}")
    widths = set()
    for name, array in arrays.items():
        shaped = isinstance(array, np.ndarray) and array.ndim == 2 and array.dtype.kind == "f"
        _demand(shaped and (len(array) > 0 or name == "basis"), f"{name!r} must be a matrix of numbers")
        _demand(bool(np.isfinite(array).all()), f"{name!r} is not finite")
        widths |= {array.shape[1]} if name != "held_out" else set()
    _demand(len(widths) <= 1, f"its arrays are of widths {sorted(widths)}")
    given: dict[str, Any] = {name: arrays[name] for name in MATRICES if name in arrays}
    if "means" not in arrays:
        return Memory(scale=float(facts["scale"]), **given)
    floor = facts["floor"]
    _demand("basis" in arrays and _number(floor) and floor > 0, f"its floor is {floor!r}")
    classes = {len(arrays[name]) for name in ("means", "text") if name in arrays}
    _demand(len(classes) == 1, f"its means and class text are of {sorted(classes)} classes")
    return Memory(Spread(arrays["means"], arrays["basis"], float(floor)), scale=float(facts["scale"]), **given)


def _has(memory: Memory, name: str) -> bool:
    need = {
        "mahalanobis": (memory.spread,),
        "background": (memory.spread, memory.background),
        "knn": (memory.shots,),
        "distractors": (memory.text, memory.distractors),
        "text": (memory.text,),
        "mcm": (memory.text,),
    }
    return all(each is not None for each in need.get(name, ()))


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _demand(right: bool, text: str) -> None:
    if not right:
        raise ArtifactError(f"the saved rejector can't be used: {text}. Fit and save the model again")
