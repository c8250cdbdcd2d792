"""Fits of heads to drawn shots: planned as records, made if there is no record yet, and measured.

All heads get the same shots, which are drawn as in the papers (``data.draw_shots``). A head sees no other labelled
picture, and the test part is opened only after the fit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from clipadapter.bench.bundle import Bundle, TestPart, select_views
from clipadapter.bench.methods import clone_with_seed, method_version, package_digest, registered_name
from clipadapter.bench.records import append_runs, read_existing_runs
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
from clipadapter.classifier.evaluation import Score, score
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, TextFeatures
from clipadapter.heads.estimator import clone
from clipadapter.metrics import evaluate
from clipadapter.utils.formatting import format_count

if TYPE_CHECKING:
    from clipadapter.bench.protocols.base import Protocol

Features = NDArray[Any]


class Draw(NamedTuple):
    """Drawn shots.

    Args:
        shots: requested per class.
        seed: of the draw.
        rows: the drawn rows of the support; of a stream in the order of its tasks.
        tests: names of what the heads are measured on, in tables; there is a record for each.
        tasks: of a stream.
    """

    shots: int
    seed: int
    rows: Sequence[int]
    tests: Sequence[str] = ()
    tasks: Sequence[Task] = ()


@dataclass(frozen=True, eq=False)
class Fit:
    """A head to be fitted to a draw.

    Args:
        head: unfitted, with the seed of the draw.
        runs: its planned records.
    """

    head: Head
    runs: Sequence[Run]

    @property
    def keys(self) -> list[str]:
        """Of its records."""
        return [run.key for run in self.runs]


@dataclass
class Outcome:
    """What `make_missing` did.

    Args:
        runs: the records of each fit, in the order of the fits.
        n_made: number of runs that were made; those of failed fits were made again.
        n_existing: number of runs that were not made, because all records of their fit are successful.
        n_failed: how many of the runs made failed.
        seconds: from the first fit to the last.
    """

    runs: list[list[Run]] = field(default_factory=list)
    n_made: int = 0
    n_existing: int = 0
    n_failed: int = 0
    seconds: float = 0.0


def plan_run(
    bundle: Bundle,
    label: str,
    head: Head,
    draw: Draw,
    *,
    data: RunData,
    text_of: str,
    n_classes: int,
    n_test: int,
    stream: TaskStream | None = None,
) -> Run:
    """A record before its fit is made.

    Args:
        bundle: features and class text.
        label: name of the head in tables.
        head: unfitted.
        draw: the shots.
        data: what the head is measured on.
        text_of: name of a test part, whose class text counts.
        n_classes: see `Run`.
        n_test: see `Run`.
        stream: see `Run`.
    """
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
        text=bundle.text_digest(text_of, head.reads_prompts),
        shots=draw.shots,
        seed=draw.seed,
        rows=list(draw.rows),
        flags=Flags(transductive=head.transductive),
        code=package_digest(),
        versions=library_versions(),
        n_classes=n_classes,
        n_test=n_test,
        machine=describe_machine(),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        stream=stream,
    )


class Measured(NamedTuple):
    """A fitted head, the seconds of its fit, and its score on each test part."""

    head: Head
    seconds: float
    scores: Sequence[Score]


def fit_and_score(
    head: Head,
    shots: FeatureSet,
    parts: Sequence[TestPart],
    text: TextFeatures,
    unlabelled: Features | None = None,
    fit: Callable[[FeatureSet], Head] | None = None,
) -> Measured:
    """Fit a head, and then measure it on test parts; arguments as for `fit_head`."""
    fitted, seconds = fit_head(head, shots, parts, text, unlabelled, fit)
    return Measured(fitted, seconds, [score_part(fitted, part) for part in parts])


def fit_head(
    head: Head,
    shots: FeatureSet,
    parts: Sequence[TestPart],
    text: TextFeatures,
    unlabelled: Features | None = None,
    fit: Callable[[FeatureSet], Head] | None = None,
) -> tuple[Head, float]:
    """Fit a head. Returns the fitted head, and the seconds that the fit took.

    Args:
        head: unfitted; it stays so.
        shots: what it is fitted to.
        parts: a head that is transductive is fitted to the pictures of the first, so it takes one; others see none.
        text: class text of the shots.
        unlabelled: (u, d) features of pictures without labels, for a head that ``accepts_unlabelled``.
        fit: fits in another way; None for a clone of the head that is fitted to the shots.
    """
    shots = select_views(head, shots)
    if head.transductive:
        unlabelled = parts[0].features.plain
    elif not head.accepts_unlabelled:
        unlabelled = None
    start = time.perf_counter()
    if fit is not None:
        fitted = fit(shots)
    else:
        fitted = clone(head).fit(shots.X, shots.y, text=text, unlabelled=unlabelled, blocks=shots.blocks)
    return fitted, time.perf_counter() - start


def score_part(head: Head, part: TestPart) -> Score:
    """Measure a fitted head on a test part. On a shifted part it predicts among the part's own classes."""
    among = part.features.class_names if part.kind == "shift" else None
    return score(head if part.text is None else head.for_classes(part.text), part.features, among=among)


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


