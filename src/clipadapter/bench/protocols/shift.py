"""Distribution shift: other data sets show the classes of the shots in another way."""

from __future__ import annotations

from collections.abc import Sequence

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.plan import Rows
from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import Protocol
from clipadapter.bench.sources import Source, dataset_features, drawn_features, require_test_dataset, with_prompts
from clipadapter.bench.suite import Prompts, Suite
from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import DataError


@register_protocol("shift")
class Shift(Protocol):
    """The first data set gives the shots, the others show its classes in another way."""

    test_kinds = {
        "given": "given: the test part stands apart from what the shots are drawn from",
        "shift": "shift: pictures from elsewhere that show classes of the shots, among which alone a head chooses",
    }
    combines_data_sets = True

    def build(
        self,
        suite: Suite,
        sources: Sequence[Source],
        model: FewShotClassifier,
        prompts: Prompts,
        rows: Rows | None = None,
    ) -> tuple[Bundle, Rows | None]:
        """As `Protocol.build`."""
        first = sources[0]
        test = require_test_dataset(suite, first)
        names = first.train.class_names
        model = with_prompts(suite, model, prompts, first)
        support, positions, drawn = drawn_features(suite, model, first.train, names, rows)
        tests = {"test": TestPart(dataset_features(model, test, names))}
        for other in sources[1:]:
            dataset = other.train if other.test is None else other.test
            unknown = sorted(set(dataset.class_names) - set(names))
            if unknown:
                raise DataError(f"'{other.spec}' has classes that '{first.spec}' has not: {', '.join(unknown[:5])}")
            tests[other.spec] = TestPart(dataset_features(model, dataset, dataset.class_names), "shift")
        return Bundle(support, model.encode_classes(names), tests, positions), drawn
