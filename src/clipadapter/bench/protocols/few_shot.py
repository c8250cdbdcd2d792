"""Few shots of each class, measured on the test part, or on the rows that were not drawn if there is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import Protocol
from clipadapter.bench.sources import AnySource, FeatureSource
from clipadapter.bench.suite import Suite
from clipadapter.errors import InputError


@register_protocol("few-shot")
class FewShot(Protocol):
    """Shots and test part of the same classes."""

    report_columns = "shots"
    accepts_features = True

    def check_sources(self, suite: Suite, sources: Sequence[AnySource]) -> None:
        """Of a data set without a test part the shots must leave pictures to test on."""
        super().check_sources(suite, sources)
        for source in sources:
            if isinstance(source, FeatureSource) or source.test is not None:
                continue
            labels = source.train.labels
            most = max(Counter(labels).values(), default=0)
            if too_many := [shots for shots in suite.shots if shots >= most]:
                raise InputError(
                    f"'{source.spec}' has no test part, and {too_many[0]} shots take all {len(labels)} pictures, so "
                    f"that none is left to test on: give --shots with numbers below {most}, or a folder with train "
                    "and test"
                )
