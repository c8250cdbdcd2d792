"""Heads learn tasks one after the other, and all tasks are measured after each.

In MTIL (ZSCL, https://arxiv.org/abs/2303.06628) the task of a test picture is known. In X-TAIL (RAIL,
https://arxiv.org/abs/2406.18868) it is not, so a head predicts among the classes of all tasks. Both give the class text
of all tasks from the start.

A `heads.IncrementalHead` continues from its state and gets only the shots of the new task. Every other head is fitted
again to the shots of all tasks so far, which needs their features: "joint". All test parts are measured after each fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.fits import count_stored_numbers, fit_and_score
from clipadapter.bench.methods import HEAD_WITHOUT_SHOTS
from clipadapter.bench.run import ContinualResult, Metrics, Run, Seconds, Step, Task, TaskStream, describe_machine
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, IncrementalHead, create_head

Mode = Literal["stream", "joint"]


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


def task_part(bundle: Bundle, task: Task, task_known: bool) -> TestPart:
    """The test pictures of a task; if the task of a picture is known, heads predict among its classes."""
    part, classes = bundle.tests[task.part].features, set(task.classes)
    own = part.take([row for row, label in enumerate(part.y) if label in classes])
    return TestPart(replace(own, class_names=tuple(task.classes)), "shift") if task_known else TestPart(own)


def learn_tasks(bundle: Bundle, head: Head, run: Run, stream: TaskStream, steps: list[Step]) -> Run:
    """The finished record; ``steps`` says how far a head came that failed."""
    parts = [task_part(bundle, task, stream.task_known) for task in stream.tasks]
    shots = [bundle.shots(rows) for rows in stream.split_rows(run.rows)]
    zero_shot = None  # where a class has no text
    if not bundle.text.absent:
        scores = fit_and_score(create_head(HEAD_WITHOUT_SHOTS), shots[0], parts, bundle.text).scores
        zero_shot = [score.evaluation.metrics["accuracy"] for score in scores]
    predict_seconds, learner = 0.0, head
    for t, task in enumerate(stream.tasks):
        if not task.shots:
            raise InputError(f"the task '{task.name}' has no picture to learn from")
        so_far = shots[: t + 1]
        if stream.joint:
            measured = fit_and_score(head, _concatenate(so_far), parts, bundle.text)
        else:
            measured = fit_and_score(learner, shots[t], parts, bundle.text, continues=t > 0)
        learner = measured.head
        predict_seconds += sum(score.seconds for score in measured.scores)
        keeps_features = stream.joint and run.method != HEAD_WITHOUT_SHOTS
        size = count_stored_numbers(learner) + sum(own.X.size for own in so_far if keeps_features)
        metrics = [Metrics.of_score(score) for score in measured.scores]
        steps.append(Step(seconds=measured.seconds, size=size, metrics=metrics))
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


def _concatenate(shots: Sequence[FeatureSet]) -> FeatureSet:
    X = np.concatenate([own.X for own in shots])
    return replace(shots[0], X=X, y=tuple(label for own in shots for label in own.y))
