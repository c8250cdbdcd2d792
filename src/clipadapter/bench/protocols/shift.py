"""Distribution shift: other data sets show the classes of the shots in another way."""

from __future__ import annotations

from collections.abc import Sequence

from clipadapter.bench.bundle import TestPart
from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import SEPARATE_PART_TEXT
from clipadapter.bench.protocols.transfer import Transfer
from clipadapter.bench.sources import Source, extract_dataset
from clipadapter.bench.suite import Prompts, Suite
from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import DataError


@register_protocol("shift")
class Shift(Transfer):
    """The first data set gives the shots, the others show its classes in another way."""

    test_kinds = {
        "given": SEPARATE_PART_TEXT,
        "shift": "shift: pictures from elsewhere that show classes of the shots, among which alone a head chooses",
    }

    def check_sources(self, suite: Suite, sources: Sequence[Source | str]) -> None:
        """As `Transfer.check_sources`; the first data set needs all classes of the others."""
        super().check_sources(suite, sources)
        first, *others = [source for source in sources if isinstance(source, Source)]
        for source in others:
            unknown = sorted(set(source.any_test.class_names) - set(first.train.class_names))
            if unknown:
                raise DataError(f"'{source.spec}' has classes that '{first.spec}' has not: {', '.join(unknown[:5])}")

    def build_part(self, suite: Suite, source: Source, model: FewShotClassifier, prompts: Prompts) -> TestPart:
        """As `Transfer.build_part`; the class text is that of the first data set."""
        return TestPart(extract_dataset(model, source.any_test, source.any_test.class_names), "shift")
