"""Fits of heads to drawn shots: planned as records, made, and measured. `schedule` makes those without a record.

All heads get the same shots, which are drawn as in the papers (``data.draw_shots``). A head sees no other labelled
picture, and the test part is opened only after the fit.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipadapter.bench.bundle import Bundle, TestPart, select_views
from clipadapter.bench.methods import method_version, package_digest
from clipadapter.bench.plan import Entry
from clipadapter.bench.run import (
    Flags,
    Metrics,
    Run,
    RunData,
    Seconds,
    Task,
    TaskStream,
    describe_machine,
    library_versions,
    pack_correct,
)
from clipadapter.bench.suite import ALL
from clipadapter.classifier.evaluation import Score, score
from clipadapter.data import draw_shots
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, IncrementalHead
from clipadapter.heads.estimator import clone
from clipadapter.heads.registry import registered_name
from clipadapter.metrics import evaluate


class Draw(NamedTuple):
    """Drawn shots."""

    shots: int  # requested per class
    seed: int
    rows: Sequence[int]  # of the support; of a stream in the order of its tasks
    tests: Sequence[str] = ()  # what the heads are measured on, in tables; there is a record for each
    tasks: Sequence[Task] = ()  # of a stream


@dataclass(frozen=True, eq=False)
class Fit:
    """A head to be fitted to a draw, and its planned records. It is what a worker process gets."""

    head: Head  # unfitted, with the seed of the draw
    runs: Sequence[Run]
    tests: Sequence[str]  # names of what its runs are measured on, in tables
    folder: Path = Path()  # of the features, for a worker
    entries: Sequence[Entry] = ()  # of the plan of a suite, one for each record

    @property
    def keys(self) -> list[str]:
        """Of its records."""
        return [run.key for run in self.runs]


# ---- From a fit to its figures ----


def fit_head(
    head: Head, shots: FeatureSet, parts: Sequence[TestPart], bundle: Bundle, continues: bool = False
) -> tuple[Head, float]:
    """Fit a clone of a head to shots; with ``continues`` it is fitted already and learns them too. Also the seconds."""
    shots, text = select_views(head, shots), bundle.text
    unlabelled = bundle.unlabelled if head.accepts_unlabelled else None
    # A transductive head is fitted to the pictures of the first part too, so it takes one; others see no part.
    if head.transductive:
        unlabelled = parts[0].features.plain
    start = time.perf_counter()
    if continues:
        assert isinstance(head, IncrementalHead)
        fitted: Head = head.partial_fit(shots.X, shots.y, text=text)
    else:
        fitted = clone(head).fit(shots.X, shots.y, text=text, unlabelled=unlabelled, blocks=shots.blocks)
    return fitted, time.perf_counter() - start


def score_part(head: Head, part: TestPart) -> Score:
    """Measure a fitted head on a test part. On a shifted part it predicts among the part's own classes."""
    among = part.features.class_names if part.kind == "shift" else None
    return score(head if part.text is None else head.for_classes(part.text), part.features, among=among)


# ---- Stratified folds: how many, which rows they have, and what a head scores over all of them ----

DEFAULT_FOLDS = 5
Split = tuple[list[int], list[int]]  # rows of the shots, and rows that a head fitted to them predicts


def count_folds(labels: Sequence[str], folds: int) -> int:
    """The number of folds: as requested, but at most the number of pictures of the smallest class.

    >>> count_folds(["cat"] * 3 + ["dog"] * 9, 5)
    3
    """
    if folds < 2:
        raise InputError(f"folds must be 2 or more, but are {folds}")
    counts = Counter(labels)
    single = sorted(name for name, n in counts.items() if n < 2)
    if single or not counts:
        raise InputError(
            f"cross-validation needs two pictures of each class, but has one of: {', '.join(single[:5])}. "
            "Give a test folder, or more pictures"
        )
    return min(folds, *counts.values())


