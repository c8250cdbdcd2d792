"""Measures heads on features that are there already: on test pictures, by cross-validation, or on a stream of tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.fits import run_fits
from clipadapter.bench.protocols import create_protocol
from clipadapter.bench.protocols.few_shot import FewShot
from clipadapter.bench.protocols.stream import StreamOfTasks
from clipadapter.bench.run import Run
from clipadapter.bench.streams import JoinedDataSets, choose_mode, draw_tasks, join_features
from clipadapter.bench.suite import StreamRules
from clipadapter.data import draw_shots
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, TextFeatures


def few_shot(
    heads: Mapping[str, Head],
    support: FeatureSet,
    test: FeatureSet | None,
    text: TextFeatures,
    shots: Sequence[int],
    seeds: Sequence[int],
    *,
    folds: int | None = None,
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
        folds: with a number of folds, at most as many as the smallest class has rows, the support is cut into
            stratified folds, in place of a test part. For each fold, shots are drawn from the other folds, each head
            is fitted to them, and predicts the fold. Metrics are over all rows.
        records: JSONL file. Its successful runs are not repeated, failed ones are made again. A new run is appended as
            soon as it is finished.
        progress: show a bar on stderr.

    Returns:
        A record for each number of shots, seed and head, in this order.

    Raises:
        InputError: if there is nothing to run, labels or widths do not match, no row is left to test on, or a class has
            a single row for the folds.
        DataError: if the file of records is damaged.

    >>> from clipadapter.heads.zero_shot import ZeroShot
    >>> text = TextFeatures(["cat", "dog"], [[1, 0], [0, 1]])
    >>> features = FeatureSet([[1, 0], [2, 1], [0, 1], [1, 2]], ("cat", "cat", "dog", "dog"), ("cat", "dog"))
    >>> run, = few_shot({"zero-shot": ZeroShot()}, features, None, text, shots=[1], seeds=[1])
    >>> run.n_test, run.metrics.accuracy
    (2, 1.0)
    >>> run, = few_shot({"zero-shot": ZeroShot()}, features, None, text, shots=[1], seeds=[1], folds=5)
    >>> run.data.test, run.n_test, run.metrics.accuracy
    ('2 folds', 4, 1.0)
    """
    if folds is not None and test is not None:
        raise InputError("give a test part or a number of folds, not both")
    protocol = FewShot() if folds is None else create_protocol("cross-validation", {"folds": folds})
    bundle = Bundle(support, text, {} if test is None else {"test": TestPart(test)})
    draws = protocol.draws(bundle, shots, seeds)
    return run_fits(protocol, bundle, heads, draws, records=records, progress=progress).runs


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
    """Let heads learn tasks one after the other, and measure all tasks after each.

    Args:
        heads: by their name in tables; they stay unfitted. A head that has a parameter ``seed`` gets the seed.
        tasks: in the order in which they are learned. A class may be in several.
        text: of the classes of all tasks.
        task_known: heads predict among the classes of the picture's task; else among all classes.
        joint: names of incremental heads that are fitted again to all shots so far; other heads always are.
        shots: shots per class; None takes all rows.
        seeds: of the draws.
        records: JSONL file; as for `few_shot`.
        progress: show a bar on stderr.

    Returns:
        A record for each seed and head, in this order. ``run.continual.accuracy`` is the matrix (row t: after task t),
        ``run.continual.metrics`` has Transfer, Average, Last, forgetting and forward transfer. The record of a head
        that failed has the reason in ``run.error``, and no ``run.continual``.

    Raises:
        InputError: if there is nothing to run, two tasks have the same name, labels or widths do not match, or a head
            can't learn a stream.
        DataError: if the file of records is damaged.

    >>> import numpy as np
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
    if not heads or not tasks or not seeds:
        raise InputError("there is nothing to run: give at least one head, one task and one seed")
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise InputError(f"tasks must have different names, but are {', '.join(names)}")
    protocol = StreamOfTasks(task_known)
    for name, head in heads.items():
        protocol.check_head(name, type(head))
        protocol.modes[name] = choose_mode(name, head, "joint" if name in joint else None)
    n = shots or max(1, *(count for task in tasks for count in task.support.counts.values()))
    classes, drawn, start = {}, {}, 0
    for task in tasks:
        size, labels = len(task.support), {*task.support.y, *task.test.y}
        classes[task.name] = tuple(name for name in text.labels if name in labels)
        draws = {seed: range(size) if shots is None else draw_shots(task.support.y, shots, seed) for seed in seeds}
        drawn[task.name] = {(n, seed): [start + row for row in rows] for seed, rows in draws.items()}
        start += size
    tests = {task.name: TestPart(join_features([task.test], text.labels)) for task in tasks}
    bundle = Bundle(join_features([task.support for task in tasks], text.labels), text, tests)
    joined, rules = JoinedDataSets(bundle, classes, drawn), StreamRules()
    planned = [draw_tasks(rules, joined, rules.orders[0], n, seed) for seed in seeds]
    return run_fits(protocol, bundle, heads, planned, records=records, progress=progress).runs
