"""Compares heads in this process: every head gets the same drawn shots.

On pictures, whose features are computed once, or on features that are there already: on test pictures, by
cross-validation, or on a stream of tasks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench.bundle import Bundle, Rows, TestPart
from clipadapter.bench.fits import DEFAULT_FOLDS, attempt, count_folds, finish_run, score_part
from clipadapter.bench.plots import draw_learning_curve
from clipadapter.bench.protocols.base import create_protocol
from clipadapter.bench.protocols.few_shot import FewShot
from clipadapter.bench.protocols.stream import StreamOfTasks
from clipadapter.bench.run import Run
from clipadapter.bench.schedule import run_fits
from clipadapter.bench.sources import extract_dataset, keep_drawn
from clipadapter.bench.streams import JoinedDataSets, choose_mode, draw_tasks, join_features
from clipadapter.bench.study import pivot_runs
from clipadapter.bench.suite import StreamRules
from clipadapter.bench.tables import Reference, check_runs, table
from clipadapter.classifier import FewShotClassifier
from clipadapter.classifier.edit import find_duplicates
from clipadapter.classifier.evaluation import check_labels
from clipadapter.data import Dataset, draw_shots
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, TextFeatures
from clipadapter.heads.estimator import clone
from clipadapter.metrics import metrics_shown
from clipadapter.rendering.plots import save_plots
from clipadapter.utils.files import mark, path_without_links, write_atomically
from clipadapter.utils.progress import shows_progress


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` gives."""

    runs: list[Run]
    n_new: int  # of the runs; the others were in the file of records
    support: FeatureSet  # what the shots were drawn from
    test: FeatureSet
    text: TextFeatures
    warnings: list[str]  # sentences about the data
    folds: int | None = None  # of a cross-validation; None if there is a test part

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of pictures that can't be read."""
        skipped = list(self.support.provenance["skipped"])
        return skipped if self.folds is not None else [*skipped, *self.test.provenance["skipped"]]

    @property
    def protocol_text(self) -> str:
        """A paragraph on the protocol; empty if there is a test part."""
        if self.folds is None:
            return ""
        return (
            f"Cross-validation over {self.folds} folds: there is no test part, so each picture is predicted by a head "
            "that was fitted to shots of the other folds.\n\n"
        )

    def write(
        self,
        folder: Path,
        title: str,
        plot_formats: Sequence[str] = ("png",),
        metric: str = "accuracy",
        reference: Reference | None = None,
    ) -> list[Path]:
        """Write ``table.md`` and the learning curve of a metric, named by it; the reference is a row and a level."""
        check_runs(self.runs, metric)
        shown = metrics_shown("comparison", "single-label")
        metrics = [name for name in shown if reference is None or name in reference.metrics]
        tables = [table(self.runs, name, markdown=True, reference=reference) for name in metrics]
        text = f"<!-- {mark('compare')} -->\n\n# {title}\n\n{self.protocol_text}" + "\n".join(tables)
        page = write_atomically(path_without_links(folder, "table.md"), text)
        figure = draw_learning_curve(pivot_runs(self.runs), title, metric, reference=reference)
        return [page, *save_plots(figure, folder / metric.replace("_", "-"), "compare", plot_formats)]


def compare(
    model: FewShotClassifier,
    train: Dataset,
    test: Dataset | None,
    heads: Mapping[str, Head],
    shots: Sequence[int],
    seeds: Sequence[int],
    *,
    folds: int = DEFAULT_FOLDS,
    records: Path | None = None,
    progress: bool = False,
) -> Comparison:
    """Compare heads on pictures. A head that tunes the encoder tunes it on each draw, from plain pictures.

    Args:
        model: computes the features and the class text; it is not fitted.
        train: pictures that the shots are drawn from; its classes are the classes. With a test part only those are
            encoded that a draw takes.
        test: the test part; None for stratified cross-validation of ``train``, see `few_shot`.
        heads: by their name in tables.
        shots: shots per class.
        seeds: of the draws.
        folds: number of folds, if there is no test part.
        records: JSONL file; see `clipadapter.bench.few_shot`.
        progress: show a bar on stderr.

    Raises:
        InputError: if a test label is no class, or there is nothing to run; without a test part if a class has a
            single picture, or a head tunes the encoder.
        DataError: if a picture has no label, or no picture can be read.
    """
    heads, warnings = _leave_out_without_text(model, heads)
    names = train.class_names
    if test is None:
        if tuners := [name for name, head in heads.items() if head.tunes_encoder]:
            raise InputError(
                f"{', '.join(tuners)} tunes the encoder, which cross-validation would do for every fold: "
                "give a test folder"
            )
        count_folds(train.labels, folds)  # before the pictures are encoded
    else:
        check_labels(test.labels, names)
    model.prepare_encoder(*heads.values())
    text, n_folds = model.encode_classes(names), None
    if test is None:
        bundle = Bundle(extract_dataset(model, train, names), text)
        protocol, n_folds = create_protocol("cross-validation", {"folds": folds}), count_folds(bundle.support.y, folds)
    else:
        support, rows, drawn = _encode_drawn(model, train, list(product(shots, seeds)))
        bundle = Bundle(support, text, {"test": TestPart(extract_dataset(model, test, names))}, rows, drawn)
        protocol = FewShotOnPictures(model, train, test)
    draws = protocol.draws(bundle, shots, seeds)
    outcome = run_fits(protocol, bundle, heads, draws, records=records, progress=progress)
    tested = bundle.support if test is None else bundle.tests["test"].features
    if bundle.draws is not None:
        warnings += _warnings(bundle.shots(bundle.draws[max(shots), seeds[0]]), bundle.support, tested, max(shots))
    return Comparison(outcome.runs, outcome.n_made, bundle.support, tested, text, warnings, n_folds)


