"""Fits heads to drawn shots and measures them: all heads get the same shots, the test part is opened only after `fit`.

`bench.protocols.few_shot` plans such fits for a suite.

Shots are drawn as in the papers (``data.draw_shots``). A head sees no other labelled picture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from clipadapter.bench.bundle import Bundle, TestPart, select_views
from clipadapter.bench.methods import clone_with_seed, method_version, package_digest, registered_name
from clipadapter.bench.run import (
    Flags,
    Metrics,
    Run,
    Seconds,
    append_runs,
    describe_machine,
    library_versions,
    pack_correct,
    read_runs,
)
from clipadapter.classifier.evaluation import Score, score
from clipadapter.data import draw_shots
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.formatting import format_count
from clipadapter.heads import Head, TextFeatures
from clipadapter.heads.estimator import clone


@dataclass(frozen=True, eq=False)
class FitInputs:
    """A head, and the rows that it is fitted to.

    Args:
        label: the head's name in tables.
        head: unfitted.
        shots: shots per class.
        seed: of the draw.
        rows: the drawn rows of the support; of a stream in the order of its tasks.
    """

    label: str
    head: Head
    shots: int
    seed: int
    rows: Sequence[int]


def few_shot(
    heads: Mapping[str, Head],
    support: FeatureSet,
    test: FeatureSet | None,
    text: TextFeatures,
    shots: Sequence[int],
    seeds: Sequence[int],
    *,
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
        records: JSONL file. Its successful runs are not repeated, failed ones are made again. A new run is appended as
            soon as it is finished.
        progress: show a bar on stderr.

    Returns:
        A record for each number of shots, seed and head, in this order.

    Raises:
        InputError: if there is nothing to run, labels or widths do not match, or no row is left to test on.
        DataError: if the file of records is damaged.

    >>> from clipadapter.heads.zero_shot import ZeroShot
    >>> text = TextFeatures(["cat", "dog"], [[1, 0], [0, 1]])
    >>> features = FeatureSet([[1, 0], [2, 1], [0, 1], [1, 2]], ("cat", "cat", "dog", "dog"), ("cat", "dog"))
    >>> run, = few_shot({"zero-shot": ZeroShot()}, features, None, text, shots=[1], seeds=[1])
    >>> run.n_test, run.metrics.accuracy
    (2, 1.0)
    """
    bundle = Bundle(support, text, {} if test is None else {"test": TestPart(test)})
    return run_fits(bundle, heads, shots, seeds, run_fit, records=records, progress=progress)


def run_fits(
    bundle: Bundle,
    heads: Mapping[str, Head],
    shots: Sequence[int],
    seeds: Sequence[int],
    make: Callable[[Bundle, Head, Sequence[Run]], list[Run]],
    *,
    plan: Callable[[Bundle, FitInputs], list[Run]] | None = None,
    draw: Callable[[Sequence[str], int, int], list[int]] = draw_shots,
    records: str | Path | None = None,
    progress: bool = False,
) -> list[Run]:
    """`few_shot` on a bundle with one test part, with functions that plan and make each fit.

    Args:
        bundle: features and class text.
        heads: as for `few_shot`.
        shots: as for `few_shot`.
        seeds: as for `few_shot`.
        make: makes the planned record of a fit, such as `run_fit`.
        plan: plans it; `plan_fit` if None.
        draw: draws rows from labels, shots per class and a seed.
        records: as for `few_shot`.
        progress: as for `few_shot`.
    """
    if not heads or not shots or not seeds:
        raise InputError("there is nothing to run: give at least one head, one number of shots and one seed")
    if min(shots) < 1:
        raise InputError(f"shots must be 1 or more, but are {', '.join(map(str, shots))}")
    known = {run.key: run for run in read_existing_runs(records) if run.error is None}
    runs = []
    total = len(heads) * len(shots) * len(seeds)
    with tqdm(total=total, desc="runs", unit="run", disable=not progress) as bar:
        for inputs in _draws(heads, bundle.support, shots, seeds, draw):
            bar.set_postfix_str(f"{inputs.label}, {format_count(inputs.shots, 'shot')}")
            (run,) = (plan or plan_fit)(bundle, inputs)
            finished = known.get(run.key)
            if finished is None:
                (finished,) = make(bundle, inputs.head, [run])
                if records is not None:
                    append_runs(records, [finished])
            runs.append(finished.model_copy(update={"head": inputs.label}))
            bar.update()
    return runs


def read_existing_runs(records: str | Path | None) -> list[Run]:
    """The runs of a JSONL file; none if the file does not exist."""
    return read_runs(records) if records is not None and Path(records).is_file() else []


def _draws(
    heads: Mapping[str, Head],
    support: FeatureSet,
    shots: Sequence[int],
    seeds: Sequence[int],
    draw: Callable[[Sequence[str], int, int], list[int]],
) -> Iterator[FitInputs]:
    """The inputs of each fit; the rows are drawn once for all heads."""
    for n in shots:
        for seed in seeds:
            rows = draw(support.y, n, seed)
            for name, head in heads.items():
                yield FitInputs(name, clone_with_seed(head, seed), n, seed, rows)


