"""Cross-validation: k stratified folds of the pictures of one data set that has no test part.

Every picture is predicted once, by a head that was fitted to shots of the other folds. Metrics are computed from all
these predictions together, as with scikit-learn's ``cross_val_predict``. So each picture counts the same, however the
folds are made. One draw of shots gives one record, whose seconds are those of one fit, the mean over the folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from clipadapter.bench import fits
from clipadapter.bench.bundle import Bundle
from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import Protocol
from clipadapter.bench.run import Run, RunData, pack_correct
from clipadapter.bench.sources import (
    AnySource,
    DataSetSize,
    FeatureSource,
    Prompted,
    Source,
    extract_training_views,
    with_pictures,
)
from clipadapter.bench.suite import Suite, Variant
from clipadapter.errors import InputError
from clipadapter.heads import Head


@register_protocol("cross-validation")
class CrossValidation(Protocol):
    """Stratified folds of one data set: each picture is predicted by a head fitted to shots of the other folds."""

    test_kinds = {
        "folds": "folds: cross-validation; each picture is predicted by a head fitted to shots of other folds"
    }
    report_columns = "shots"
    accepts_features = True
    accepts_all_shots = True
    tests_all_pictures = True
    options = {"folds": fits.DEFAULT_FOLDS}

    def check_sources(self, suite: Suite, sources: Sequence[AnySource]) -> None:
        """Each class needs two pictures, and a single fold leaves no shots."""
        super().check_sources(suite, sources)
        if self.options["folds"] < 2:
            raise InputError(f"folds must be 2 or more, but are {self.options['folds']}")
        for source in with_pictures(sources):
            fits.count_folds(source.train.labels, self.options["folds"])

    def fits_of_draw(self, suite: Suite, sizes: Sequence[DataSetSize], variant: Variant, head: Head) -> list[float]:
        """A fit for each fold."""
        return [1.0] * self.options["folds"]

    def load(self, suite: Suite, source: FeatureSource) -> Bundle:
        """Separate test parts are left out."""
        bundle = source.load(suite)
        return Bundle(bundle.support, bundle.text)

    def build(self, suite: Suite, sources: Sequence[Source], prompted: Prompted) -> Bundle:
        """Of a data set with a test part, the training part is cut into folds."""
        train, model = sources[0].train, prompted(sources[0])
        support = extract_training_views(suite, model, train, train.class_names, [range(len(train.samples))])
        return Bundle(support, model.encode_classes(train.class_names))

    def draws(self, bundle: Bundle, shots: Sequence[int], seeds: Sequence[int]) -> list[fits.Draw]:
        """The shots of all folds one after the other; a picture is a shot of several folds."""
        labels, folds = bundle.support.y, self.options["folds"]
        tests = [f"{fits.count_folds(labels, folds)} folds"]
        return [
            fits.Draw(n, seed, [row for drawn, _ in fits.draw_folds(labels, folds, seed, n) for row in drawn], tests)
            for n, seed in product(shots, seeds)
        ]

    def plan(self, bundle: Bundle, label: str, head: Head, draw: fits.Draw) -> list[Run]:
        """All folds are one record."""
        (test,), n_test = draw.tests, len(bundle.support)
        digest = bundle.hash_data(range(n_test), ())
        data = RunData(support=bundle.support_name, test=test, protocol="folds", digest=digest)
        return [fits.plan_run(bundle, label, head, draw, data, n_test)]

    def measure(self, bundle: Bundle, head: Head, runs: Sequence[Run]) -> list[Run]:
        """The head is fitted once for each fold."""
        (run,) = runs

        def make() -> list[Run]:
            splits = fits.draw_folds(bundle.support.y, self.options["folds"], run.seed, run.shots)
            rows = [row for _, fold in splits for row in fold]
            pooled, seconds, fitted = fits.score_folds(head, bundle, splits)
            largest = max(fitted, key=fits.count_stored_numbers)
            correct = pack_correct(pooled.evaluation.predictions.correct[np.argsort(rows)])
            return [fits.finish_run(run, largest, seconds, pooled, correct=correct, learned={})]

        return fits.attempt(runs, make)