def finish_run(run: Run, head: Head, seconds: float, result: Score, **changes: Any) -> Run:
    """The record of a planned run whose head was fitted and measured.

    Args:
        run: planned.
        head: fitted.
        seconds: of its fit.
        result: its score.
        changes: other fields.
    """
    fields = {
        "seconds": Seconds(fit=seconds, predict=result.seconds),
        "metrics": Metrics.of_score(result),
        "correct": None if run.data.protocol == "rest" else pack_correct(result.evaluation.predictions.correct),
        "learned": _learned(head),
        "size": count_stored_numbers(head),
        "machine": describe_machine(),
    }
    return run.model_copy(update={**fields, **changes})


def count_stored_numbers(head: Head) -> int:
    """Count the numbers in the state of a fitted head."""
    return sum(int(value.size) for value in head.state().values())


def _learned(head: Head) -> dict[str, float]:
    """Attributes of a fitted head that are numbers."""
    attributes = {key: value for key, value in vars(head).items() if key.endswith("_") and key != "n_features_in_"}
    return {key: float(v) for key, v in attributes.items() if isinstance(v, int | float) and np.isfinite(v)}


def attempt(runs: Sequence[Run], function: Callable[[], list[Run]]) -> list[Run]:
    """The records that a function makes of planned ones; if it fails, records with the reason."""
    try:
        return function()
    except Exception as error:  # of any head, also of plug-ins: the other heads must still run
        return [record_failure(run, error) for run in runs]


def record_failure(run: Run, error: BaseException, note: str = "") -> Run:
    """The record of a planned run that failed, with the reason."""
    return run.model_copy(update={"error": f"{type(error).__name__}: {error}{note}"})


def make_missing(
    fits: Sequence[Fit],
    make: Callable[[list[Fit]], Generator[tuple[Fit, list[Run]], None, None]],
    records: str | Path | None,
    progress: bool = False,
) -> Outcome:
    """Make every fit that has a missing or failed record.

    Args:
        fits: all planned fits.
        make: makes some of them, and yields each with its records as soon as it is finished.
        records: JSONL file. A new run is appended as soon as it is finished; None to keep no records.
        progress: show a bar on stderr.

    Raises:
        InputError: if the file can't be written; says how many runs are stored.
    """
    known = {key: run for key, run in read_existing_runs(records).items() if run.error is None}
    missing = [fit for fit in fits if not set(fit.keys) <= known.keys()]
    outcome = Outcome(n_existing=sum(len(fit.runs) for fit in fits) - sum(len(fit.runs) for fit in missing))
    made: dict[int, list[Run]] = {}
    start = time.perf_counter()
    with (
        tqdm(total=len(missing), desc="fits", unit="fit", disable=not progress) as bar,
        closing(make(missing)) as results,
    ):
        for fit, runs in results:
            try:
                if records is not None:
                    append_runs(records, runs)
            except InputError as error:
                hint = f"{outcome.n_made} runs were made and are stored"
                raise InputError(f"{error}. {hint}: free some space and repeat the call") from error
            made[id(fit)] = runs
            outcome.n_made += len(runs)
            outcome.n_failed += sum(run.error is not None for run in runs)
            bar.set_postfix_str(f"{runs[0].head}, {format_count(runs[0].shots, 'shot')}", refresh=False)
            bar.update()
    outcome.seconds = time.perf_counter() - start
    outcome.runs = [made.get(id(fit)) or [known[key] for key in fit.keys] for fit in fits]
    return outcome


def run_fits(
    protocol: Protocol,
    bundle: Bundle,
    heads: Mapping[str, Head],
    draws: Iterable[Draw],
    *,
    make: Callable[[Head, Sequence[Run]], list[Run]] | None = None,
    records: str | Path | None = None,
    progress: bool = False,
) -> tuple[list[Run], Outcome]:
    """Fit and measure every head on the same draws, in this process.

    Args:
        protocol: plans and makes the runs; for each fit one.
        bundle: features and class text.
        heads: by their name in tables; they stay unfitted. A head that has a parameter ``seed`` gets that of the draw.
        draws: the shots.
        make: makes a fit in another way than the protocol.
        records: see `make_missing`.
        progress: see `make_missing`.

    Returns:
        A record for each draw and head, in this order.
    """
    labelled = []
    for draw in draws:
        for label, head in heads.items():
            own = clone_with_seed(head, draw.seed)
            labelled.append((label, Fit(own, protocol.plan(bundle, label, own, draw))))

    def results(missing: list[Fit]) -> Generator[tuple[Fit, list[Run]], None, None]:
        for fit in missing:
            yield fit, make(fit.head, fit.runs) if make else protocol.measure(bundle, fit.head, fit.runs)

    outcome = make_missing([fit for _, fit in labelled], results, records, progress)
    # Another call may have named the heads otherwise.
    runs = [
        run.model_copy(update={"head": label})
        for (label, _), own in zip(labelled, outcome.runs, strict=True)
        for run in own
    ]
    return runs, outcome


def draw_each(
    draw_rows: Callable[[int, int], Sequence[int]],
    shots: Sequence[int],
    seeds: Sequence[int],
    heads: Mapping[str, Head],
) -> Iterator[Draw]:
    """The draws of a comparison.

    Args:
        draw_rows: draws rows from shots per class and a seed.
        shots: shots per class.
        seeds: of the draws.
        heads: that are compared.

    Raises:
        InputError: if there is nothing to run.
    """
    if not heads or not shots or not seeds:
        raise InputError("there is nothing to run: give at least one head, one number of shots and one seed")
    if min(shots) < 1:
        raise InputError(f"shots must be 1 or more, but are {', '.join(map(str, shots))}")
    return (Draw(n, seed, draw_rows(n, seed)) for n in shots for seed in seeds)
