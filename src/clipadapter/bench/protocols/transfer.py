"""Transfer: heads are measured on other data sets than the one that gives the shots."""

from __future__ import annotations

from collections.abc import Sequence

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.plan import Rows
from clipadapter.bench.protocols.base import Protocol
from clipadapter.bench.sources import DataSetSize, Source, extract_dataset, extract_drawn_shots, require_test_part
from clipadapter.bench.suite import Prompts, Suite
from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import InputError


class Transfer(Protocol):
    """Shots from the first data set; a test part from its test pictures, and one from each of the other data sets."""

    combines_data_sets = True

    def check_sources(self, suite: Suite, sources: Sequence[Source | str]) -> None:
        """As `Protocol.check_sources`; the first data set needs a test part, and there must be another one."""
        super().check_sources(suite, sources)
        if len(sources) < 2:
            raise InputError(
                f"protocol '{suite.protocol}' measures heads on other data sets than that of the shots, but there is "
                "only one: give --data once more"
            )
        for first in (source for source in sources[:1] if isinstance(source, Source)):
            require_test_part(suite, first)

    def fits_per_draw(self, sizes: Sequence[DataSetSize], transductive: bool) -> int:
        """As `Protocol.fits_per_draw`; each data set has a test part."""
        return len(sizes) if transductive else 1

    def build(
        self, suite: Suite, sources: Sequence[Source], model: FewShotClassifier, prompts: Prompts
    ) -> tuple[Bundle, Rows | None]:
        """As `Protocol.build`."""
        first, *others = sources
        test, names = require_test_part(suite, first), first.train.class_names
        support, positions, drawn = extract_drawn_shots(suite, model, first.train, names)
        tests = {"test": TestPart(extract_dataset(model, test, names))}
        for other in others:
            tests[other.spec] = self.build_part(suite, other, model, prompts)
        return Bundle(support, model.encode_classes(names), tests, positions), drawn

    def build_part(self, suite: Suite, source: Source, model: FewShotClassifier, prompts: Prompts) -> TestPart:
        """The test part of a data set that gives no shots; arguments as for `build`."""
        raise NotImplementedError
