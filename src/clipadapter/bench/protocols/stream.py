"""Continual learning: the data sets, or parts of their classes, are tasks that are learned one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from clipadapter.bench.bundle import Bundle
from clipadapter.bench.continual.joining import JoinedDataSets
from clipadapter.bench.continual.learning import Mode, check_learner, choose_mode, run_stream, task_part
from clipadapter.bench.continual.sources import build_joined_data_sets, plan_tasks, stream_name
from clipadapter.bench.fits import Draw, Features, plan_run
from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import BundleOfDraws, Protocol
from clipadapter.bench.run import Run, RunData, TaskStream
from clipadapter.bench.sources import Source
from clipadapter.bench.suite import Suite
from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import InputError
from clipadapter.features import PER_EPOCH
from clipadapter.heads import Head


@register_protocol("stream")
class StreamOfTasks(Protocol):
    """The data sets, or parts of their classes, are tasks that are learned one after the other."""

    accepts_all_shots = True

    def __init__(self) -> None:
        self.task_known = False
        self.modes: dict[str, Mode | None] = {}
        """How a head learns, by its name in tables."""

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

    def bundles(
        self, suite: Suite, sources: Sequence[Source | str], encoders: Mapping[str, FewShotClassifier]
    ) -> Iterator[BundleOfDraws]:
        """As `Protocol.bundles`; all data sets make one stream."""
        self.check_sources(suite, sources)
        self.task_known = suite.stream.task_known
        self.modes = {variant.title: variant.mode for variant in suite.all_variants()}
        has_pictures = any(not isinstance(source, str) for source in sources)
        for name, model in encoders.items() if has_pictures else [("", None)]:
            for prompts in suite.prompts:
                union = build_joined_data_sets(suite, sources, model, prompts)
                encoder, draws = name or union.bundle.encoder.name, self.draw_streams(suite, union)
                yield BundleOfDraws(union.bundle, draws, stream_name(sources), encoder, prompts)

    def draw_streams(self, suite: Suite, union: JoinedDataSets) -> list[Draw]:
        """The draws of a suite: of each number of shots, order and seed."""
        draws = []
        for n, order, seed in product(suite.shots, suite.stream.orders, suite.seeds):
            rows, tasks = plan_tasks(suite, union, order, n, seed)
            draws.append(Draw(n, seed, rows, [suite.stream.title(order)], tasks))
        return draws

    def plan(self, bundle: Bundle, label: str, head: Head, draw: Draw) -> list[Run]:
        """As `Protocol.plan`; a stream is one record."""
        joint = choose_mode(label, head, self.modes.get(label)) == "joint"
        stream = TaskStream(task_known=self.task_known, joint=joint, tasks=list(draw.tasks))
        parts = list(dict.fromkeys(task.part for task in draw.tasks))
        digest = bundle.hash_data(draw.rows, parts)
        data = RunData(support=bundle.support_name, test=" + ".join(parts), protocol="stream", digest=digest)
        n_test = sum(len(task_part(bundle, task, False).features) for task in draw.tasks)
        return [
            plan_run(
                bundle,
                label,
                head,
                draw,
                data=data,
                text_of=parts[0],
                n_classes=len(bundle.text.labels),
                n_test=n_test,
                stream=stream,
            )
        ]

    def measure(self, bundle: Bundle, head: Head, runs: Sequence[Run], unlabelled: Features | None = None) -> list[Run]:
        """As `Protocol.measure`."""
        return [run_stream(bundle, head, runs[0])]
