"""Features of one comparison: those that shots are drawn from, those of the test parts, and class text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from clipadapter.bench.run import RunData, RunEncoder, digest
from clipadapter.classifier.evaluation import check_labels
from clipadapter.errors import InputError
from clipadapter.features import PER_EPOCH, FeatureSet
from clipadapter.heads import Head, TextFeatures
from clipadapter.utils.split_types import EvaluationFeatures

TestKind = Literal["given", "shift", "new"]
UNDRAWN_ROWS = "rest"
"""Name of the test part that consists of the rows that were not drawn."""


@dataclass(frozen=True, eq=False)
class TestPart:
    """A test part: pictures that heads are measured on, marked for evaluation.

    Its kind is ``"given"``; ``"shift"`` for pictures of another data set with some or all classes of the shots, among
    which a head then predicts; ``"new"`` for other classes, of which it has the text.
    """

    __test__ = False  # not a test case, whatever pytest thinks of the name

    features: FeatureSet
    kind: TestKind = "given"
    text: TextFeatures | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.features.X, EvaluationFeatures):
            object.__setattr__(self, "features", self.features.mark_for_evaluation())
        if (self.kind == "new") != (self.text is not None):
            raise InputError(
                f"a test part of kind {self.kind!r} must have {'its' if self.text is None else 'no'} own class text"
            )


@dataclass(frozen=True, eq=False)
class Bundle:
    """Features and class text of one comparison.

    A large data set needs features only of the rows that a draw takes: ``rows`` (n,) has the row of each in the data
    set.
    """

    support: FeatureSet  # what the shots are drawn from
    text: TextFeatures  # of all its classes
    tests: Mapping[str, TestPart] = field(default_factory=dict)  # without one, the rows that were not drawn are it
    rows: NDArray[np.int64] | None = None  # None: the support is the whole data set

    def __post_init__(self) -> None:
        missing = sorted(set(self.support.y) - set(self.text.labels))
        if missing:
            raise InputError(f"these labels have no class text: {', '.join(missing[:5])}")
        if self.rows is not None and (len(self.rows) != len(self.support) or not self.tests):
            raise InputError("rows must be as many as those of the support, and need separate test parts")
        for part in self.tests.values():
            check_labels(part.features.y, (part.text or self.text).labels)
        self._check_width("shots", self.support, self.text)
        for part in self.tests.values():
            self._check_width("test pictures", part.features, part.text or self.text)

    @staticmethod
    def _check_width(name: str, features: FeatureSet, text: TextFeatures) -> None:
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
        parts = [self.text, *([self.tests[name].text] if name in self.tests else [])]
        return digest(*(part for text in parts if text is not None for part in _text_parts(text, with_prompts)))

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
    """The views that a head takes: the plain one, and one for each of its epochs; it is refused if there are fewer.

    Features without a view for each epoch are returned as they are.
    """
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


def _text_parts(text: TextFeatures, with_prompts: bool) -> list[Any]:
    prompts = [rows.tobytes() for rows in text.prompts or ()] if with_prompts else []
    return [text.labels, text.embeddings.tobytes(), [repr(text.logit_scale), repr(text.logit_bias)], *prompts]
