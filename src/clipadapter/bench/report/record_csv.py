"""The records of a study as CSV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from clipadapter.bench.continual.summary import HeadRuns
from clipadapter.bench.run import Metrics, Run
from clipadapter.bench.study import Setting, Spot, Study
from clipadapter.metrics import metrics_shown
from clipadapter.utils.files import csv_text

RECORDED = tuple(metrics_shown("record", "single-label"))
HEADER = (
    *("label", "data", "encoder", "prompts", "test", "shots", "seed", *RECORDED, "fit_seconds", "predict_seconds"),
    *("size", "transductive", "device", "error", "key"),
)
STREAM_HEADER = (
    *("label", "learns", "data", "encoder", "prompts", "order", "shots", "seed", "after", "after_task", "task"),
    *("task_name", "learned", *RECORDED, "zero_shot", "fit_seconds", "size", "device", "error", "key"),
)


def format_csv(study: Study) -> str:
    """One line per record in the order of the plan; of a stream one line for each task after each task, from 1."""
    header, rows = (STREAM_HEADER, _stream_rows) if study.suite.is_stream else (HEADER, _rows)
    settings = ((setting, run) for setting, spot in study.spots.items() for run in spot.runs)
    lines = (row for setting, run in settings for row in rows(setting, run))
    return csv_text([header, *([line.get(name, "") for name in header] for line in lines)])


def _facts(setting: Setting, run: Run) -> dict[str, Any]:
    error = " ".join((run.error or "").split())
    return {**setting._asdict(), "seed": run.seed, "device": run.machine.device, "error": error, "key": run.key}


def _rows(setting: Setting, run: Run) -> Iterator[dict[str, Any]]:
    row = {**_facts(setting, run), **_values(run.metrics), "transductive": run.flags.transductive}
    if run.seconds is not None:
        row |= {"fit_seconds": run.seconds.fit, "predict_seconds": run.seconds.predict}
    yield row if run.size is None else {**row, "size": run.size}


def _stream_rows(setting: Setting, run: Run) -> Iterator[dict[str, Any]]:
    facts = {**_facts(setting, run), "order": setting.test, "learns": HeadRuns(setting.label, Spot([run])).learns}
    if run.stream is None or run.continual is None:
        yield facts
        return
    names, zero_shot = [task.name for task in run.stream.tasks], run.continual.zero_shot
    for t, step in enumerate(run.continual.steps, 1):
        after = {"after": t, "after_task": names[t - 1], "fit_seconds": step.seconds, "size": step.size}
        for i, metrics in enumerate(step.metrics, 1):
            task = {"task": i, "task_name": names[i - 1], "learned": i <= t, **_values(metrics)}
            yield {**facts, **after, **task, "zero_shot": zero_shot[i - 1] if zero_shot else ""}


def _values(metrics: Metrics | None) -> dict[str, float]:
    """Values of the recorded metrics that a record has."""
    return {name: metrics[name] for name in RECORDED if metrics is not None and name in metrics}
