"""Few shots of each class, measured on the test part, or on the rows that were not drawn if there is none."""

from __future__ import annotations

from collections.abc import Sequence

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.plan import Rows, draws_of
from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import Protocol
from clipadapter.bench.sources import Source, dataset_features, drawn_features, training_features, with_prompts
from clipadapter.bench.suite import Prompts, Suite
from clipadapter.classifier import FewShotClassifier


@register_protocol("few-shot")
class FewShot(Protocol):
    """Shots and test part of the same classes."""

    test_kinds = {
        "given": "given: the test part stands apart from what the shots are drawn from",
        "rest": "rest: the test part is the rows that were not drawn, so each draw has another",
    }
    report_columns = "shots"
    accepts_features = True

    def build(
        self,
        suite: Suite,
        sources: Sequence[Source],
        model: FewShotClassifier,
        prompts: Prompts,
        rows: Rows | None = None,
    ) -> tuple[Bundle, Rows | None]:
        """As `Protocol.build`."""
        (source,) = sources
        names = source.train.class_names
        model = with_prompts(suite, model, prompts, source)
        if source.test is None:
            draws = draws_of(suite, source.train.labels) if rows is None else rows
            support = training_features(suite, model, source.train, names, draws.values())
            return Bundle(support, model.encode_classes(names)), rows
        support, positions, drawn = drawn_features(suite, model, source.train, names, rows)
        tests = {"test": TestPart(dataset_features(model, source.test, names))}
        return Bundle(support, model.encode_classes(names), tests, positions), drawn
