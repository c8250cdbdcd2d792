"""A report as one HTML page that asks for nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from clipadapter import __version__
from clipadapter.doctor import findings_css, findings_html, illustrated
from clipadapter.metrics import metrics_shown
from clipadapter.report._data import WORST, page_data
from clipadapter.report._thumbnails import thumbnails

if TYPE_CHECKING:
    from clipadapter.report.report import Report

WEIGHT = 4_900_000
"""Letters that a page of some thousand pictures has at most: it opens at once, and can be sent by mail."""
LEAST = 1_500_000
"""Letters of small pictures that there are in any case: names and figures of very many pictures are heavier yet."""
BESIDE = 8
"""Letters that a small picture costs beside its own."""
PER_KIND = 6
"""Findings of a kind that are shown."""


def render(report: Report) -> str:
    """The page; all text that a person may have named is escaped."""
    environment = Environment(
        loader=PackageLoader("clipadapter.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":"), "sort_keys": False}
    environment.filters.update(percent=_percent, interval=_interval, points=_points, number="{:,}".format)
    page, said = environment.get_template("report.html"), _said(report, environment)
    wanted = _wanted(report)
    bare = page.render(**said, left_out=_place(said["data"], wanted, [""] * len(wanted)))
    small = thumbnails([path for _, path in wanted], max(LEAST, WEIGHT - len(bare) - BESIDE * len(wanted)))
    return page.render(**said, left_out=_place(said["data"], wanted, small))


def _said(report: Report, environment: Environment) -> dict[str, Any]:
    """All that the template asks for but the small pictures."""
    diagnosis = report.findings.diagnosis
    groups = () if diagnosis is None else illustrated(diagnosis, per_kind=PER_KIND, side=80)
    return {
        "report": report,
        "metrics": metrics_shown("report", "single-label"),
        "found": report.evaluation,
        "sure": report.sure.to_dict(),
        "data": page_data(report),
        "worst": report.rows.mistakes[:WORST],
        "taken_for": _taken_for(report),
        "groups": groups,
        "findings": findings_html(groups, level=3),
        "doctor_css": findings_css(),
        "version": __version__,
        **{name: _asset(environment, f"report.{name}") for name in ("css", "js")},
    }


def _wanted(report: Report) -> list[tuple[tuple[str, int], Any]]:
    """(test or shots, row) and path of the pictures to show, those first that must not be missing."""
    rows = report.rows
    mistakes = rows.mistakes
    order = [("test", i) for i in mistakes]
    order += [("shots", int(j)) for i in mistakes[:WORST] for j in rows.nearest[i]]
    others = np.random.default_rng(0).permutation(len(rows.test))
    order += [("test", int(i)) for i in others]
    order += [("shots", int(j)) for i in mistakes for j in rows.nearest[i]]
    order += [("shots", int(j)) for j in np.random.default_rng(0).permutation(len(rows.shots))]
    items = {"test": rows.test, "shots": rows.shots}
    paths = {(kind, i): items[kind][i].path for kind, i in order}  # each once, where it came first
    return [(key, path) for key, path in paths.items() if path is not None]


def _place(data: dict[str, Any], wanted: list[Any], small: list[str]) -> dict[str, int]:
    """Put small pictures into the data, each once; how many of the test pictures and of the shots have none."""
    data["thumbs"] = [letters for letters in small if letters]
    for kind in ("test", "shots"):
        data[kind]["thumb"] = [-1] * len(data[kind]["name"])
    shown = (key for (key, _), letters in zip(wanted, small, strict=True) if letters)
    for at, (kind, i) in enumerate(shown):
        data[kind]["thumb"][i] = at
    return {kind: data[kind]["thumb"].count(-1) for kind in ("test", "shots")}


def _taken_for(report: Report) -> list[tuple[int, int] | None]:
    """For each class the one that it is most often taken for, and how often; None if it never is."""
    wrong = report.evaluation.model.evaluation.confusion.copy()
    np.fill_diagonal(wrong, 0)
    return [(int(row.argmax()), int(row.max())) if row.any() else None for row in wrong]


def _asset(environment: Environment, name: str) -> Markup:
    """Our own CSS or JavaScript, which stands in the page as it is."""
    source, _, _ = environment.loader.get_source(environment, name)  # type: ignore[union-attr]
    return Markup(source)  # noqa: S704 - no data in it


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}"


def _interval(figure: Any, scale: float = 100, digits: int = 1) -> str:
    return f"{scale * figure.low:.{digits}f} to {scale * figure.high:.{digits}f}".replace("-", "−")


def _points(figure: Any) -> str:
    """A difference of accuracies in points, with its sign."""
    return f"{100 * figure.value:+.1f}".replace("-", "−")
