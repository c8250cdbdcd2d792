"""Continual learning: the data sets, or parts of their classes, are tasks that are learned one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from clipadapter.bench.bundle import Bundle
from clipadapter.bench.continual.learning import check_learner, plan_stream, run_stream
from clipadapter.bench.continual.sources import build_joined_data_sets, plan_stream_fits, stream_name
from clipadapter.bench.plan import FitSpec
from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import BundleOfFits, Protocol, SuiteInputs, fit_inputs
from clipadapter.bench.run import Run
from clipadapter.bench.sources import Source
from clipadapter.bench.suite import Suite
from clipadapter.errors import InputError
from clipadapter.features import PER_EPOCH
from clipadapter.heads import Head


@register_protocol("stream")
class StreamOfTasks(Protocol):
    """The data sets, or parts of their classes, are tasks that are learned one after the other."""

    accepts_all_shots = True

    def check_suite(self, suite: Suite) -> None:
        """As `Protocol.check_suite`."""
        super().check_suite(suite)
        if suite.views == PER_EPOCH:
            raise ValueError('views = "per-epoch" does not work for a stream of tasks: give a number of views')

    def accepts_head(self, cls: type[Head]) -> bool:
        """As `Protocol.accepts_head`."""
        return not cls.transductive

    def check_head(self, name: str, cls: type[Head]) -> None:
        """As `Protocol.check_head`."""
        check_learner(name, cls)

    def check_sources(self, suite: Suite, sources: Sequence[Source | str]) -> None:
        """As `Protocol.check_sources`; stored features have one kind of prompts."""
        if all(isinstance(source, str) for source in sources) and len(suite.prompts) > 1:
            raise InputError(f"suite '{suite.name}' compares prompts: it needs pictures and an encoder, not features")

    def bundles(self, inputs: SuiteInputs) -> Iterator[BundleOfFits]:
        """As `Protocol.bundles`; all data sets make one stream."""
        suite, sources = inputs.suite, inputs.sources
        self.check_sources(suite, sources)
        has_pictures = any(not isinstance(source, str) for source in sources)
        for name, model in inputs.encoders.items() if has_pictures else [("", None)]:
            for prompts in suite.prompts:
                union = build_joined_data_sets(suite, sources, model, prompts)
                encoder = name or union.bundle.encoder.name
                plan = partial(plan_stream_fits, suite, union)
                yield BundleOfFits(union.bundle, plan, stream_name(sources), encoder, prompts)

    def plan_runs(self, spec: FitSpec, bundle: Bundle, head: Head) -> list[Run]:
        """As `Protocol.plan_runs`; a stream is one record."""
        assert spec.stream is not None
        return [plan_stream(bundle, fit_inputs(spec, head), spec.stream)]

    def perform(self, spec: FitSpec, bundle: Bundle, head: Head, runs: Sequence[Run]) -> list[Run]:
        """As `Protocol.perform`."""
        return [run_stream(bundle, head, runs[0])]
