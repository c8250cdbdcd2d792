"""Few shots of each class, measured on the test part, or on the rows that were not drawn if there is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from clipadapter.bench.bundle import Bundle
from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import SEPARATE_PART_TEXT, Protocol
from clipadapter.bench.sources import Rows, Source, build_bundle, build_shard_bundle, open_feature_shards
from clipadapter.bench.suite import Prompts, Suite
from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import InputError


@register_protocol("few-shot")
class FewShot(Protocol):
    """Shots and test part of the same classes."""

    test_kinds = {
        "given": SEPARATE_PART_TEXT,
        "rest": "rest: the test part is the rows that were not drawn, so each draw has another",
    }
    report_columns = "shots"
    accepts_features = True

    def check_sources(self, suite: Suite, sources: Sequence[Source | str]) -> None:
        """Of a data set without a test part the shots must leave pictures to test on."""
        super().check_sources(suite, sources)
        for source in sources:
            if isinstance(source, str) or source.test is not None:
                continue
            labels = source.train.labels
            most = max(Counter(labels).values(), default=0)
            if too_many := [shots for shots in suite.shots if shots >= most]:
                raise InputError(
                    f"'{source.spec}' has no test part, and {too_many[0]} shots take all {len(labels)} pictures, so "
                    f"that none is left to test on: give --shots with numbers below {most}, or a folder with train "
                    "and test"
                )

    def load_features(self, suite: Suite, spec: str) -> tuple[Bundle, Rows | None]:
        """Of shards with a test part only the drawn rows of the training part are read."""
        shards = open_feature_shards(spec)
        return (
            super().load_features(suite, spec) if shards is None else build_shard_bundle(suite, shards, only_drawn=True)
        )

    def build(
        self, suite: Suite, sources: Sequence[Source], model: FewShotClassifier, prompts: Prompts
    ) -> tuple[Bundle, Rows | None]:
        """The features of one data set."""
        return build_bundle(suite, sources[0], model)
