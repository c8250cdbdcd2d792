"""Base to new classes: shots of the first half of the classes, measured on both halves apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.plan import Rows
from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import Protocol
from clipadapter.bench.sources import Source, dataset_features, drawn_features, require_test_dataset, with_prompts
from clipadapter.bench.suite import Prompts, Suite
from clipadapter.classifier import FewShotClassifier
from clipadapter.features import FeatureSet


@register_protocol("base-to-new")
class BaseToNew(Protocol):
    """Shots of the first half of the classes (the larger, if they are odd), measured on both halves apart."""

    test_kinds = {
        "given": "given: the test part stands apart from what the shots are drawn from",
        "new": "new: other classes than those of the shots, known by their text alone",
    }

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
        test = require_test_dataset(suite, source)
        model = with_prompts(suite, model, prompts, source)
        names = source.train.class_names
        n_base = math.ceil(len(names) / 2)
        base, new = names[:n_base], names[n_base:]
        train = replace(source.train, samples=tuple(one for one in source.train.samples if one.label in set(base)))
        support, positions, drawn = drawn_features(suite, model, train, base, rows)
        features = dataset_features(model, test, names)
        tests = {
            "base": TestPart(_of_classes(features, base)),
            "new": TestPart(_of_classes(features, new), "new", model.encode_classes(new)),
        }
        return Bundle(support, model.encode_classes(base), tests, positions), drawn


def _of_classes(features: FeatureSet, names: Sequence[str]) -> FeatureSet:
    rows = [row for row, label in enumerate(features.y) if label in set(names)]
    return replace(features.take(rows), class_names=tuple(names))