def draw_folds(labels: Sequence[str], folds: int, seed: int, shots: int = ALL) -> list[Split]:
    """Cut pictures into stratified folds, and draw the shots of each fold from the other folds."""
    from sklearn.model_selection import StratifiedKFold  # late: to compare on a test part needs no scikit-learn

    cut = StratifiedKFold(count_folds(labels, folds), shuffle=True, random_state=seed)
    splits = []
    for others, fold in cut.split(np.zeros(len(labels)), list(labels)):
        drawn = draw_shots([labels[row] for row in others], shots, seed)
        splits.append((others[drawn].tolist(), fold.tolist()))
    return splits


def score_folds(head: Head, bundle: Bundle, splits: Sequence[Split]) -> tuple[Score, float, list[Head]]:
    """Cross-validate one head: the score over all pictures, mean seconds of a fit, and the fitted heads."""
    scores, heads, seconds = list[Score](), list[Head](), 0.0
    for shots, fold in splits:
        part = TestPart(bundle.support.take(fold))
        fitted, duration = fit_head(head, bundle.support.take(shots), [part], bundle)
        scores.append(score_part(fitted, part))
        heads.append(fitted)
        seconds += duration
    classes = [item.name for item in scores[0].evaluation.classes]
    labels = [classes[i] for score in scores for i in score.labels]
    log_probabilities = np.concatenate([score.evaluation.predictions.log_probabilities for score in scores])
    logits, predict_seconds = np.concatenate([score.logits for score in scores]), sum(score.seconds for score in scores)
    pooled = Score(evaluate(labels, log_probabilities, classes), logits, predict_seconds)
    return pooled, seconds / len(splits), heads


# ---- Records ----


def plan_run(
    bundle: Bundle,
    label: str,
    head: Head,
    draw: Draw,
    data: RunData,
    n_test: int,
    part: str = "",
    stream: TaskStream | None = None,
) -> Run:
    """The record of an unfitted head before its fit is made; ``part`` names a test part that may have own classes."""
    params = head.get_params(deep=False)
    plain = {key: v if v is None or isinstance(v, bool | int | float | str) else repr(v) for key, v in params.items()}
    return Run(
        head=label,
        method=registered_name(head),
        method_version=method_version(type(head)),
        params=plain,
        encoder=bundle.encoder,
        data=data,
        templates=bundle.templates,
        text=bundle.text_digest(part, head.reads_prompts),
        shots=draw.shots,
        seed=draw.seed,
        rows=list(draw.rows),
        flags=Flags(transductive=head.transductive),
        code=package_digest(),
        # Of Python without the patch number, which changes no logits: versions are part of the key.
        versions={**library_versions(), "python": ".".join(platform.python_version_tuple()[:2])},
        n_classes=bundle.n_classes(part),
        n_test=n_test,
        machine=describe_machine(),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        stream=stream,
    )


def finish_run(run: Run, head: Head, seconds: float, result: Score, **changes: Any) -> Run:
    """The record of a planned run whose head was fitted in some seconds and measured; ``changes`` are other fields."""
    attributes = {key: value for key, value in vars(head).items() if key.endswith("_") and key != "n_features_in_"}
    fields = {
        "seconds": Seconds(fit=seconds, predict=result.seconds),
        "metrics": Metrics.of_score(result),
        "correct": None if run.data.protocol == "rest" else pack_correct(result.evaluation.predictions.correct),
        "learned": {key: float(v) for key, v in attributes.items() if isinstance(v, int | float) and np.isfinite(v)},
        "size": count_stored_numbers(head),
        "machine": describe_machine(),
    }
    return run.model_copy(update={**fields, **changes})


def count_stored_numbers(head: Head) -> int:
    """Count the numbers in the state of a fitted head."""
    return sum(int(value.size) for value in head.state().values())


def attempt(runs: Sequence[Run], function: Callable[[], list[Run]]) -> list[Run]:
    """The records that a function makes of planned ones; if it fails, records with the reason."""
    try:
        return function()
    except Exception as error:  # of any head, also of plug-ins: the other heads must still run
        return [record_failure(run, error) for run in runs]


def record_failure(run: Run, error: BaseException, note: str = "") -> Run:
    """The record of a planned run that failed, with the reason."""
    return run.model_copy(update={"error": f"{type(error).__name__}: {error}{note}"})
