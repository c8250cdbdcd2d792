"""Transfer: heads are measured on other classes or other data sets than those of the shots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import NEW_CLASSES_TEXT, SEPARATE_PART_TEXT, Protocol
from clipadapter.bench.sources import (
    DataSetSize,
    FeatureSource,
    Rows,
    Source,
    apply_prompts,
    extract_dataset,
    extract_drawn_shots,
    require_test_part,
)
from clipadapter.bench.suite import Prompts, Suite
from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import DataError, InputError
from clipadapter.features import FeatureSet


@register_protocol("base-to-new")
class BaseToNew(Protocol):
    """Shots of the first half of the classes (the larger, if they are odd), measured on both halves apart."""

    test_kinds = {"given": SEPARATE_PART_TEXT, "new": NEW_CLASSES_TEXT}
    has_harmonic_mean = True

    def check_sources(self, suite: Suite, sources: Sequence[Source | FeatureSource]) -> None:
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


@register_protocol("cross-dataset")
class CrossDataset(Protocol):
    """The first data set gives the shots and a test part, the others have other classes."""

    test_kinds = {"given": SEPARATE_PART_TEXT, "new": NEW_CLASSES_TEXT}
    combines_data_sets = True

    def check_sources(self, suite: Suite, sources: Sequence[Source | FeatureSource]) -> None:
        """The first data set needs a test part, and there must be another one."""
        super().check_sources(suite, sources)
        if len(sources) < 2:
            raise InputError(
                f"protocol '{suite.protocol}' measures heads on other data sets than that of the shots, but there is "
                "only one: give --data once more"
            )
        for first in (source for source in sources[:1] if isinstance(source, Source)):
            require_test_part(suite, first)

    def count_test_parts(self, sizes: Sequence[DataSetSize]) -> int:
        """Each data set has one."""
        return len(sizes)

    def build(
        self, suite: Suite, sources: Sequence[Source], model: FewShotClassifier, prompts: Prompts
    ) -> tuple[Bundle, Rows | None]:
        """The shots of the first data set, and the test parts of all."""
        first, *others = sources
        test, names = require_test_part(suite, first), first.train.class_names
        support, positions, drawn = extract_drawn_shots(suite, model, first.train, names)
        tests = {"test": TestPart(extract_dataset(model, test, names))}
        for other in others:
            tests[other.spec] = self.build_part(suite, other, model, prompts)
        return Bundle(support, model.encode_classes(names), tests, positions), drawn

    def build_part(self, suite: Suite, source: Source, model: FewShotClassifier, prompts: Prompts) -> TestPart:
        """The test part of a data set that gives no shots; the class text is that of the data set itself."""
        own, names = apply_prompts(suite, model, prompts, source), source.any_test.class_names
        return TestPart(extract_dataset(own, source.any_test, names), "new", own.encode_classes(names))


@register_protocol("shift")
class Shift(CrossDataset):
    """The first data set gives the shots, the others show its classes in another way."""

    test_kinds = {
        "given": SEPARATE_PART_TEXT,
        "shift": "shift: pictures from elsewhere that show classes of the shots, among which alone a head chooses",
    }

    def check_sources(self, suite: Suite, sources: Sequence[Source | FeatureSource]) -> None:
        """The first data set needs all classes of the others."""
        super().check_sources(suite, sources)
        first, *others = [source for source in sources if isinstance(source, Source)]
        for source in others:
            unknown = sorted(set(source.any_test.class_names) - set(first.train.class_names))
            if unknown:
                raise DataError(f"'{source.spec}' has classes that '{first.spec}' has not: {', '.join(unknown[:5])}")

    def build_part(self, suite: Suite, source: Source, model: FewShotClassifier, prompts: Prompts) -> TestPart:
        """The class text is that of the first data set."""
        return TestPart(extract_dataset(model, source.any_test, source.any_test.class_names), "shift")
