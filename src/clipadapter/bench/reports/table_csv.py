"""The records of a study as CSV, one line each."""

from __future__ import annotations

import csv
import io

from clipadapter.bench.study import Study

HEADER = (
    "label",
    "data",
    "encoder",
    "prompts",
    "test",
    "shots",
    "seed",
    "accuracy",
    "macro_f1",
    "log_loss",
    "fit_seconds",
    "predict_seconds",
    "size",
    "transductive",
    "validation",
    "oracle",
    "error",
    "key",
)


def table_csv(study: Study) -> str:
    """A line for each record in the order of the plan; one that failed has no figures but says why.

    Only records are there: what is not run yet has no line.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(HEADER)
    for place, runs in study.rows.items():
        for run in runs:
            metrics, seconds = run.metrics, run.seconds
            figures = (metrics.accuracy, metrics.macro_f1, metrics.log_loss) if metrics else ("", "", "")
            took = (seconds.fit, seconds.predict) if seconds else ("", "")
            flags = (run.flags.transductive, run.flags.validation, run.flags.oracle)
            error = "" if run.error is None else " ".join(run.error.split())
            where = (place.label, place.data, place.encoder, place.prompts, place.test, place.shots)
            size = "" if run.size is None else run.size
            writer.writerow((*where, run.seed, *figures, *took, size, *flags, error, run.key))
    return file.getvalue()
