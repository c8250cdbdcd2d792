"""Continual learning: the data sets, or parts of their classes, are tasks that are learned one after the other.

In MTIL (ZSCL, https://arxiv.org/abs/2303.06628) the task of a test picture is known. In X-TAIL (RAIL,
https://arxiv.org/abs/2406.18868) it is not, so a head predicts among the classes of all tasks. Both give the class text
of all tasks from the start.

A `heads.IncrementalHead` continues from its state and gets only the shots of the new task. Every other head is fitted
again to the shots of all tasks so far, which needs their features: "joint". All test parts are measured after each fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Literal

import numpy as np

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.fits import Draw, count_stored_numbers, fit_head, plan_run, record_failure, score_part
from clipadapter.bench.methods import HEAD_WITHOUT_SHOTS
from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import BundleOfDraws, Protocol
from clipadapter.bench.run import (
    ContinualResult,
    Metrics,
    Run,
    RunData,
    Seconds,
    Step,
    Task,
    TaskStream,
    describe_machine,
)
from clipadapter.bench.sources import DataSetSize, FeatureSource, Source
from clipadapter.bench.streams import draw_tasks, join_features, join_sources
from clipadapter.bench.suite import Suite, Variant, count_tasks
from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import InputError
from clipadapter.features import PER_EPOCH
from clipadapter.heads import Head, IncrementalHead, create_head

Mode = Literal["stream", "joint"]


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

    def check_sources(self, suite: Suite, sources: Sequence[Source | FeatureSource]) -> None:
        """Stored features have one kind of prompts."""
        features = [source for source in sources if isinstance(source, FeatureSource)]
        if len(features) == len(sources) and len(suite.prompts) > 1:
            raise InputError(f"suite '{suite.name}' compares prompts: it needs pictures and an encoder, not features")
        for source in features:
            source.check_views(suite)

    def fits_of_draw(self, suite: Suite, sizes: Sequence[DataSetSize], variant: Variant, head: Head) -> list[float]:
        """A fit for each task; joint fits grow with the number of tasks."""
        n = sum(count_tasks(size.classes, suite.stream.classes_per_task) for size in sizes)
        joint = choose_mode(variant.title, head, variant.mode) == "joint"
        return [(t + 1) / n if joint else 1 / n for t in range(n)]

    def bundles(
        self, suite: Suite, sources: Sequence[Source | FeatureSource], encoders: Mapping[str, FewShotClassifier]
    ) -> Iterator[BundleOfDraws]:
        """All data sets make one stream for each number of shots, order and seed."""
        self.check_sources(suite, sources)
        self.task_known = suite.stream.task_known
        self.modes = {variant.title: variant.mode for variant in suite.all_variants()}
        has_pictures = any(isinstance(source, Source) for source in sources)
        for name, model in encoders.items() if has_pictures else [("", None)]:
            for prompts in suite.prompts:
                union = join_sources(suite, sources, model, prompts)
                planned = product(suite.shots, suite.stream.orders, suite.seeds)
                draws = [draw_tasks(suite.stream, union, order, n, seed) for n, order, seed in planned]
                encoder = name or union.bundle.encoder.name
                data = " + ".join(source.name for source in sources)
                yield BundleOfDraws(union.bundle, draws, data, encoder, prompts)

    def plan(self, bundle: Bundle, label: str, head: Head, draw: Draw) -> list[Run]:
        """A stream is one record."""
        joint = choose_mode(label, head, self.modes.get(label)) == "joint"
        stream = TaskStream(task_known=self.task_known, joint=joint, tasks=list(draw.tasks))
        parts = list(dict.fromkeys(task.part for task in draw.tasks))
        data = RunData(
            support=bundle.support_name,
            test=" + ".join(parts),
            protocol="stream",
            digest=bundle.hash_data(draw.rows, parts),
        )
        n_test = sum(len(_test_part(bundle, task, False).features) for task in draw.tasks)
        return [plan_run(bundle, label, head, draw, data, parts[0], len(bundle.text.labels), n_test, stream)]

    def measure(self, bundle: Bundle, head: Head, runs: Sequence[Run]) -> list[Run]:
        """Learn the tasks one after the other, and measure all of them after each."""
        (run,), steps = runs, list[Step]()
        assert run.stream is not None
        try:
            return [_learn_tasks(bundle, head, run, run.stream, steps)]
        except Exception as error:  # of any head, also of plug-ins: the other heads must still run
            return [record_failure(run, error, f" (after {len(steps)} of {len(run.stream.tasks)} tasks)")]


def choose_mode(name: str, head: Head, requested: Mode | None) -> Mode:
    """How a head learns a stream: as requested, else incrementally if it can.

    A head may have a parameter ``stream``, which says whether it keeps the state for further tasks.
    """
    can_continue = isinstance(head, IncrementalHead) and head.get_params(deep=False).get("stream", True)
    if requested == "stream" and not can_continue:
        takes_part = isinstance(head, IncrementalHead)
        hint = "set its parameter stream = true" if takes_part else 'leave mode out, or say mode = "joint"'
        raise InputError(f"{name} can't continue from what it learned: {hint}")
    return requested or ("stream" if can_continue else "joint")


def _test_part(bundle: Bundle, task: Task, task_known: bool) -> TestPart:
    """The test pictures of a task; if the task of a picture is known, heads predict among its classes."""
    part, classes = bundle.tests[task.part].features, set(task.classes)
    own = part.take([row for row, label in enumerate(part.y) if label in classes])
    return TestPart(replace(own, class_names=tuple(task.classes)), "shift") if task_known else TestPart(own)


def _learn_tasks(bundle: Bundle, head: Head, run: Run, stream: TaskStream, steps: list[Step]) -> Run:
    """The finished record; ``steps`` says how far a head came that failed."""
    parts = [_test_part(bundle, task, stream.task_known) for task in stream.tasks]
    ends = np.cumsum([task.shots for task in stream.tasks])
    shots = [bundle.shots(rows.tolist()) for rows in np.split(np.array(run.rows, np.int64), ends[:-1])]
    zero_shot = None  # where a class has no text
    if not bundle.text.absent:
        fitted, _ = fit_head(create_head(HEAD_WITHOUT_SHOTS), shots[0], parts, bundle)
        zero_shot = [score_part(fitted, part).evaluation.metrics["accuracy"] for part in parts]
    predict_seconds, learner = 0.0, head
    for t in range(len(stream.tasks)):
        so_far = shots[: t + 1]
        if stream.joint:
            learner, seconds = fit_head(head, join_features(so_far, so_far[0].class_names), parts, bundle)
        else:
            learner, seconds = fit_head(learner, shots[t], parts, bundle, continues=t > 0)
        scores = [score_part(learner, part) for part in parts]
        predict_seconds += sum(score.seconds for score in scores)
        keeps_features = stream.joint and run.method != HEAD_WITHOUT_SHOTS
        size = count_stored_numbers(learner) + sum(own.X.size for own in so_far if keeps_features)
        steps.append(Step(seconds=seconds, size=size, metrics=[Metrics.of_score(score) for score in scores]))
    last = steps[-1].metrics
    return run.model_copy(
        update={
            "seconds": Seconds(fit=sum(step.seconds for step in steps), predict=predict_seconds),
            "metrics": Metrics({name: float(np.mean([one[name] for one in last])) for name in last[0].root}),
            "size": steps[-1].size,
            "machine": describe_machine(),
            "continual": ContinualResult(zero_shot=zero_shot, steps=steps),
        }
    )
