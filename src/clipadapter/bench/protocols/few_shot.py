"""Few shots of each class, measured on the test part, or on the rows that were not drawn if there is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.fits import draw_each, run_fits
from clipadapter.bench.plan import Rows, draw_all_shots
from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import SEPARATE_PART_TEXT, Protocol
from clipadapter.bench.run import Run
from clipadapter.bench.sources import (
    Source,
    build_shard_bundle,
    extract_dataset,
    extract_drawn_shots,
    extract_training_views,
    open_feature_shards,
)
from clipadapter.bench.suite import Prompts, Suite
from clipadapter.classifier import FewShotClassifier
from clipadapter.data import draw_shots
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, TextFeatures


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
        """As `Protocol.check_sources`; of a data set without a test part the shots must leave pictures to test on."""
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
        """As `Protocol.load_features`; of shards with a test part only the drawn rows of the training part are read."""
        shards = open_feature_shards(spec)
        if shards is None:
            return super().load_features(suite, spec)
        return build_shard_bundle(suite, shards, only_drawn=True)

    def build(
        self, suite: Suite, sources: Sequence[Source], model: FewShotClassifier, prompts: Prompts
    ) -> tuple[Bundle, Rows | None]:
        """As `Protocol.build`."""
        (source,) = sources
        train, names = source.train, source.train.class_names
        if source.test is None:
            rows = draw_all_shots(suite, train.labels)
            support = extract_training_views(suite, model, train, names, rows.values())
            return Bundle(support, model.encode_classes(names)), None
        support, positions, drawn = extract_drawn_shots(suite, model, train, names)
        tests = {"test": TestPart(extract_dataset(model, source.test, names))}
        return Bundle(support, model.encode_classes(names), tests, positions), drawn


def few_shot(
    heads: Mapping[str, Head],
    support: FeatureSet,
    test: FeatureSet | None,
    text: TextFeatures,
    shots: Sequence[int],
    seeds: Sequence[int],
    *,
    records: str | Path | None = None,
    progress: bool = False,
) -> list[Run]:
    """Fit and measure every head on the same shots.

    For each number of shots and each seed, rows are drawn once. A clone of each head is fitted to them, and then
    measured. A head that has a parameter ``seed`` gets the seed of the draw. If a head fails, its record has the
    reason, and the others still run.

    Args:
        heads: by their name in tables; they stay unfitted.
        support: features that the shots are drawn from.
        test: the test part; None for the rows that were not drawn, which differ by draw.
        text: class text of all classes.
        shots: shots per class; a class with fewer rows gives all of them.
        seeds: of the draws.
        records: JSONL file. Its successful runs are not repeated, failed ones are made again. A new run is appended as
            soon as it is finished.
        progress: show a bar on stderr.

    Returns:
        A record for each number of shots, seed and head, in this order.

    Raises:
        InputError: if there is nothing to run, labels or widths do not match, or no row is left to test on.
        DataError: if the file of records is damaged.

    >>> from clipadapter.heads.zero_shot import ZeroShot
    >>> text = TextFeatures(["cat", "dog"], [[1, 0], [0, 1]])
    >>> features = FeatureSet([[1, 0], [2, 1], [0, 1], [1, 2]], ("cat", "cat", "dog", "dog"), ("cat", "dog"))
    >>> run, = few_shot({"zero-shot": ZeroShot()}, features, None, text, shots=[1], seeds=[1])
    >>> run.n_test, run.metrics.accuracy
    (2, 1.0)
    """
    bundle = Bundle(support, text, {} if test is None else {"test": TestPart(test)})
    draws = draw_each(lambda n, seed: draw_shots(support.y, n, seed), shots, seeds, heads)
    return run_fits(FewShot(), bundle, heads, draws, records=records, progress=progress)[0]
