"""Transfer across data sets: heads are measured on data sets with other classes than those of the shots."""

from __future__ import annotations

from collections.abc import Sequence

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.plan import Rows
from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import Protocol
from clipadapter.bench.sources import Source, dataset_features, drawn_features, require_test_dataset, with_prompts
from clipadapter.bench.suite import Prompts, Suite
from clipadapter.classifier import FewShotClassifier


@register_protocol("cross-dataset")
class CrossDataset(Protocol):
    """The first data set gives the shots, the others have other classes."""

    test_kinds = {
        "given": "given: the test part stands apart from what the shots are drawn from",
        "new": "new: other classes than those of the shots, known by their text alone",
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
        first_model = with_prompts(suite, model, prompts, first)
        support, positions, drawn = drawn_features(suite, first_model, first.train, names, rows)
        tests = {"test": TestPart(dataset_features(first_model, test, names))}
        for other in sources[1:]:
            dataset = other.train if other.test is None else other.test
            # The model that the first data set's prompts were given, so that its settings are those of the suite.
            other_model = with_prompts(suite, first_model, prompts, other)
            features = dataset_features(other_model, dataset, dataset.class_names)
            tests[other.spec] = TestPart(features, "new", other_model.encode_classes(dataset.class_names))
        return Bundle(support, first_model.encode_classes(names), tests, positions), drawn
