"""Cross-validation: k stratified folds of the pictures of one data set that has no test part.

Every picture is predicted once, by a head that was fitted to shots of the other folds. Metrics are computed from all
these predictions together, as with scikit-learn's ``cross_val_predict``. So each picture counts the same, however the
folds are made. One draw of shots gives one record.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench.bundle import Bundle, TestPart, select_views
from clipadapter.bench.fitting import (
    FitInputs,
    common_fields,
    count_stored_numbers,
    record_failure,
    run_fits,
    select_unlabelled,
)
from clipadapter.bench.plan import FitSpec, Rows
from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import Protocol, ProtocolInputs, fit_inputs
from clipadapter.bench.run import Metrics, Run, RunData, Seconds, describe_machine, pack_correct
from clipadapter.bench.sources import DataSetSize, extract_training_views
from clipadapter.bench.suite import ALL, Suite
from clipadapter.classifier.evaluation import Score, score
from clipadapter.data import draw_shots
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, TextFeatures
from clipadapter.heads.estimator import clone
from clipadapter.metrics import evaluate

DEFAULT_FOLDS = 5
KIND = "folds"

Split = tuple[list[int], list[int]]
"""Rows of the shots, and rows that a head fitted to them predicts."""


@register_protocol("cross-validation")
class CrossValidation(Protocol):
    """Stratified folds of one data set: each picture is predicted by a head fitted to shots of the other folds."""

    test_kinds = {KIND: "folds: cross-validation; each picture is predicted by a head fitted to shots of other folds"}
    report_columns = "shots"
    accepts_features = True
    accepts_all_shots = True
    fits_depend_on_class_sizes = True
    options = {"folds": DEFAULT_FOLDS}

    def check_suite(self, suite: Suite) -> None:
        """As `Protocol.check_suite`."""
        super().check_suite(suite)
        if suite.options.get("folds", DEFAULT_FOLDS) < 2:
            raise ValueError("folds must be 2 or more")

    def used_size(self, size: DataSetSize) -> DataSetSize:
        """As `Protocol.used_size`; a separate test part is not used."""
        return replace(size, test=size.train, divided=False, test_parts=1)

    def fits_per_draw(self, suite: Suite, sizes: Sequence[DataSetSize], transductive: bool) -> int:
        """As `Protocol.fits_per_draw`; a fit for each fold, at most if the smallest class is unknown."""
        (size,) = sizes
        folds = suite.options.get("folds", DEFAULT_FOLDS)
        if size.smallest_class is None:
            return folds
        if size.smallest_class < 2:
            raise InputError(
                f"cross-validation needs two pictures of each class, but a class of '{size.spec}' has one. "
                "Use another protocol, or add pictures"
            )
        return min(folds, size.smallest_class)

    def from_features(self, bundle: Bundle) -> Bundle:
        """As `Protocol.from_features`: separate test parts are left out."""
        return Bundle(bundle.support, bundle.text)

    def build(self, inputs: ProtocolInputs) -> tuple[Bundle, Rows | None]:
        """As `Protocol.build`; of a data set with a test part, the training part is cut into folds."""
        (source,) = inputs.sources
        train, model = source.train, inputs.model_for(source)
        support = extract_training_views(inputs.suite, model, train, train.class_names, [range(len(train.samples))])
        return Bundle(support, model.encode_classes(train.class_names)), None

    def draws(self, suite: Suite, bundle: Bundle) -> Rows:
        """As `Protocol.draws`; the shots of all folds one after the other."""
        folds, labels = suite.options.get("folds", DEFAULT_FOLDS), bundle.support.y
        return {(n, seed): _draw_all_folds(labels, folds, n, seed) for n in suite.shots for seed in suite.seeds}

    def test_names(self, suite: Suite, bundle: Bundle) -> Sequence[str]:
        """As `Protocol.test_names`."""
        return [f"{count_folds(bundle.support.y, suite.options.get('folds', DEFAULT_FOLDS))} folds"]

    def plan_runs(self, spec: FitSpec, bundle: Bundle, head: Head) -> list[Run]:
        """As `Protocol.plan_runs`."""
        folds = spec.options.get("folds", DEFAULT_FOLDS)
        return plan_folds(bundle, fit_inputs(spec, head), folds)

    def perform(self, spec: FitSpec, bundle: Bundle, head: Head, runs: Sequence[Run]) -> list[Run]:
        """As `Protocol.perform`."""
        return run_folds(bundle, head, runs, spec.options.get("folds", DEFAULT_FOLDS))


def cross_validate(
    heads: Mapping[str, Head],
    support: FeatureSet,
    text: TextFeatures,
    shots: Sequence[int],
    seeds: Sequence[int],
    *,
    folds: int = DEFAULT_FOLDS,
    records: str | Path | None = None,
    progress: bool = False,
) -> list[Run]:
    """Fit and measure heads by stratified cross-validation, for pictures without a test part.

    For each seed the pictures are cut into folds. For each fold, shots are drawn from the other folds, each head is
    fitted to them, and predicts the fold.

    Args:
        heads: by their name in tables; they stay unfitted.
        support: all pictures.
        text: class text of all classes.
        shots: shots per class; a class with fewer pictures in the other folds gives all of them.
        seeds: of the folds and the draws.
        folds: number of folds; at most as many as the smallest class has pictures.
        records: JSONL file; as for `few_shot`.
        progress: show a bar on stderr.

    Returns:
        A record for each number of shots, seed and head, in this order, with metrics over all pictures.

    Raises:
        InputError: if there is nothing to run, a class has a single picture, or labels or widths do not match.
        DataError: if the file of records is damaged.

    >>> from clipadapter.heads.zero_shot import ZeroShot
    >>> text = TextFeatures(["cat", "dog"], [[1, 0], [0, 1]])
    >>> features = FeatureSet([[1, 0], [2, 1], [0, 1], [1, 2]], ("cat", "cat", "dog", "dog"), ("cat", "dog"))
    >>> run, = cross_validate({"zero-shot": ZeroShot()}, features, text, shots=[1], seeds=[1])
    >>> run.data.test, run.n_test, run.metrics.accuracy
    ('2 folds', 4, 1.0)
    """
    return run_fits(
        Bundle(support, text),
        heads,
        shots,
        seeds,
        lambda bundle, head, runs: run_folds(bundle, head, runs, folds),
        plan=lambda bundle, inputs: plan_folds(bundle, inputs, folds),
        draw=lambda labels, n, seed: _draw_all_folds(labels, folds, n, seed),
        records=records,
        progress=progress,
    )


def count_folds(labels: Sequence[str], folds: int) -> int:
    """The number of folds: as requested, but at most the number of pictures of the smallest class.

    Raises:
        InputError: if a class has a single picture, or fewer than two folds are requested.

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
    """Cut pictures into stratified folds, and draw the shots of each fold from the other folds.

    Args:
        labels: of all pictures.
        folds: number of folds, see `count_folds`.
        seed: of the folds and the draws.
        shots: shots per class.

    Returns:
        (rows of the shots, rows of the fold) for each fold.
    """
    from sklearn.model_selection import StratifiedKFold  # late: to compare on a test part needs no scikit-learn

    cut = StratifiedKFold(count_folds(labels, folds), shuffle=True, random_state=seed)
    splits = []
    for others, fold in cut.split(np.zeros(len(labels)), list(labels)):
        drawn = draw_shots([labels[row] for row in others], shots, seed)
        splits.append((others[drawn].tolist(), fold.tolist()))
    return splits


