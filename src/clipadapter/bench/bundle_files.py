"""A bundle as a folder with one file ``bundle.safetensors``: arrays, and in its header as JSON what they are.

Worker processes read it. So does ``features:FOLDER`` as a data set, for features that were computed elsewhere.
"""

from __future__ import annotations

import json
import re
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

BUNDLE_FILE = "bundle.safetensors"
STORED_PROVENANCE = ("encoder", "fingerprint", "data", "templates", "views", "crop")
"""Fields of the provenance of features that are stored."""

Arrays = dict[str, NDArray[Any]]


class TextFacts(FrozenModel):
    """Class text without its arrays NAME.text (c, d), and NAME.prompts (p, d) if prompts are stored."""

    labels: list[str] = Field(min_length=1)
    logit_scale: float = Field(gt=0)
    logit_bias: float | None = None
    prompts: list[int] | None = None  # number of prompts of each class, if their vectors are stored


class SetFacts(FrozenModel):
    """Features without their arrays NAME (n, d) or (n, v, d), and NAME.labels (n,), positions among the class names."""

    class_names: list[str] = Field(min_length=1)
    provenance: dict[str, Any] = Field(default_factory=dict)
    blocks: list[tuple[str, int]] = Field(min_length=1, max_length=MAX_BLOCKS)
    kind: TestKind = "given"
    text: TextFacts | None = None  # of a test part only if its classes are other ones


class BundleFacts(FrozenModel):
    """The array support.rows (n,) has the rows in the data set, if the support is not all of it."""

    format: Literal[1] = 1
    support: SetFacts
    text: TextFacts
    tests: dict[str, SetFacts] = Field(default_factory=dict)


def save_bundle(bundle: Bundle, folder: str | Path) -> Path:
    """Write a bundle, completely or not at all. An existing one is not changed."""
    folder = Path(folder)
    target = path_without_links(folder, BUNDLE_FILE)
    if target.is_file():
        return folder
    arrays: Arrays = {} if bundle.rows is None else {"support.rows": np.asarray(bundle.rows, np.int64)}
    facts = BundleFacts(
        support=_describe_set("support", bundle.support, arrays),
        text=_describe_text("support", bundle.text, arrays),
        tests={
            name: _describe_set(f"test.{name}", part.features, arrays, part.kind, part.text)
            for name, part in bundle.tests.items()
        },
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder, re.escape(f".{BUNDLE_FILE}") + RANDOM_END)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{BUNDLE_FILE}-") as fresh:
            # Of several processes the last one to finish puts the same file in place.
            save_file(arrays, Path(fresh) / BUNDLE_FILE, {"facts": facts.model_dump_json()})
            (Path(fresh) / BUNDLE_FILE).replace(target)
    except (OSError, SafetensorError) as error:  # the text of SafetensorError has the system's message
        why = getattr(error, "strerror", None) or error
        raise InputError(f"can't write {folder}: {why}; give a folder with space that you may write to") from error
    return folder


def load_bundle(folder: str | Path) -> Bundle:
    """Read a bundle."""
    path = path_without_links(Path(folder), BUNDLE_FILE, error=DataError)
    if not path.is_file():
        raise DataError(f"can't read {path}: there is no such file; expected a folder with {BUNDLE_FILE}")
    try:
        with safe_open(path, framework="numpy") as file:
            facts = BundleFacts.model_validate(json.loads((file.metadata() or {}).get("facts", "null")))
            arrays = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - no mapping
        tests = {}
        for name, part in facts.tests.items():
            text = None if part.text is None else _read_text(f"test.{name}", part.text, arrays)
            tests[name] = TestPart(_read_set(f"test.{name}", part, arrays), part.kind, text)
        support, text = _read_set("support", facts.support, arrays), _read_text("support", facts.text, arrays)
        return Bundle(support, text, tests, arrays.get("support.rows"))
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path}: {'.'.join(map(str, first['loc']))} {first['msg']}") from error
    except KeyError as error:
        raise DataError(f"{path} is no complete set of features: it has no array {error}") from error
    except (OSError, SafetensorError, InputError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no complete set of features: {error}") from error


def _describe_set(
    name: str, features: FeatureSet, arrays: Arrays, kind: TestKind = "given", text: TextFeatures | None = None
) -> SetFacts:
    """Put the arrays of features among the others, and return what the header says of them."""
    position = {label: i for i, label in enumerate(features.class_names)}
    arrays[name] = np.ascontiguousarray(features.X).view(np.ndarray)
    arrays[f"{name}.labels"] = np.array([position[label] for label in features.y], dtype=np.int64)
    return SetFacts(
        class_names=list(features.class_names),
        provenance={key: features.provenance[key] for key in STORED_PROVENANCE if key in features.provenance},
        blocks=list(features.blocks),
        kind=kind,
        text=None if text is None else _describe_text(name, text, arrays),
    )


def _describe_text(name: str, text: TextFeatures, arrays: Arrays) -> TextFacts:
    arrays[f"{name}.text"] = np.array(text.embeddings)
    if text.prompts is not None:
        arrays[f"{name}.prompts"] = np.concatenate(text.prompts)
    counts = None if text.prompts is None else [len(rows) for rows in text.prompts]
    return TextFacts(labels=list(text.labels), logit_scale=text.logit_scale, logit_bias=text.logit_bias, prompts=counts)


def _read_set(name: str, facts: SetFacts, arrays: Arrays) -> FeatureSet:
    labels, names = arrays[f"{name}.labels"], tuple(facts.class_names)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"'{name}.labels' must be whole numbers (n,), but is {labels.dtype} {labels.shape}")
    if labels.size and not 0 <= labels.min() <= labels.max() < len(names):
        raise InputError(f"'{name}.labels' must be 0 to {len(names) - 1}")
    y = tuple(names[i] for i in labels)
    return FeatureSet(arrays[name], y, names, facts.provenance, blocks=as_blocks(facts.blocks))


def _read_text(name: str, facts: TextFacts, arrays: Arrays) -> TextFeatures:
    prompts = None
    if facts.prompts is not None:
        rows = arrays[f"{name}.prompts"]
        if min(facts.prompts) < 0 or len(rows) != sum(facts.prompts):
            raise InputError(f"'{name}.prompts' has {len(rows)} rows, not the {sum(facts.prompts)} of its classes")
        prompts = np.split(rows, np.cumsum(facts.prompts)[:-1])
    return TextFeatures(facts.labels, arrays[f"{name}.text"], facts.logit_scale, facts.logit_bias, prompts=prompts)
