"""Continual learning: the data sets, or parts of their classes, are tasks that are learned one after the other.

In MTIL (ZSCL, https://arxiv.org/abs/2303.06628) the task of a test picture is known. In X-TAIL (RAIL,
https://arxiv.org/abs/2406.18868) it is not, so a head predicts among the classes of all tasks. Both give the class text
of all tasks from the start.

A `heads.IncrementalHead` continues from its state and gets only the shots of the new task. Every other head is fitted
again to the shots of all tasks so far, which needs their features: "joint". All test parts are measured after each fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np

from clipadapter.bench.bundle import Bundle
from clipadapter.bench.fits import Draw, count_stored_numbers, fit_head, plan_run, record_failure, score_part
from clipadapter.bench.methods import HEAD_WITHOUT_SHOTS
from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import BundleOfDraws, Protocol
from clipadapter.bench.run import ContinualResult, Metrics, Run, RunData, Seconds, Step, TaskStream, describe_machine
from clipadapter.bench.sources import AnySource, DataSetSize, with_pictures
from clipadapter.bench.streams import Mode, choose_mode, draw_tasks, join_features, join_sources, task_part
from clipadapter.bench.suite import Suite, Variant, count_tasks
from clipadapter.classifier import FewShotClassifier
from clipadapter.heads import Head, create_head


@register_protocol("stream")
class StreamOfTasks(Protocol):
    """The data sets, or parts of their classes, are tasks that are learned one after the other."""

    accepts_features = True
    accepts_all_shots = True

    def __init__(self, task_known: bool = False) -> None:
        self.task_known = task_known
        self.modes: dict[str, Mode | None] = {}  # how a head learns, by its name in tables

    def why_not(self, cls: type[Head]) -> str:
        """A head must be fitted without test pictures, to features."""
        if cls.transductive:
            return "is fitted to all test pictures together, which no stream of tasks allows"
        return "tunes the encoder, which no stream of tasks allows" if cls.tunes_encoder else ""

    def fits_of_draw(self, suite: Suite, sizes: Sequence[DataSetSize], variant: Variant, head: Head) -> list[float]:
        """A fit for each task; joint fits grow with the number of tasks."""
        n = sum(count_tasks(size.classes, suite.stream.classes_per_task) for size in sizes)
        joint = choose_mode(variant.title, head, variant.mode) == "joint"
        return [(t + 1) / n if joint else 1 / n for t in range(n)]

    def bundles(
        self, suite: Suite, sources: Sequence[AnySource], encoders: Mapping[str, FewShotClassifier]
    ) -> Iterator[BundleOfDraws]:
        """All data sets make one stream for each number of shots, order and seed."""
        self.check_sources(suite, sources)
        self.task_known = suite.stream.task_known
        self.modes = {variant.title: variant.mode for variant in suite.all_variants()}
        models = encoders.items() if with_pictures(sources) else [("", None)]
        for (name, model), prompts in product(models, suite.prompts):
            union = join_sources(suite, sources, model, prompts)
            planned = product(suite.shots, suite.stream.orders, suite.seeds)
            draws = [draw_tasks(suite.stream, union, order, n, seed) for n, order, seed in planned]
            data = " + ".join(source.name for source in sources)
            yield BundleOfDraws(union.bundle, draws, data, name or union.bundle.encoder.name, prompts)

    def plan(self, bundle: Bundle, label: str, head: Head, draw: Draw) -> list[Run]:
        """A stream is one record."""
        joint = choose_mode(label, head, self.modes.get(label)) == "joint"
        stream = TaskStream(task_known=self.task_known, joint=joint, tasks=list(draw.tasks))
        parts = list(dict.fromkeys(task.part for task in draw.tasks))
        digest = bundle.hash_data(draw.rows, parts)
        data = RunData(support=bundle.support_name, test=" + ".join(parts), protocol="stream", digest=digest)
        n_test = sum(len(task_part(bundle, task).features) for task in draw.tasks)
        return [plan_run(bundle, label, head, draw, data, n_test, stream=stream)]

    def measure(self, bundle: Bundle, head: Head, runs: Sequence[Run]) -> list[Run]:
        """Learn the tasks one after the other, and measure all of them after each."""
        (run,), steps = runs, list[Step]()
        assert run.stream is not None
        try:
            return [_learn_tasks(bundle, head, run, run.stream, steps)]
        except Exception as error:  # of any head, also of plug-ins: the other heads must still run
            return [record_failure(run, error, f" (after {len(steps)} of {len(run.stream.tasks)} tasks)")]


def _learn_tasks(bundle: Bundle, head: Head, run: Run, stream: TaskStream, steps: list[Step]) -> Run:
    """The finished record; ``steps`` says how far a head came that failed."""
    parts = [task_part(bundle, task, stream.task_known) for task in stream.tasks]
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
