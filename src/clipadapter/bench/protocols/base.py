"""The base of all protocols: few-shot fits, measured on every test part of a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.fits import Draw, attempt, finish_run, fit_head, plan_run, score_part
from clipadapter.bench.protocols import PROTOCOLS, Rules
from clipadapter.bench.run import Run
from clipadapter.bench.sources import (
    AnySource,
    DataSetSize,
    FeatureSource,
    Prompted,
    Source,
    apply_prompts,
    build_bundle,
    with_pictures,
)
from clipadapter.bench.suite import Prompts, Suite, Variant
from clipadapter.classifier import FewShotClassifier
from clipadapter.data import draw_shots
from clipadapter.errors import InputError
from clipadapter.heads import Head


class BundleOfDraws(NamedTuple):
    """Features, and the draws of a suite on them."""

    bundle: Bundle
    draws: Sequence[Draw]
    data: str  # the data set as the user named it
    encoder: str  # likewise
    prompts: Prompts  # how the class text was made


class Protocol(Rules):
    """How the data sets of a suite become fits and test parts. A protocol overrides what differs from few-shot."""

    def check_sources(self, suite: Suite, sources: Sequence[AnySource]) -> None:
        """Refuse data sets that the protocol can't use, before features are computed."""
        for source in (source for source in sources if isinstance(source, FeatureSource)):
            if not self.accepts_features or len(suite.prompts) > 1:
                raise InputError(
                    f"'{source.spec}' are features: suite '{suite.name}' needs pictures and an encoder, "
                    "for its prompts, text or classes"
                )
            source.check_views(suite)

    # ---- What it costs, from the sizes of the data sets that a bundle is built from ----

    def fits_of_draw(self, suite: Suite, sizes: Sequence[DataSetSize], variant: Variant, head: Head) -> list[float]:
        """For each fit of a head to one draw, to which part of the shots it is fitted."""
        # A transductive head is fitted again for each test part.
        n_parts = len(sizes) if self.combines_data_sets else self.test_parts or sizes[0].test_parts
        return [1.0] * (n_parts if head.transductive else 1)

    # ---- From data sets to shots ----

    def bundles(
        self, suite: Suite, sources: Sequence[AnySource], encoders: Mapping[str, FewShotClassifier]
    ) -> Iterator[BundleOfDraws]:
        """Compute the features of a suite by each encoder, and draw from them."""
        self.check_sources(suite, sources)
        for ready in (source for source in sources if isinstance(source, FeatureSource)):
            bundle = self.load(suite, ready)
            draws = self.draws(bundle, suite.shots, suite.seeds)
            yield BundleOfDraws(bundle, draws, ready.name, bundle.encoder.name, suite.prompts[0])
        pictures = with_pictures(sources)
        for group in [pictures] if self.combines_data_sets and pictures else [[source] for source in pictures]:
            for (name, model), prompts in product(encoders.items(), suite.prompts):
                bundle = self.build(suite, group, partial(apply_prompts, suite, model, prompts))
                draws = self.draws(bundle, suite.shots, suite.seeds)
                yield BundleOfDraws(bundle, draws, group[0].name, name, prompts)

    def load(self, suite: Suite, source: FeatureSource) -> Bundle:
        """The same from stored features."""
        return source.load(suite, only_drawn=True)

    def build(self, suite: Suite, sources: Sequence[Source], prompted: Prompted) -> Bundle:
        """The features of all test pictures and of those training pictures that a draw takes."""
        return build_bundle(suite, sources[0], prompted(sources[0]))

    def draws(self, bundle: Bundle, shots: Sequence[int], seeds: Sequence[int]) -> list[Draw]:
        """A draw for each number of shots and seed."""
        labels, drawn = bundle.support.y, bundle.draws
        return [
            Draw(n, seed, draw_shots(labels, n, seed) if drawn is None else drawn[n, seed], bundle.names)
            for n, seed in product(shots, seeds)
        ]

    # ---- From shots to records ----

    def plan(self, bundle: Bundle, label: str, head: Head, draw: Draw) -> list[Run]:
        """The records of a fit before it is made, one for each test part."""
        return [
            plan_run(bundle, label, head, draw, bundle.data(name, draw.rows), bundle.n_test(name, len(draw.rows)), name)
            for name in bundle.names
        ]

    def measure(self, bundle: Bundle, head: Head, runs: Sequence[Run]) -> list[Run]:
        """Fit a head and measure it: the planned records of one fit with their metrics, or the reason why it failed."""
        names = {bundle.data(name, runs[0].rows): name for name in bundle.names}
        shots = bundle.shots(runs[0].rows)
        pairs = [(run, bundle.test(names[run.data], run.rows)) for run in runs]

        def fit_and_score(group: Sequence[tuple[Run, TestPart]]) -> list[Run]:
            fitted, seconds = fit_head(head, shots, [part for _, part in group], bundle)

            def score(run: Run, part: TestPart) -> list[Run]:
                return [finish_run(run, fitted, seconds, score_part(fitted, part))]

            # On some parts a head may fail, such as one that knows no other classes than those of its shots.
            return [own for run, part in group for own in attempt([run], partial(score, run, part))]

        # A transductive head is fitted again for each test part. The records do not name the pictures without labels.
        groups = [[pair] for pair in pairs] if head.transductive else [pairs]
        return [own for group in groups for own in attempt([run for run, _ in group], partial(fit_and_score, group))]


def create_protocol(name: str, options: Mapping[str, int] | None = None) -> Protocol:
    """A protocol by name.

    Args:
        name: one of `list_protocols`.
        options: those of a suite.

    Raises:
        UnknownNameError: if there is no such protocol.
    """
    protocol = PROTOCOLS.create(name)
    assert isinstance(protocol, Protocol)
    protocol.options = {**protocol.options, **(options or {})}
    return protocol
