"""Base to new classes: shots of the first half of the classes, measured on both halves apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import NEW_CLASSES_TEXT, SEPARATE_PART_TEXT, Protocol
from clipadapter.bench.sources import DataSetSize, Rows, Source, extract_dataset, extract_drawn_shots, require_test_part
from clipadapter.bench.suite import Prompts, Suite
from clipadapter.classifier import FewShotClassifier
from clipadapter.features import FeatureSet


@register_protocol("base-to-new")
class BaseToNew(Protocol):
    """Shots of the first half of the classes (the larger, if they are odd), measured on both halves apart."""

    test_kinds = {"given": SEPARATE_PART_TEXT, "new": NEW_CLASSES_TEXT}
    has_harmonic_mean = True

    def check_sources(self, suite: Suite, sources: Sequence[Source | str]) -> None:
        """Each data set needs a test part."""
        super().check_sources(suite, sources)
        for source in (source for source in sources if isinstance(source, Source)):
            require_test_part(suite, source)

    def count_test_parts(self, sizes: Sequence[DataSetSize]) -> int:
        """The two halves of the classes."""
        return 2

    def build(
        self, suite: Suite, sources: Sequence[Source], model: FewShotClassifier, prompts: Prompts
    ) -> tuple[Bundle, Rows | None]:
        """The features of one data set."""
        (source,) = sources
        test, names = require_test_part(suite, source), source.train.class_names
        half = math.ceil(len(names) / 2)
        base, new = names[:half], names[half:]
        of_base = tuple(sample for sample in source.train.samples if sample.label in set(base))
        support, positions, drawn = extract_drawn_shots(suite, model, replace(source.train, samples=of_base), base)
        features = extract_dataset(model, test, names)
        tests = {
            "base": TestPart(_of_classes(features, base)),
            "new": TestPart(_of_classes(features, new), "new", model.encode_classes(new)),
        }
        return Bundle(support, model.encode_classes(base), tests, positions), drawn


def _of_classes(features: FeatureSet, names: Sequence[str]) -> FeatureSet:
    rows = [row for row, label in enumerate(features.y) if label in set(names)]
    return replace(features.take(rows), class_names=tuple(names))