def score_folds(
    head: Head, bundle: Bundle, splits: Sequence[Split], unlabelled: NDArray[Any] | None = None
) -> tuple[Score, float, int]:
    """Cross-validate one head.

    Args:
        head: unfitted.
        bundle: all pictures and their class text.
        splits: as from `draw_folds`.
        unlabelled: (u, d) features of pictures without labels, for a head that ``accepts_unlabelled``.

    Returns:
        The score over all pictures, seconds of all fits, and the numbers in the state of the largest fitted head.
    """
    scores, seconds, size = [], 0.0, 0
    for shots, fold in splits:
        train_features = select_views(head, bundle.support.take(shots))
        test = TestPart(bundle.support.take(fold)).features
        start = time.perf_counter()
        fitted = clone(head).fit(
            train_features.X,
            train_features.y,
            text=bundle.text,
            unlabelled=select_unlabelled(head, test, unlabelled),
            blocks=train_features.blocks,
        )
        seconds += time.perf_counter() - start
        size = max(size, count_stored_numbers(fitted))
        scores.append(score(fitted, test))
    return pool_scores(scores), seconds, size


def pool_scores(scores: Sequence[Score]) -> Score:
    """One score of several test parts, such as folds; each picture counts the same.

    Raises:
        InputError: if the parts have different classes.
    """
    classes = [item.name for item in scores[0].evaluation.classes]
    if any([item.name for item in part.evaluation.classes] != classes for part in scores):
        raise InputError("scores of different classes can't be pooled")
    logits = np.concatenate([part.logits for part in scores])
    labels = [classes[i] for part in scores for i in part.labels]
    log_probabilities = np.concatenate([part.evaluation.predictions.log_probabilities for part in scores])
    return Score(evaluate(labels, log_probabilities, classes), logits, sum(part.seconds for part in scores))


def plan_folds(bundle: Bundle, inputs: FitInputs, folds: int) -> list[Run]:
    """The record of one cross-validation before it is made; see `fitting.planned`."""
    name = str(bundle.support.provenance.get("data", "unnamed"))
    test = f"{count_folds(bundle.support.y, folds)} folds"
    digest = bundle.hash_data(range(len(bundle.support)), ())
    return [
        Run(
            **common_fields(bundle, inputs),
            data=RunData(support=name, test=test, protocol=KIND, digest=digest),
            text=bundle.text_digest(test, inputs.head.reads_prompts),
            n_classes=len(bundle.text.labels),
            n_test=len(bundle.support),
        )
    ]


def run_folds(bundle: Bundle, head: Head, runs: Sequence[Run], folds: int) -> list[Run]:
    """Cross-validate a head. Returns the planned record with its metrics, or with the reason why the head failed."""
    finished = []
    for run in runs:
        try:
            splits = draw_folds(bundle.support.y, folds, run.seed, run.shots)
            rows = [row for _, fold in splits for row in fold]
            pooled, seconds, size = score_folds(head, bundle, splits)
        except Exception as error:  # of any head, also of plug-ins: the other heads must still run
            finished.append(record_failure(run, error))
            continue
        results = {
            "seconds": Seconds(fit=seconds, predict=pooled.seconds),
            "metrics": Metrics.of_score(pooled),
            "correct": pack_correct(pooled.evaluation.predictions.correct[np.argsort(rows)]),
            "size": size,
            "machine": describe_machine(),
        }
        finished.append(run.model_copy(update=results))
    return finished


def _draw_all_folds(labels: Sequence[str], folds: int, shots: int, seed: int) -> list[int]:
    """The shots of all folds one after the other; a picture is a shot of several folds."""
    return [row for drawn, _ in draw_folds(labels, folds, seed, shots) for row in drawn]
