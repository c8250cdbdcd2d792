"""Cross-validation: k stratified folds of the pictures of one data set that has no test part.

Every picture is predicted once, by a head that was fitted to shots of the other folds. Metrics are computed from all
these predictions together, as with scikit-learn's ``cross_val_predict``. So each picture counts the same, however the
folds are made. One draw of shots gives one record, whose seconds are those of one fit, the mean over the folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from clipadapter.bench.bundle import Bundle
from clipadapter.bench.fits import (
    Draw,
    Features,
    attempt,
    count_stored_numbers,
    draw_each,
    finish_run,
    plan_run,
    run_fits,
)
from clipadapter.bench.folds import DEFAULT_FOLDS, count_folds, draw_folds, score_folds
from clipadapter.bench.plan import Rows
from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import Protocol
from clipadapter.bench.run import Run, RunData, pack_correct
from clipadapter.bench.sources import DataSetSize, Source, extract_training_views
from clipadapter.bench.suite import Prompts, Suite
from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, TextFeatures

KIND = "folds"


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

    def fits_per_draw(self, sizes: Sequence[DataSetSize], transductive: bool) -> int:
        """As `Protocol.fits_per_draw`; a fit for each fold, at most if the smallest class is unknown."""
        (size,), folds = sizes, self.options["folds"]
        if size.smallest_class is None:
            return folds
        if size.smallest_class < 2:
            raise InputError(
                f"cross-validation needs two pictures of each class, but a class of '{size.spec}' has one. "
                "Use another protocol, or add pictures"
            )
        return min(folds, size.smallest_class)

    def load_features(self, suite: Suite, spec: str) -> tuple[Bundle, Rows | None]:
        """As `Protocol.load_features`: separate test parts are left out."""
        bundle, _ = super().load_features(suite, spec)
        return Bundle(bundle.support, bundle.text), None

    def build(
        self, suite: Suite, sources: Sequence[Source], model: FewShotClassifier, prompts: Prompts
    ) -> tuple[Bundle, Rows | None]:
        """As `Protocol.build`; of a data set with a test part, the training part is cut into folds."""
        train = sources[0].train
        support = extract_training_views(suite, model, train, train.class_names, [range(len(train.samples))])
        return Bundle(support, model.encode_classes(train.class_names)), None

    def draws(self, suite: Suite, bundle: Bundle, rows: Rows | None) -> list[Draw]:
        """As `Protocol.draws`; the shots of all folds one after the other."""
        names = [f"{count_folds(bundle.support.y, self.options['folds'])} folds"]
        return [Draw(n, seed, self.draw(bundle, n, seed), names) for n in suite.shots for seed in suite.seeds]

    def draw(self, bundle: Bundle, shots: int, seed: int) -> list[int]:
        """The shots of all folds one after the other; a picture is a shot of several folds."""
        splits = draw_folds(bundle.support.y, self.options["folds"], seed, shots)
        return [row for drawn, _ in splits for row in drawn]

    def plan(self, bundle: Bundle, label: str, head: Head, draw: Draw) -> list[Run]:
        """As `Protocol.plan`; all folds are one record."""
        name, test = bundle.support_name, f"{count_folds(bundle.support.y, self.options['folds'])} folds"
        digest = bundle.hash_data(range(len(bundle.support)), ())
        data = RunData(support=name, test=test, protocol=KIND, digest=digest)
        n_classes, n_test = len(bundle.text.labels), len(bundle.support)
        return [plan_run(bundle, label, head, draw, data=data, text_of=test, n_classes=n_classes, n_test=n_test)]

    def measure(self, bundle: Bundle, head: Head, runs: Sequence[Run], unlabelled: Features | None = None) -> list[Run]:
        """As `Protocol.measure`; the head is fitted once for each fold."""
        (run,) = runs

        def make() -> list[Run]:
            splits = draw_folds(bundle.support.y, self.options["folds"], run.seed, run.shots)
            rows = [row for _, fold in splits for row in fold]
            pooled, seconds, fitted = score_folds(head, bundle, splits, unlabelled)
            largest = max(fitted, key=count_stored_numbers)
            correct = pack_correct(pooled.evaluation.predictions.correct[np.argsort(rows)])
            return [finish_run(run, largest, seconds, pooled, correct=correct, learned={})]

        return attempt(runs, make)


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
    protocol, bundle = CrossValidation(), Bundle(support, text)
    protocol.options = {"folds": folds}
    draws = draw_each(lambda n, seed: protocol.draw(bundle, n, seed), shots, seeds, heads)
    return run_fits(protocol, bundle, heads, draws, records=records, progress=progress)[0]
