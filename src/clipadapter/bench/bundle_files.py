"""A bundle as a folder: ``bundle.json`` and ``arrays.safetensors``.

Worker processes read it. So does ``features:FOLDER`` as a data set, for features that were computed elsewhere.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from clipadapter.bench.bundle import Bundle, TestKind, TestPart
from clipadapter.bench.run import FrozenModel
from clipadapter.errors import DataError, InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import TextFeatures
from clipadapter.utils.blocks import MAX_BLOCKS, as_blocks
from clipadapter.utils.files import RANDOM_END, path_without_links, remove_abandoned

FACTS_FILE, ARRAYS_FILE = "bundle.json", "arrays.safetensors"
MAX_FACTS_BYTES = 256 << 20
STORED_PROVENANCE = ("encoder", "fingerprint", "data", "templates", "views", "crop")
"""Fields of the provenance of features that are stored."""


class TextFacts(FrozenModel):
    """Class text without the vectors, which are an array.

    Args:
        labels: class names.
        logit_scale: factor of cosines.
        logit_bias: added to them, or None.
        prompts: number of single prompts of each class, whose vectors are an array too; None if they are not stored.
    """

    labels: list[str] = Field(min_length=1)
    logit_scale: float = Field(gt=0)
    logit_bias: float | None = None
    prompts: list[int] | None = None


class SetFacts(FrozenModel):
    """Features without the vectors and the labels, which are arrays; labels are positions among the class names."""

    class_names: list[str] = Field(min_length=1)
    provenance: dict[str, Any] = Field(default_factory=dict)
    blocks: list[tuple[str, int]] = Field(min_length=1, max_length=MAX_BLOCKS)


class TestFacts(SetFacts):
    """A test part."""

    __test__ = False

    kind: TestKind = "given"
    text: TextFacts | None = None


class BundleFacts(FrozenModel):
    """``bundle.json``.

    Args:
        format: number of this layout.
        support: what shots are drawn from; arrays ``support`` (n, d) or (n, v, d) and ``support.labels`` (n,).
        text: class text; array ``text`` (c, d), and ``text.prompts`` (p, d) with the prompts of one class after the
            other, if they are stored.
        rows: whether there is the array ``support.rows`` (n,): the rows in the data set.
        tests: by name; arrays ``test.NAME`` (m, d), ``test.NAME.labels`` and, for other classes, ``test.NAME.text``.
    """

    format: Literal[1] = 1
    support: SetFacts
    text: TextFacts
    rows: bool = False
    tests: dict[str, TestFacts] = Field(default_factory=dict)


def save_bundle(bundle: Bundle, folder: str | Path) -> Path:
    """Write a bundle, completely or not at all. An existing one is not changed.

    Raises:
        InputError: if it can't be written.
    """
    folder = Path(folder)
    if path_without_links(folder, FACTS_FILE).is_file():
        return folder
    arrays: dict[str, NDArray[Any]] = {}
    facts = BundleFacts(
        support=SetFacts(**_set(bundle.support, "support", arrays)),
        text=_text(bundle.text, "text", arrays),
        rows=bundle.rows is not None,
        tests={
            name: TestFacts(
                **_set(part.features, f"test.{name}", arrays),
                kind=part.kind,
                text=None if part.text is None else _text(part.text, f"test.{name}.text", arrays),
            )
            for name, part in bundle.tests.items()
        },
    )
    if bundle.rows is not None:
        arrays["support.rows"] = np.asarray(bundle.rows, np.int64)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder.parent, re.escape(f".{folder.name}") + RANDOM_END)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            save_file(arrays, fresh / ARRAYS_FILE)
            (fresh / FACTS_FILE).write_text(facts.model_dump_json(indent=1) + "\n", encoding="utf-8")
            fresh.replace(folder)
        except (OSError, SafetensorError):
            shutil.rmtree(fresh, ignore_errors=True)
            if not (folder / FACTS_FILE).is_file():  # another process may have written it first
                raise
    except (OSError, SafetensorError) as error:  # the text of SafetensorError has the system's message
        why = getattr(error, "strerror", None) or error
        raise InputError(f"can't write {folder}: {why}; give a folder with space that you may write to") from error
    return folder


def load_bundle(folder: str | Path) -> Bundle:
    """Read a bundle.

    Raises:
        DataError: if the folder has no bundle, or its parts don't match; says what.
    """
    folder = Path(folder)
    facts = _facts(path_without_links(folder, FACTS_FILE, error=DataError))
    arrays_file = path_without_links(folder, ARRAYS_FILE, error=DataError)
    try:
        with safe_open(arrays_file, framework="numpy") as file:
            arrays = _Arrays(file, arrays_file)
            return Bundle(
                arrays.features("support", facts.support),
                arrays.text("text", facts.text),
                {
                    name: TestPart(
                        arrays.features(f"test.{name}", part),
                        part.kind,
                        None if part.text is None else arrays.text(f"test.{name}.text", part.text),
                    )
                    for name, part in facts.tests.items()
                },
                arrays.get("support.rows").astype(np.int64) if facts.rows else None,
            )
    except (OSError, SafetensorError, InputError) as error:
        raise DataError(f"{folder} is no complete set of features: {error}") from error


def _facts(path: Path) -> BundleFacts:
    try:
        if path.stat().st_size > MAX_FACTS_BYTES:
            raise DataError(f"{path} has more than {MAX_FACTS_BYTES >> 20} MB: it describes no set of features")
        return BundleFacts.model_validate(json.loads(path.read_bytes()))
    except OSError as error:
        raise DataError(
            f"can't read {path}: {error.strerror or error}; expected a folder with {FACTS_FILE} and {ARRAYS_FILE}"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path}: {'.'.join(map(str, first['loc']))} {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error


def _set(features: FeatureSet, name: str, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    position = {label: i for i, label in enumerate(features.class_names)}
    arrays[name] = np.ascontiguousarray(features.X).view(np.ndarray)
    arrays[f"{name}.labels"] = np.array([position[label] for label in features.y], dtype=np.int64)
    provenance = {key: features.provenance[key] for key in STORED_PROVENANCE if key in features.provenance}
    provenance = {key: list(value) if isinstance(value, tuple) else value for key, value in provenance.items()}
    return {
        "class_names": list(features.class_names),
        "provenance": provenance,
        "blocks": list(features.blocks),
    }


def _text(text: TextFeatures, name: str, arrays: dict[str, NDArray[Any]]) -> TextFacts:
    arrays[name] = np.array(text.embeddings)
    counts = None
    if text.prompts is not None:
        arrays[f"{name}.prompts"] = np.concatenate(text.prompts)
        counts = [len(rows) for rows in text.prompts]
    return TextFacts(labels=list(text.labels), logit_scale=text.logit_scale, logit_bias=text.logit_bias, prompts=counts)


class _Arrays:
    """Arrays of an open file. Each is checked before it is used."""

    def __init__(self, file: Any, path: Path) -> None:
        self.file, self.path = file, path

    def get(self, name: str) -> NDArray[Any]:
        if name not in self.file.keys():  # noqa: SIM118 - no mapping
            raise InputError(f"{self.path.name} has no array '{name}'")
        return np.asarray(self.file.get_tensor(name))

    def features(self, name: str, facts: SetFacts) -> FeatureSet:
        labels = self.get(f"{name}.labels")
        names = tuple(facts.class_names)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise InputError(f"'{name}.labels' must be whole numbers (n,), but is {labels.dtype} {labels.shape}")
        if labels.size and not 0 <= labels.min() <= labels.max() < len(names):
            raise InputError(f"'{name}.labels' must be 0 to {len(names) - 1}")
        y, blocks = tuple(names[i] for i in labels), as_blocks(facts.blocks)
        return FeatureSet(self.get(name), y, names, facts.provenance, blocks=blocks)

    def text(self, name: str, facts: TextFacts) -> TextFeatures:
        prompts = None
        if facts.prompts is not None:
            rows = self.get(f"{name}.prompts")
            if min(facts.prompts) < 0 or len(rows) != sum(facts.prompts):
                raise InputError(f"'{name}.prompts' has {len(rows)} rows, not the {sum(facts.prompts)} of its classes")
            prompts = np.split(rows, np.cumsum(facts.prompts)[:-1])
        return TextFeatures(facts.labels, self.get(name), facts.logit_scale, facts.logit_bias, prompts=prompts)
