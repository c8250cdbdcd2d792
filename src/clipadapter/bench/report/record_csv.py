"""The records of a study as CSV, one line each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clipadapter.bench.continual.summary import HeadRuns
from clipadapter.bench.pivot import Spot
from clipadapter.bench.run import Metrics
from clipadapter.bench.study import Study
from clipadapter.metrics import metrics_shown
from clipadapter.utils.files import csv_text

RECORDED = tuple(metrics_shown("record", "single-label"))
HEADER = (
    "label",
    "data",
    "encoder",
    "prompts",
    "test",
    "shots",
    "seed",
    *RECORDED,
    "fit_seconds",
    "predict_seconds",
    "size",
    "transductive",
    "device",
    "error",
    "key",
)


STREAM_HEADER = (
    *("label", "learns", "data", "encoder", "prompts", "order", "shots", "seed", "after", "after_task", "task"),
    *("task_name", "learned", *RECORDED, "zero_shot", "fit_seconds", "size", "device", "error", "key"),
)


def format_stream_csv(study: Study) -> str:
    """One line for each task after each task, numbered from 1. A failed stream has one line with the reason."""
    return csv_text([STREAM_HEADER, *_stream_rows(study)])


def format_record_csv(study: Study) -> str:
    """One line per record in the order of the plan; a failed record has no figures, but the reason.

    Missing records have no line.
    """
    return csv_text([HEADER, *_rows(study)])


def _stream_rows(study: Study) -> Iterator[tuple[object, ...]]:
    for setting, runs in study.runs_by_setting.items():
        for run in runs:
            learns = HeadRuns(setting.label, Spot([run])).learns
            fields = (
                setting.label,
                learns,
                setting.data,
                setting.encoder,
                setting.prompts,
                setting.test,
                setting.shots,
                run.seed,
            )
            if run.stream is None or run.continual is None:
                empty = [""] * (len(STREAM_HEADER) - len(fields) - 3)
                yield (*fields, *empty, run.machine.device, " ".join((run.error or "").split()), run.key)
                continue
            names = [task.name for task in run.stream.tasks]
            zero_shot: Sequence[float | str] = run.continual.zero_shot or [""] * len(names)
            for t, step in enumerate(run.continual.steps, 1):
                for i, metrics in enumerate(step.metrics, 1):
                    figures = (*_values(metrics), zero_shot[i - 1], step.seconds, step.size, run.machine.device)
                    yield (*fields, t, names[t - 1], i, names[i - 1], i <= t, *figures, "", run.key)


def _rows(study: Study) -> Iterator[tuple[object, ...]]:
    for setting, runs in study.runs_by_setting.items():
        for run in runs:
            metrics, seconds = run.metrics, run.seconds
            figures = _values(metrics)
            times = (seconds.fit, seconds.predict) if seconds else ("", "")
            transductive = run.flags.transductive
            error = "" if run.error is None else " ".join(run.error.split())
            fields = (setting.label, setting.data, setting.encoder, setting.prompts, setting.test, setting.shots)
            size = "" if run.size is None else run.size
            yield (*fields, run.seed, *figures, *times, size, transductive, run.machine.device, error, run.key)


def _values(metrics: Metrics | None) -> list[object]:
    """Values of the recorded metrics; empty where a record has none."""
    return [metrics[name] if metrics is not None and name in metrics else "" for name in RECORDED]
