"""Continual learning: the data sets, or parts of their classes, are tasks that are learned one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from clipadapter.bench.bundle import Bundle
from clipadapter.bench.continual.joining import build_joined_data_sets, plan_tasks, stream_name
from clipadapter.bench.continual.learning import Mode, choose_mode, learn_tasks, task_part
from clipadapter.bench.continual.orders import count_tasks
from clipadapter.bench.fits import Draw, Features, plan_run, record_failure
from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import BundleOfDraws, Protocol
from clipadapter.bench.run import Run, RunData, Step, TaskStream
from clipadapter.bench.sources import DataSetSize, Source
from clipadapter.bench.suite import Suite, Variant
from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import InputError
from clipadapter.features import PER_EPOCH
from clipadapter.heads import Head


@register_protocol("stream")
class StreamOfTasks(Protocol):
    """The data sets, or parts of their classes, are tasks that are learned one after the other."""

    accepts_all_shots = True

    def __init__(self, task_known: bool = False) -> None:
        self.task_known = task_known
        self.modes: dict[str, Mode | None] = {}
        """How a head learns, by its name in tables."""

    def check_suite(self, suite: Suite) -> None:
        """A stream has no views for each epoch."""
        super().check_suite(suite)
        if suite.views == PER_EPOCH:
            raise ValueError('views = "per-epoch" does not work for a stream of tasks: give a number of views')

    def why_not(self, cls: type[Head]) -> str:
        """A head must be fitted without test pictures, to features."""
        if cls.transductive:
            return "is fitted to all test pictures together, which no stream of tasks allows"
        return "tunes the encoder, which no stream of tasks allows" if cls.tunes_encoder else ""

    def check_sources(self, suite: Suite, sources: Sequence[Source | str]) -> None:
        """Stored features have one kind of prompts."""
        if all(isinstance(source, str) for source in sources) and len(suite.prompts) > 1:
            raise InputError(f"suite '{suite.name}' compares prompts: it needs pictures and an encoder, not features")

    def fits_of_draw(self, suite: Suite, sizes: Sequence[DataSetSize], variant: Variant, head: Head) -> list[float]:
        """A fit for each task; joint fits grow with the number of tasks."""
        n = sum(count_tasks(size.classes, suite.stream.classes_per_task) for size in sizes)
        joint = choose_mode(variant.title, head, variant.mode) == "joint"
        return [(t + 1) / n if joint else 1 / n for t in range(n)]

    def bundles(
        self, suite: Suite, sources: Sequence[Source | str], encoders: Mapping[str, FewShotClassifier]
    ) -> Iterator[BundleOfDraws]:
        """All data sets make one stream for each number of shots, order and seed."""
        self.check_sources(suite, sources)
        self.task_known = suite.stream.task_known
        self.modes = {variant.title: variant.mode for variant in suite.all_variants()}
        has_pictures = any(not isinstance(source, str) for source in sources)
        for name, model in encoders.items() if has_pictures else [("", None)]:
            for prompts in suite.prompts:
                union, draws = build_joined_data_sets(suite, sources, model, prompts), []
                for n, order, seed in product(suite.shots, suite.stream.orders, suite.seeds):
                    rows, tasks = plan_tasks(suite, union, order, n, seed)
                    draws.append(Draw(n, seed, rows, [suite.stream.title(order)], tasks))
                encoder = name or union.bundle.encoder.name
                yield BundleOfDraws(union.bundle, draws, stream_name(sources), encoder, prompts)

    def plan(self, bundle: Bundle, label: str, head: Head, draw: Draw) -> list[Run]:
        """A stream is one record."""
        joint = choose_mode(label, head, self.modes.get(label)) == "joint"
        stream = TaskStream(task_known=self.task_known, joint=joint, tasks=list(draw.tasks))
        parts = list(dict.fromkeys(task.part for task in draw.tasks))
        digest, n_classes = bundle.hash_data(draw.rows, parts), len(bundle.text.labels)
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
                n_classes=n_classes,
                n_test=n_test,
                stream=stream,
            )
        ]

    def measure(self, bundle: Bundle, head: Head, runs: Sequence[Run], unlabelled: Features | None = None) -> list[Run]:
        """Learn the tasks one after the other, and measure all of them after each."""
        (run,), steps = runs, list[Step]()
        assert run.stream is not None
        try:
            return [learn_tasks(bundle, head, run, run.stream, steps)]
        except Exception as error:  # of any head, also of plug-ins: the other heads must still run
            return [record_failure(run, error, f" (after {len(steps)} of {len(run.stream.tasks)} tasks)")]
