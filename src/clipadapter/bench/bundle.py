"""Features of one comparison: those that shots are drawn from, those of the test parts, and class text.

A bundle is also a folder with one file ``bundle.safetensors``: arrays, and in its header as JSON what they are. Worker
processes read it. So does ``features:FOLDER`` as a data set, for features that were computed elsewhere.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from clipadapter.bench.run import RunData, RunEncoder, digest
from clipadapter.classifier.evaluation import check_labels
from clipadapter.errors import DataError, InputError
from clipadapter.features import PER_EPOCH, FeatureSet
from clipadapter.heads import Head, TextFeatures
from clipadapter.persistence.format import FrozenModel, describe_first_error
from clipadapter.utils.blocks import MAX_BLOCKS, as_blocks
from clipadapter.utils.files import RANDOM_END, path_without_links, remove_abandoned
from clipadapter.utils.prediction import EvaluationFeatures

TestKind = Literal["given", "shift", "new"]
Rows = Mapping[tuple[int, int], Sequence[int]]  # rows of a data set by (shots, seed)
UNDRAWN_ROWS = "rest"  # name of the test part that consists of the rows that were not drawn


@dataclass(frozen=True, eq=False)
class TestPart:
    """A test part: pictures that heads are measured on, marked for evaluation."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    features: FeatureSet
    # "shift": of another data set with classes of the shots, among which a head then predicts; "new": of other classes
    kind: TestKind = "given"
    text: TextFeatures | None = None  # of new classes

    def __post_init__(self) -> None:
        if not isinstance(self.features.X, EvaluationFeatures):
            object.__setattr__(self, "features", self.features.mark_for_evaluation())
        if (self.kind == "new") != (self.text is not None):
            raise InputError(
                f"a test part of kind {self.kind!r} must have {'its' if self.text is None else 'no'} own class text"
            )