def _encode_drawn(
    model: FewShotClassifier, train: Dataset, keys: Sequence[tuple[int, int]]
) -> tuple[FeatureSet, NDArray[np.int64], Rows]:
    """As `keep_drawn`, for numbers of shots and seeds; pictures that can't be read are replaced by others."""
    names, unreadable = train.class_names, set[int]()
    skipped: list[tuple[str, str]] = []
    while True:
        left = [row for row in range(len(train.paths)) if row not in unreadable]
        labels = [train.labels[row] for row in left]
        planned = {key: [left[i] for i in draw_shots(labels, *key)] for key in keys}
        support, rows, drawn = keep_drawn(train, planned, lambda part, _: extract_dataset(model, part, names))
        missing = {row for draw in planned.values() for row in draw} - set(rows.tolist())
        skipped += support.provenance["skipped"]
        if not missing:
            return replace(support, provenance={**support.provenance, "skipped": skipped}), rows, drawn
        unreadable |= missing


def _leave_out_without_text(
    model: FewShotClassifier, heads: Mapping[str, Head]
) -> tuple[Mapping[str, Head], list[str]]:
    """The heads without those that need class text, if the encoder has none, and a sentence that names those."""
    names = [name for name, head in heads.items() if head.needs_text]
    if model.encoder_.has_text or not names:
        return heads, []
    if len(names) == len(heads):
        raise InputError(
            f"all of these heads need class text, but {model.encoder_.info.name} has no text tower: name an encoder "
            "that has one beside it, or heads that need none"
        )
    sentence = f"heads that need class text are left out, since no encoder has a text tower: {', '.join(names)}"
    return {name: head for name, head in heads.items() if name not in names}, [sentence]


@dataclass(frozen=True, eq=False)
class FewShotOnPictures(FewShot):
    """Few-shot, where a head that tunes the encoder gets the drawn pictures, and is measured with the tuned encoder."""

    model: FewShotClassifier
    train: Dataset
    test: Dataset

    def measure(self, bundle: Bundle, head: Head, runs: Sequence[Run]) -> list[Run]:
        """The feature store is not used for a tuned encoder: no other run has it."""
        if head.tunes_encoder:
            return attempt(runs, lambda: [self._tune(head, run) for run in runs])
        return super().measure(bundle, head, runs)

    def _tune(self, head: Head, run: Run) -> Run:
        model, train, test, tuner = self.model, self.train, self.test, clone(head)
        if "progress" in tuner.get_params(deep=False):
            tuner.set_params(progress=shows_progress(model.progress))
        kept = {name: getattr(model, name) for name in ("templates", "descriptions", "batch_size")}
        tuned = FewShotClassifier(model.encoder_, tuner, cache=None, **kept)
        names, start = train.class_names, time.perf_counter()
        tuned.fit([train.paths[i] for i in run.rows], [train.labels[i] for i in run.rows], names)
        seconds = time.perf_counter() - start
        part = TestPart(tuned.extract_features(test.paths, test.labels, names, views=1))
        return finish_run(run, tuned.head_, seconds, score_part(tuned.head_, part))


def _warnings(largest: FeatureSet, support: FeatureSet, test: FeatureSet, max_shots: int) -> list[str]:
    counts = Counter(largest.y)
    small_classes = [name for name in support.class_names if counts[name] < max_shots]
    shared = sum(bool(rows) for rows in find_duplicates(support.final, test.final))
    sentences = []
    if small_classes:
        sentences.append(
            f"{len(small_classes)} of {len(support.class_names)} classes have fewer than {max_shots} pictures to draw "
            f"from and give all they have, such as {small_classes[0]} ({counts[small_classes[0]]})"
        )
    if shared:
        sentences.append(f"{shared} of {len(test)} test pictures are also among the shots")
    return sentences


# ---- On features that are there already ----


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
