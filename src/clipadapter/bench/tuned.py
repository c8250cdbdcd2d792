"""Heads that tune the encoder, beside the others: each draw of shots gives an encoder, and test features of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sklearn.base import clone

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.protocol import failed, measured
from clipadapter.bench.run import Run
from clipadapter.classifier import FewShotClassifier
from clipadapter.data import Dataset
from clipadapter.heads import Head


def perform_tuned(
    model: FewShotClassifier, train: Dataset, test: Dataset, bundle: Bundle, head: Head, runs: Sequence[Run]
) -> list[Run]:
    """Tune on the drawn pictures, and measure by the tuned encoder; as `protocol.perform` does on features.

    Nothing is kept in the feature store: no other run has this encoder.

    Args:
        model: has the encoder to tune, and the templates.
        train: what the shots are drawn from.
        test: the test part.
        bundle: features of both by the encoder as it is; their rows are the pictures that can be read.
        head: unfitted.
        runs: the planned run.
    """
    names, readable = train.class_names, bundle.support.provenance["rows"]
    done = []
    for run in runs:
        own = clone(head)
        if "progress" in own.get_params(deep=False):
            own.set_params(progress=model.progress)
        tuned = FewShotClassifier(
            model.encoder_,
            own,
            templates=model.templates,
            descriptions=model.descriptions,
            cache=None,
            batch_size=model.batch_size,
        )
        drawn = [readable[row] for row in run.rows]
        paths, labels = ([every[i] for i in drawn] for every in (train.paths, train.labels))
        try:
            start = time.perf_counter()
            tuned.fit(paths, labels, names)
            seconds = time.perf_counter() - start
            part = TestPart(tuned.extract_features(test.paths, test.labels, names, views=1))
            done.append(measured(run, (tuned.head_, seconds), part, part.features))
        except Exception as error:  # it must not cost the others their run
            done.append(failed(run, error))
    return done
