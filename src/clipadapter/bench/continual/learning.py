"""Streams: heads learn tasks one after the other, and all tasks are measured after each.

In MTIL (ZSCL, https://arxiv.org/abs/2303.06628) the task of a test picture is known. In X-TAIL (RAIL,
https://arxiv.org/abs/2406.18868) it is not, so a head predicts among the classes of all tasks. Both give the class text
of all tasks from the start.

A `heads.IncrementalHead` continues from its state and gets only the shots of the new task. Every other head is fitted
again to the shots of all tasks so far, which needs their features: "joint". `score` opens the test parts after each
fit; no head gets what was measured.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.continual.joining import join_features
from clipadapter.bench.fits import Draw, count_stored_numbers, fit_and_score, record_failure
from clipadapter.bench.run import ContinualResult, Metrics, Run, Seconds, Step, Task, describe_machine
from clipadapter.data import draw_shots
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, IncrementalHead, TextFeatures, create_head
from clipadapter.heads.estimator import clone

Mode = Literal["stream", "joint"]
HEAD_WITHOUT_SHOTS = "zero-shot"
"""It learns nothing, so it needs no stored features of shots."""


@dataclass(frozen=True, eq=False)
class StreamTask:
    """A task of `learn_task_stream`.

    Args:
        name: its name in tables.
        support: features that its shots are drawn from.
        test: features of its test pictures.
    """

    name: str
    support: FeatureSet
    test: FeatureSet


def learn_task_stream(
    heads: Mapping[str, Head],
    tasks: Sequence[StreamTask],
    text: TextFeatures,
    *,
    task_known: bool = False,
    joint: Collection[str] = (),
    shots: int | None = None,
    seeds: Sequence[int] = (1,),
    records: str | Path | None = None,
    progress: bool = False,
) -> list[Run]:
    """Let heads learn tasks one after the other, from features, and measure all tasks after each.

    Args:
        heads: by their name in tables; they stay unfitted. A head that has a parameter ``seed`` gets the seed.
        tasks: in the order in which they are learned. A class may be in several.
        text: of the classes of all tasks.
        task_known: heads predict among the classes of the picture's task; else among all classes.
        joint: names of incremental heads that are fitted again to all shots so far; other heads always are.
        shots: shots per class; None takes all rows.
        seeds: of the draws.
        records: JSONL file. Its successful runs are not repeated, failed ones are made again. A new run is appended as
            soon as it is finished.
        progress: show a bar on stderr.

    Returns:
        A record for each seed and head, in this order. ``run.continual.accuracy`` is the matrix (row t: after task t),
        ``run.continual.metrics`` has Transfer, Average, Last, forgetting and forward transfer. The record of a head
        that failed has the reason in ``run.error``, and no ``run.continual``.

    Raises:
        InputError: if there is nothing to run, two tasks have the same name, labels or widths do not match, or a head
            can't learn a stream.
        DataError: if the file of records is damaged.

    >>> from clipadapter.heads.zero_shot import ZeroShot
    >>> text = TextFeatures(["ant", "bee", "cat", "dog"], np.eye(4))
    >>> def pictures(*names):
    ...     return FeatureSet([text.embeddings[text.labels.index(name)] for name in names], names, text.labels)
    >>> tasks = [
    ...     StreamTask("insects", pictures("ant", "bee"), pictures("ant", "bee")),
    ...     StreamTask("pets", pictures("cat", "dog"), pictures("cat", "dog")),
    ... ]
    >>> run, = learn_task_stream({"zero-shot": ZeroShot()}, tasks, text)
    >>> run.continual.accuracy
    [[1.0, 1.0], [1.0, 1.0]]
    """
    from clipadapter.bench.fits import run_fits
    from clipadapter.bench.protocols.stream import StreamOfTasks

    if not heads or not tasks or not seeds:
        raise InputError("there is nothing to run: give at least one head, one task and one seed")
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise InputError(f"tasks must have different names, but are {', '.join(names)}")
    protocol = StreamOfTasks()
    protocol.task_known = task_known
    for name, head in heads.items():
        check_learner(name, type(head))
        protocol.modes[name] = choose_mode(name, head, "joint" if name in joint else None)
    tests = {task.name: TestPart(join_features([task.test], text.labels)) for task in tasks}
    bundle = Bundle(join_features([task.support for task in tasks], text.labels), text, tests)
    draws = [_draw_tasks(tasks, text, shots, seed) for seed in seeds]
    return run_fits(protocol, bundle, heads, draws, records=records, progress=progress)[0]


def _draw_tasks(tasks: Sequence[StreamTask], text: TextFeatures, shots: int | None, seed: int) -> Draw:
    """All drawn rows in the order of the tasks, and the tasks."""
    rows: list[int] = []
    planned_tasks, start = [], 0
    for task in tasks:
        task_rows = range(len(task.support)) if shots is None else draw_shots(task.support.y, shots, seed)
        rows += [start + row for row in task_rows]
        start += len(task.support)
        task_labels = {*task.support.y, *task.test.y}
        classes = [name for name in text.labels if name in task_labels]
        planned_tasks.append(Task(name=task.name, part=task.name, classes=classes, shots=len(task_rows)))
    most = max(1, *(n for task in tasks for n in task.support.counts.values()))
    return Draw(shots or most, seed, rows, tasks=planned_tasks)


def choose_mode(name: str, head: Head, requested: Mode | None) -> Mode:
    """How a head learns a stream: as requested, else incrementally if it can.

    A head may have a parameter ``stream``, which says whether it keeps the state for further tasks.

    Args:
        name: its name in messages.
        head: unfitted.
        requested: the mode that the suite names.

    Raises:
        InputError: if "stream" is requested and the head can't continue.
    """
    can_continue = isinstance(head, IncrementalHead) and head.get_params(deep=False).get("stream", True)
    if requested == "stream" and not can_continue:
        hint = (
            "set its parameter stream = true"
            if isinstance(head, IncrementalHead)
            else 'leave mode out, or say mode = "joint"'
        )
        raise InputError(f"{name} can't continue from what it learned: {hint}")
    return requested or ("stream" if can_continue else "joint")


def check_learner(name: str, cls: type[Head]) -> None:
    """Refuse a head that can't learn a stream.

    Raises:
        InputError: if it is transductive, or tunes the encoder.
    """
    if cls.transductive or cls.tunes_encoder:
        why = "is fitted to all test pictures together" if cls.transductive else "tunes the encoder"
        raise InputError(f"{name} {why}, which no stream of tasks allows: leave it out")


def task_part(bundle: Bundle, task: Task, task_known: bool) -> TestPart:
    """The test pictures of a task; if the task of a picture is known, heads predict among its classes."""
    part, classes = bundle.tests[task.part].features, set(task.classes)
    own = part.take([row for row, label in enumerate(part.y) if label in classes])
    return TestPart(replace(own, class_names=tuple(task.classes)), "shift") if task_known else TestPart(own)


def run_stream(bundle: Bundle, head: Head, run: Run) -> Run:
    """Learn the tasks of a planned run one after the other, and measure all of them after each.

    If a head fails, the record has the reason, and after how many tasks it failed.
    """
    plan = run.stream
    assert plan is not None
    steps: list[Step] = []
    predict_seconds = 0.0
    try:
        parts = [task_part(bundle, task, plan.task_known) for task in plan.tasks]
        shots = [bundle.shots(rows) for rows in plan.split_rows(run.rows)]
        zero_shot = _zero_shot(bundle, shots[0], parts)
        learner = clone(head)
        for t, task in enumerate(plan.tasks):
            if not task.shots:
                raise InputError(f"the task '{task.name}' has no picture to learn from")
            if plan.joint:
                measured = fit_and_score(head, _join(shots[: t + 1]), parts, bundle.text)
            else:
                fit = partial(_learn_next, learner, bundle.text, t == 0)
                measured = fit_and_score(learner, shots[t], parts, bundle.text, fit=fit)
            learner = measured.head
            predict_seconds += sum(score.seconds for score in measured.scores)
            keeps_features = plan.joint and run.method != HEAD_WITHOUT_SHOTS
            features = sum(own.X.size for own in shots[: t + 1]) if keeps_features else 0
            metrics = [Metrics.of_score(score) for score in measured.scores]
            steps.append(Step(seconds=measured.seconds, size=count_stored_numbers(learner) + features, metrics=metrics))
    except Exception as error:  # of any head, also of plug-ins: the other heads must still run
        return record_failure(run, error, f" (after {len(steps)} of {len(plan.tasks)} tasks)")
    last = steps[-1]
    return run.model_copy(
        update={
            "seconds": Seconds(fit=sum(step.seconds for step in steps), predict=predict_seconds),
            "metrics": Metrics(
                {name: float(np.mean([one[name] for one in last.metrics])) for name in last.metrics[0].root}
            ),
            "size": last.size,
            "machine": describe_machine(),
            "continual": ContinualResult(zero_shot=zero_shot, steps=steps),
        }
    )


def _join(shots: Sequence[FeatureSet]) -> FeatureSet:
    X = np.concatenate([own.X for own in shots])
    return replace(shots[0], X=X, y=tuple(label for own in shots for label in own.y))


def _learn_next(learner: Head, text: TextFeatures, is_first: bool, shots: FeatureSet) -> Head:
    """The same head, which also learned some shots."""
    if is_first:
        return learner.fit(shots.X, shots.y, text=text, blocks=shots.blocks)
    assert isinstance(learner, IncrementalHead)
    return learner.partial_fit(shots.X, shots.y, text=text)


def _zero_shot(bundle: Bundle, shots: FeatureSet, parts: Sequence[TestPart]) -> list[float] | None:
    """Zero-shot accuracy on each task; None if a class has no text."""
    if bundle.text.absent:
        return None
    scores = fit_and_score(create_head("zero-shot"), shots, parts, bundle.text).scores
    return [score.evaluation.metrics["accuracy"] for score in scores]
