"""Transfer: heads are measured on other classes or other data sets than those of the shots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import Protocol
from clipadapter.bench.sources import (
    AnySource,
    Prompted,
    Source,
    build_drawn_bundle,
    extract_dataset,
    require_test_part,
    with_pictures,
)
from clipadapter.bench.suite import Suite
from clipadapter.errors import DataError, InputError


@register_protocol("base-to-new")
class BaseToNew(Protocol):
    """Shots of the first half of the classes (the larger, if they are odd), measured on both halves apart."""

    has_harmonic_mean = True
    test_parts = 2

    def check_sources(self, suite: Suite, sources: Sequence[AnySource]) -> None:
        """Each data set needs a test part."""
        super().check_sources(suite, sources)
        for source in with_pictures(sources):
            require_test_part(suite, source)

    def build(self, suite: Suite, sources: Sequence[Source], prompted: Prompted) -> Bundle:
        """The features of one data set."""
        (source,), model = sources, prompted(sources[0])
        test, names = require_test_part(suite, source), source.train.class_names
        half = math.ceil(len(names) / 2)
        base, new = names[:half], names[half:]
        train = replace(source.train, samples=tuple(one for one in source.train.samples if one.label in base))
        features = extract_dataset(model, test, names)
        of_base, of_new = (
            replace(features.take([row for row, label in enumerate(features.y) if label in own]), class_names=own)
            for own in (base, new)
        )
        tests = {"base": TestPart(of_base), "new": TestPart(of_new, "new", model.encode_classes(new))}
        return build_drawn_bundle(suite, model, train, base, tests)


@register_protocol("cross-dataset")
class CrossDataset(Protocol):
    """The first data set gives the shots and a test part, the others have other classes."""

    combines_data_sets = True

    def check_sources(self, suite: Suite, sources: Sequence[AnySource]) -> None:
        """The first data set needs a test part, and there must be another one."""
        super().check_sources(suite, sources)
        if len(sources) < 2:
            raise InputError(
                f"protocol '{suite.protocol}' measures heads on other data sets than that of the shots, but there is "
                "only one: give --data once more"
            )
        require_test_part(suite, with_pictures(sources)[0])

    def build(self, suite: Suite, sources: Sequence[Source], prompted: Prompted) -> Bundle:
        """The shots of the first data set, and the test parts of all."""
        first, *others = sources
        test, names, model = require_test_part(suite, first), first.train.class_names, prompted(first)
        tests = {"test": TestPart(extract_dataset(model, test, names))}
        tests |= {other.spec: self.build_part(first, other, prompted) for other in others}
        return build_drawn_bundle(suite, model, first.train, names, tests)

    def build_part(self, first: Source, other: Source, prompted: Prompted) -> TestPart:
        """The test part of a data set that gives no shots; the class text is that of the data set itself."""
        own, names = prompted(other), other.any_test.class_names
        return TestPart(extract_dataset(own, other.any_test, names), "new", own.encode_classes(names))


@register_protocol("shift")
class Shift(CrossDataset):
    """The first data set gives the shots, the others show its classes in another way."""

    def check_sources(self, suite: Suite, sources: Sequence[AnySource]) -> None:
        """The first data set needs all classes of the others."""
        super().check_sources(suite, sources)
        first, *others = with_pictures(sources)
        for source in others:
            if unknown := sorted(set(source.any_test.class_names) - set(first.train.class_names)):
                raise DataError(f"'{source.spec}' has classes that '{first.spec}' has not: {', '.join(unknown[:5])}")

    def build_part(self, first: Source, other: Source, prompted: Prompted) -> TestPart:
        """The class text is that of the first data set."""
        return TestPart(extract_dataset(prompted(first), other.any_test, other.any_test.class_names), "shift")