def plan_fit(bundle: Bundle, inputs: FitInputs) -> list[Run]:
    """The records of a fit before it is made, one for each test part."""
    fields = common_fields(bundle, inputs)
    return [
        Run(
            **fields,
            data=bundle.data(name, inputs.rows),
            text=bundle.text_digest(name, inputs.head.reads_prompts),
            n_classes=bundle.n_classes(name),
            n_test=bundle.n_test(name, len(inputs.rows)),
        )
        for name in bundle.names
    ]


def common_fields(bundle: Bundle, inputs: FitInputs) -> dict[str, Any]:
    """The fields that the records of one fit have in common, whatever the head is measured on."""
    head = inputs.head
    params = head.get_params(deep=False)
    plain = {key: v if v is None or isinstance(v, bool | int | float | str) else repr(v) for key, v in params.items()}
    return {
        "head": inputs.label,
        "method": registered_name(head),
        "method_version": method_version(type(head)),
        "params": plain,
        "encoder": bundle.encoder,
        "templates": bundle.templates,
        "shots": inputs.shots,
        "seed": inputs.seed,
        "rows": list(inputs.rows),
        "flags": Flags(transductive=head.transductive),
        "code": package_digest(),
        "versions": library_versions(),
        "machine": describe_machine(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def run_fit(bundle: Bundle, head: Head, runs: Sequence[Run], unlabelled: NDArray[Any] | None = None) -> list[Run]:
    """Fit a head once, and measure it on the test parts of the planned runs, in the order of the bundle.

    If a head fails, the records have the reason. A transductive head is fitted again for each test part.

    Args:
        bundle: features and class text.
        head: unfitted.
        runs: planned runs of one fit; see `plan_fit`.
        unlabelled: (u, d) features of pictures without labels, for a head that ``accepts_unlabelled``. The records do
            not name them.

    Raises:
        InputError: if no row is left to test on.
    """
    names = {bundle.data(name, runs[0].rows): name for name in bundle.names}
    shots = select_views(head, bundle.shots(runs[0].rows))
    fitted: tuple[Head, float] | None = None
    finished = []
    for run in runs:
        part = bundle.test(names[run.data], run.rows)
        try:
            test_features = part.features
            if fitted is None or head.transductive:
                start = time.perf_counter()
                fitted_head = clone(head).fit(
                    shots.X,
                    shots.y,
                    text=bundle.text,
                    unlabelled=select_unlabelled(head, test_features, unlabelled),
                    blocks=shots.blocks,
                )
                fitted = fitted_head, time.perf_counter() - start
            finished.append(record_score(run, fitted, part, test_features))
        except Exception as error:  # of any head, also of plug-ins: the other heads must still run
            finished.append(record_failure(run, error))
    return finished


def select_unlabelled(head: Head, test: FeatureSet, unlabelled: NDArray[Any] | None) -> NDArray[Any] | None:
    """The pictures without labels of a fit: the test pictures for a transductive head, else those that are given.

    A head that learns from labelled pictures only gets None.
    """
    if head.transductive:
        return test.plain
    return unlabelled if head.accepts_unlabelled else None


def record_score(run: Run, fitted: tuple[Head, float], part: TestPart, features: FeatureSet) -> Run:
    """The record of a planned run whose head was fitted.

    Args:
        run: planned.
        fitted: the head, and the seconds of its fit.
        part: the test part.
        features: the columns of its features that the head reads.
    """
    head, seconds = fitted
    result: Score = score(head if part.text is None else head.for_classes(part.text), features, among=_among(part))
    return run.model_copy(
        update={
            "seconds": Seconds(fit=seconds, predict=result.seconds),
            "metrics": Metrics.of_score(result),
            "correct": None if run.data.protocol == "rest" else pack_correct(result.evaluation.predictions.correct),
            "learned": _learned(head),
            "size": count_stored_numbers(head),
            "machine": describe_machine(),
        }
    )


def count_stored_numbers(head: Head) -> int:
    """Count the numbers in the state of a fitted head."""
    return sum(int(value.size) for value in head.state().values())


def record_failure(run: Run, error: BaseException) -> Run:
    """The record of a planned run that failed, with the reason."""
    return run.model_copy(update={"error": f"{type(error).__name__}: {error}"})


def _among(part: TestPart) -> Sequence[str] | None:
    """The classes of a shifted test part, among which a head predicts; None for all classes."""
    return part.features.class_names if part.kind == "shift" else None


def _learned(head: Head) -> dict[str, float]:
    """Attributes of a fitted head that are numbers."""
    attributes = {key: value for key, value in vars(head).items() if key.endswith("_") and key != "n_features_in_"}
    return {key: float(v) for key, v in attributes.items() if isinstance(v, int | float) and np.isfinite(v)}
