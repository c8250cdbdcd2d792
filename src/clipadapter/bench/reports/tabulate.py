"""From a study to its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from clipadapter.bench.protocols import create_protocol
from clipadapter.bench.report import Metric
from clipadapter.bench.reports.means import with_harmonic, with_transfer_mean
from clipadapter.bench.reports.tables import Axis, Figure, Row, Table, shots_text
from clipadapter.bench.study import Setting, Study, distinct


def tables(study: Study, metric: Metric = "accuracy") -> list[Table]:
    """The tables of a study: their columns are test parts where these are the point, else shots.

    With one number of shots and several encoders, the columns are encoders.
    """
    axis = _axis(study)
    outer = [name for name in ("data", "encoder", "test", "shots") if name != axis]
    found = []
    for values in product(*(distinct(study.settings, name) for name in outer)):
        fixed = dict(zip(outer, values, strict=True))
        settings = [setting for setting in study.settings if all(getattr(setting, k) == v for k, v in fixed.items())]
        if any(study.at(setting) for setting in settings):
            found.append(_table(settings, _heading(study, fixed), fixed, axis, study, metric))
    return [with_transfer_mean(with_harmonic(table)) for table in found]


def _axis(study: Study) -> Axis:
    if create_protocol(study.suite.protocol).report_columns == "test":
        return "test"
    one = len(distinct(study.settings, "shots")) == 1
    return "encoder" if one and len(distinct(study.settings, "encoder")) > 1 else "shots"


def _heading(study: Study, fixed: Mapping[str, str | int]) -> str:
    parts = [str(fixed["data"])]
    several = {name for name in fixed if len(distinct(study.settings, name)) > 1}
    parts += [str(fixed[name]) for name in ("encoder", "test") if name in several]
    if "shots" in fixed:
        parts.append(shots_text(int(fixed["shots"])))
    return ", ".join(parts)


def _table(
    settings: Sequence[Setting], title: str, fixed: Mapping[str, str | int], axis: Axis, study: Study, metric: Metric
) -> Table:
    rows = tuple(
        Row(str(label), str(prompts))
        for label in distinct(settings, "label")
        for prompts in distinct([setting for setting in settings if setting.label == label], "prompts")
    )
    columns = tuple(distinct(settings, axis))
    by_setting = {(Row(setting.label, setting.prompts), getattr(setting, axis)): setting for setting in settings}
    figures = {}
    for spot in product(rows, columns):
        setting = by_setting.get(spot)
        figures[spot] = Figure() if setting is None else _figure(study, setting, metric)
    in_row = {row: [r for p in settings if Row(p.label, p.prompts) == row for r in study.at(p)] for row in rows}
    in_column = {c: [r for p in settings if getattr(p, axis) == c for r in study.at(p)] for c in columns}
    return Table(title, fixed, axis, rows, columns, figures, in_row, in_column, metric)


def _figure(study: Study, setting: Setting, metric: Metric) -> Figure:
    cell = study.cell(setting, metric)
    return Figure(study.by_seed(setting, metric), study.draws(setting), cell.failed, cell.missing)
