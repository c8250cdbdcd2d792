"""From a study to its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from clipadapter.bench.protocols import create_protocol
from clipadapter.bench.report import Metric
from clipadapter.bench.reports.means import with_harmonic, with_transfer_mean
from clipadapter.bench.reports.tables import Axis, Figure, Row, Table, shots_text
from clipadapter.bench.study import Place, Study, distinct


def tables(study: Study, metric: Metric = "accuracy") -> list[Table]:
    """The tables of a study: their columns are test parts where these are the point, else shots.

    With one number of shots and several encoders, the columns are encoders.
    """
    axis = _axis(study)
    outer = [name for name in ("data", "encoder", "test", "shots") if name != axis]
    found = []
    for values in product(*(distinct(study.places, name) for name in outer)):
        fixed = dict(zip(outer, values, strict=True))
        places = [place for place in study.places if all(getattr(place, k) == v for k, v in fixed.items())]
        if any(study.at(place) for place in places):
            found.append(_table(places, _heading(study, fixed), fixed, axis, study, metric))
    return [with_transfer_mean(with_harmonic(table)) for table in found]


def _axis(study: Study) -> Axis:
    if create_protocol(study.suite.protocol).report_columns == "test":
        return "test"
    one = len(distinct(study.places, "shots")) == 1
    return "encoder" if one and len(distinct(study.places, "encoder")) > 1 else "shots"


def _heading(study: Study, fixed: Mapping[str, str | int]) -> str:
    parts = [str(fixed["data"])]
    several = {name for name in fixed if len(distinct(study.places, name)) > 1}
    parts += [str(fixed[name]) for name in ("encoder", "test") if name in several]
    if "shots" in fixed:
        parts.append(shots_text(int(fixed["shots"])))
    return ", ".join(parts)


def _table(
    places: Sequence[Place], title: str, fixed: Mapping[str, str | int], axis: Axis, study: Study, metric: Metric
) -> Table:
    rows = tuple(
        Row(str(label), str(prompts))
        for label in distinct(places, "label")
        for prompts in distinct([place for place in places if place.label == label], "prompts")
    )
    columns = tuple(distinct(places, axis))
    by_place = {(Row(place.label, place.prompts), getattr(place, axis)): place for place in places}
    figures = {}
    for spot in product(rows, columns):
        place = by_place.get(spot)
        figures[spot] = Figure() if place is None else _figure(study, place, metric)
    in_row = {row: [r for p in places if Row(p.label, p.prompts) == row for r in study.at(p)] for row in rows}
    in_column = {c: [r for p in places if getattr(p, axis) == c for r in study.at(p)] for c in columns}
    return Table(title, fixed, axis, rows, columns, figures, in_row, in_column, metric)


def _figure(study: Study, place: Place, metric: Metric) -> Figure:
    cell = study.cell(place, metric)
    return Figure(study.by_seed(place, metric), study.draws(place), cell.failed, cell.missing)
