"""What ``clipadapter bench run`` does only for streams of tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipadapter.cli.comparing import numbers
from clipadapter.errors import DataError, InputError

if TYPE_CHECKING:
    from clipadapter.bench import Estimate, Suite
    from clipadapter.bench.launch import SuiteResult


def shots_or_all(ctx: click.Context | None, param: click.Parameter | None, value: str | None) -> list[int] | None:
    """The numbers of a text such as ``4,16,all``, rising; an option's callback.

    >>> shots_or_all(None, None, "16,4"), len(shots_or_all(None, None, "16,all"))
    ([4, 16], 2)
    """
    if not value:
        return None
    from clipadapter.bench.suite import ALL

    words = [word.strip() for word in value.split(",")]
    few = [word for word in words if word != "all"]
    found = numbers(ctx, param, ",".join(few)) if few else []
    return [*found, *([ALL] if "all" in words else [])]


def amount(shots: int) -> str:
    """A number of shots, or "all"."""
    from clipadapter.bench.suite import ALL

    return "all" if shots == ALL else str(shots)


def streams_changed(suite: Suite, order: str | None, per_task: int | None) -> Suite:
    """The suite with what the command line changes of its streams.

    Raises:
        InputError: if it has none, or there is no such order.
    """
    from clipadapter.bench.continual.orders import ORDERS
    from clipadapter.bench.suite import ALL
    from clipadapter.registry import unknown

    if not suite.is_stream:
        said = [name for name, value in (("--order", order), ("--per-task", per_task)) if value is not None]
        said += ["--shots all"] if ALL in suite.shots else []
        if said:
            raise InputError(f"suite '{suite.name}' has no stream of tasks: leave {' and '.join(said)} out")
        return suite
    changes: dict[str, Any] = {} if per_task is None else {"classes_per_task": per_task}
    if order is not None:
        if order not in ORDERS:
            raise unknown("order", order, list(ORDERS))
        changes["orders"] = [ORDERS[order]]
    return suite.model_copy(update={"stream": suite.stream.model_copy(update=changes)})


def check_there(suite_name: str, cost: Estimate) -> None:
    """Refuse a stream before any work if one of its data sets is not on disk.

    Raises:
        DataError: if so; says what to do.
    """
    from clipadapter.bench.continual.sources import missing_data_message

    missing = [size.spec for size in cost.sizes if not size.ready]
    if missing:
        raise DataError(missing_data_message(suite_name, missing, [size.spec for size in cost.sizes if size.ready]))


def stream_facts(suite: Suite, cost: Estimate) -> list[tuple[str, str]]:
    """Lines on the tasks of a suite, for those who ask what it will do; none if it has no stream."""
    from clipadapter.bench.continual.orders import count_tasks

    if not suite.is_stream:
        return []
    known = [count_tasks(size.classes, suite.stream.classes_per_task) for size in cost.sizes]
    told = "each picture's own is told" if suite.stream.task_known else "nobody says which a picture is of"
    return [
        ("tasks", f"{sum(known)}, learned one after the other; all are measured after each, and {told}"),
        ("order", ", ".join(suite.stream.title(order) for order in suite.stream.orders)),
    ]


def stream_result(suite: Suite, found: SuiteResult, folder: Path) -> tuple[dict[str, Any], str]:
    """Figures of the streams that were run: for machines, and a table for each."""
    from clipadapter.bench import load_study, stream_table
    from clipadapter.bench.continual.summary import CONTINUAL_METRICS, HeadRuns
    from clipadapter.bench.report.tables import format_shots
    from clipadapter.bench.study import Setting

    study = load_study(folder, suite.name)
    groups: dict[Setting, list[HeadRuns]] = {}
    for setting, runs in study.runs_by_setting.items():
        own = [run for run in runs if run.key in found.keys]
        if own:
            groups.setdefault(setting._replace(label=""), []).append(HeadRuns(setting.label, own))
    data, texts = [], []
    for i, (where, heads) in enumerate(groups.items(), 1):
        runs = [run.model_copy(update={"head": one.label}) for one in heads for run in one.runs]
        texts.append(
            f"{where.data}, {format_shots(where.shots)}, tasks {where.test}\n{stream_table(runs, i == len(groups))}\n"
        )
        data += [
            {
                **{"data": where.data, "order": where.test, "shots": where.shots, "head": one.label},
                "learns": one.learns,
                **{name: one.cell(name).mean if one.cell(name).values else None for name in CONTINUAL_METRICS},
            }
            for one in heads
        ]
    return {"streams": data}, "".join(f"{text}\n" for text in texts)