@dataclass(frozen=True, eq=False)
class Bundle:
    """Features and class text of one comparison."""

    support: FeatureSet  # what the shots are drawn from
    text: TextFeatures  # of all its classes
    tests: Mapping[str, TestPart] = field(default_factory=dict)  # without one, the rows that were not drawn are it
    # (n,) the row of each in the data set, if only those have features that a draw takes; None: all have
    rows: NDArray[np.int64] | None = None
    draws: Rows | None = None  # of the data set, if they were made before; not stored
    unlabelled: NDArray[Any] | None = None  # features of pictures without labels, for heads that take them; not stored

    def __post_init__(self) -> None:
        missing = sorted(set(self.support.y) - set(self.text.labels))
        if missing:
            raise InputError(f"these labels have no class text: {', '.join(missing[:5])}")
        if self.rows is not None and (len(self.rows) != len(self.support) or not self.tests):
            raise InputError("rows must be as many as those of the support, and need separate test parts")
        sets = [("shots", self.support, self.text)]
        sets += [("test pictures", part.features, part.text or self.text) for part in self.tests.values()]
        for name, features, text in sets:
            check_labels(features.y, text.labels)
            width, expected = features.blocks[0].width, text.embeddings.shape[1]
            if width != expected:
                raise InputError(
                    f"features of the {name} have width {width} but class text has width {expected}: "
                    "were they made by the same encoder?"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the test parts; `UNDRAWN_ROWS` if there are none."""
        return tuple(self.tests) or (UNDRAWN_ROWS,)

    @cached_property
    def encoder(self) -> RunEncoder:
        """The encoder that made the features."""
        provenance = self.support.provenance
        return RunEncoder(
            name=str(provenance.get("encoder", "unknown")), fingerprint=str(provenance.get("fingerprint", ""))
        )

    @property
    def support_name(self) -> str:
        """The name of the data set that shots are drawn from."""
        return str(self.support.provenance.get("data", "unnamed"))

    @property
    def templates(self) -> list[str]:
        """The templates of the class text."""
        return [str(template) for template in self.support.provenance.get("templates", ())]

    def text_digest(self, name: str, with_prompts: bool = True) -> str:
        """Hash of the class text used on a test part; only heads with `reads_prompts` read single prompts."""
        parts: list[Any] = []
        for text in (self.text, self.tests[name].text if name in self.tests else None):
            if text is not None:
                parts += [text.labels, text.embeddings.tobytes(), [repr(text.logit_scale), repr(text.logit_bias)]]
                parts += [rows.tobytes() for rows in text.prompts or ()] if with_prompts else []
        return digest(*parts)

    def data(self, name: str, rows: Sequence[int]) -> RunData:
        """The part of a record about its data; the digest covers the drawn rows and the test part alone."""
        own = self.support_name
        if name not in self.tests:
            return RunData(support=own, test=own, protocol="rest", digest=self._digests[UNDRAWN_ROWS])
        part = self.tests[name]
        title = str(part.features.provenance.get("data", "unnamed"))
        return RunData(support=own, test=title, protocol=part.kind, digest=self.hash_data(rows, [name]))

    def hash_data(self, rows: Sequence[int], names: Sequence[str]) -> str:
        """Hash of the drawn shots and of some test parts, in this order."""
        key = tuple(rows), tuple(names)
        if key not in self._of_draws:
            data_hash = digest(*_bytes(self.shots(rows)), *(self._digests[name].encode() for name in names))
            self._of_draws[key] = data_hash  # stored, since every head is fitted to the same draws
        return self._of_draws[key]

    @cached_property
    def _of_draws(self) -> dict[tuple[tuple[int, ...], tuple[str, ...]], str]:
        return {}

    @cached_property
    def _digests(self) -> dict[str, str]:
        own = {} if self.tests else {UNDRAWN_ROWS: digest(*_bytes(self.support))}
        return {**own, **{name: digest(*_bytes(part.features)) for name, part in self.tests.items()}}

    def shots(self, rows: Sequence[int]) -> FeatureSet:
        """The features of drawn rows of the data set."""
        if self.rows is None:
            return self.support.take(rows)
        try:
            return self.support.take([self._position[row] for row in rows])
        except KeyError as error:
            raise InputError(f"row {error} of the data set was not drawn when these features were computed") from None

    @cached_property
    def _position(self) -> dict[int, int]:
        return {} if self.rows is None else {int(row): i for i, row in enumerate(self.rows)}

    def n_test(self, name: str, n_drawn: int) -> int:
        """Number of pictures of a test part."""
        return len(self.tests[name].features) if name in self.tests else len(self.support) - n_drawn

    def n_classes(self, name: str) -> int:
        """Number of classes that a head predicts among on a test part."""
        part = self.tests.get(name)
        if part is not None and part.kind == "shift":
            return len(set(part.features.class_names) & set(self.text.labels))
        return len((part.text if part is not None and part.text is not None else self.text).labels)

    def test(self, name: str, drawn: Sequence[int]) -> TestPart:
        """A test part; refuses a draw of every row, which leaves no test picture."""
        if name in self.tests:
            return self.tests[name]
        drawn_rows = set(drawn)
        if len(drawn_rows) == len(self.support):
            raise InputError(
                f"the shots are all {len(drawn_rows)} pictures, so that none is left to test on: take fewer shots, or "
                "a data set with a test part"
            )
        undrawn = self.support.take([row for row in range(len(self.support)) if row not in drawn_rows])
        check_labels(undrawn.y, self.text.labels)
        return TestPart(undrawn)


def count_epochs(head: Head, labels: Sequence[str], text_shape: tuple[int, int] | None = None) -> int:
    """Number of epochs of a head on shots with these labels, see `Head.planned_epochs`; 0 for a head without epochs."""
    return head.planned_epochs(torch.from_numpy(np.unique(labels, return_inverse=True)[1]), text_shape) or 0


def select_views(head: Head, shots: FeatureSet) -> FeatureSet:
    """The views that a head takes of features with one for each epoch: the plain one, and those of its epochs."""
    if shots.provenance.get("views") != PER_EPOCH:
        return shots
    count = 1 + count_epochs(head, shots.y, (len(shots.class_names), shots.blocks[0].width))
    if count > shots.X.shape[1]:
        raise InputError(
            f"these features have {shots.X.shape[1]} views of each picture, but {type(head).__name__} makes "
            f"{count - 1} epochs: run the suite from its pictures"
        )
    return replace(shots, X=shots.X[:, :count] if count > 1 else shots.X[:, 0])


def _bytes(features: FeatureSet) -> list[bytes | Sequence[str]]:
    # With a view for each epoch, heads use the same array in another way.
    kind = [PER_EPOCH.encode()] if features.provenance.get("views") == PER_EPOCH else []
    return [np.ascontiguousarray(features.X).tobytes(), features.y, *kind]


# ---- Its file ----

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
        raise DataError(f"{path}: {describe_first_error(error)}") from error
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
