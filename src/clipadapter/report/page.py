"""The report as an HTML page that loads no other file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipadapter import __version__
from clipadapter.bench.plots import WITHOUT_SHOTS
from clipadapter.bench.study import pivot_runs
from clipadapter.bench.tables import plain_name
from clipadapter.classifier.evaluation import Score
from clipadapter.data.thumbnails import encode_thumbnails
from clipadapter.doctor import FindingGroup, illustrate_findings, read_findings_css, render_findings
from clipadapter.metrics import metrics_shown, reliability
from clipadapter.metrics.detection import aurc, risk_coverage
from clipadapter.rendering.html import create_environment, read_asset
from clipadapter.rendering.method_colours import method_style
from clipadapter.utils.formatting import shorten_name
from clipadapter.utils.prediction import softmax

if TYPE_CHECKING:
    from clipadapter.report.report import Report

Array = NDArray[Any]
PictureKey = tuple[str, int]
"""("test" or "shots", row)"""
PACKAGE = "clipadapter.report"
THIS_MODEL = "this model"
"""Name of the model among the systems that are compared."""
UNCALIBRATED = "without calibration"
MAX_PAGE_LETTERS = 4_900_000
"""Size of a page of some thousand pictures: it opens at once, and is small enough for a mail."""
MIN_THUMBNAIL_LETTERS = 1_500_000
"""Size of all thumbnails together, if names and data of very many pictures exceed the size of the page."""
LETTERS_PER_THUMBNAIL = 8
"""Letters that a thumbnail takes besides its own."""
THUMBNAIL_SIDE, THUMBNAIL_QUALITY = 176, 68
"""Side in pixels: twice that of the page, for screens with two pixels per point."""
FINDING_SIDE = 160
MAX_FINDINGS_PER_KIND = 6
MAX_WORST_MISTAKES = 24
MAX_CURVE_POINTS = 200
MAX_SET_CLASSES = 20
RELIABILITY_BINS = 10


def render_report(report: Report) -> str:
    """The page; all text from users is escaped."""
    environment = create_environment(PACKAGE)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":"), "sort_keys": False}
    environment.filters.update(
        percent=_format_percent, interval=_format_interval, points=_format_points, number="{:,}".format
    )
    template, values = environment.get_template("report.html"), _template_values(report)
    pictures = _pictures_by_importance(report)
    # Rendered twice: the first page has no thumbnails, and its size says how large they may be.
    without_thumbnails = _insert_thumbnails(values["data"], pictures, [""] * len(pictures))
    page_letters = len(template.render(**values, left_out=without_thumbnails))
    budget = max(MIN_THUMBNAIL_LETTERS, MAX_PAGE_LETTERS - page_letters - LETTERS_PER_THUMBNAIL * len(pictures))
    paths = [path for _, path in pictures]
    thumbnails = encode_thumbnails(paths, THUMBNAIL_SIDE, THUMBNAIL_QUALITY, budget)
    return template.render(**values, left_out=_insert_thumbnails(values["data"], pictures, thumbnails))


def _template_values(report: Report) -> dict[str, Any]:
    """All values of the template without thumbnails."""
    diagnosis = report.doctor.diagnosis
    groups: tuple[FindingGroup, ...] = ()
    if diagnosis is not None:
        groups = illustrate_findings(diagnosis, per_kind=MAX_FINDINGS_PER_KIND, side=FINDING_SIDE)
    return {
        "report": report,
        "evaluation": report.evaluation,
        "metrics": metrics_shown("report", "single-label"),
        "model_metrics": report.metrics_by_model[THIS_MODEL].metrics,
        "uncertainty": report.uncertainty.to_dict(),
        "data": page_data(report),
        "worst": report.pictures.mistakes[:MAX_WORST_MISTAKES],
        "most_confused": _most_confused_classes(report),
        "groups": groups,
        "findings": render_findings(groups, level=3),
        "findings_css": read_findings_css(),
        "colours": {name: _colour(name, report) for name in report.metrics_by_model},
        "css": read_asset(PACKAGE, "report.css"),
        "js": read_asset(PACKAGE, "report.js"),
        "version": __version__,
    }


def _pictures_by_importance(report: Report) -> list[tuple[PictureKey, Path]]:
    """Key and path of the pictures to show. Those that the page needs most come first."""
    pictures = report.pictures
    mistakes = pictures.mistakes
    order = [("test", i) for i in mistakes]
    order += [("shots", int(j)) for i in mistakes[:MAX_WORST_MISTAKES] for j in pictures.nearest[i]]
    order += [("test", int(i)) for i in np.random.default_rng(0).permutation(len(pictures.test))]
    order += [("shots", int(j)) for i in mistakes for j in pictures.nearest[i]]
    order += [("shots", int(j)) for j in np.random.default_rng(0).permutation(len(pictures.shots))]
    parts = {"test": pictures.test, "shots": pictures.shots}
    paths = {(part, i): parts[part][i].path for part, i in order}  # each once, at its first position
    return [(key, path) for key, path in paths.items() if path is not None]


def _insert_thumbnails(
    data: dict[str, Any], pictures: Sequence[tuple[PictureKey, Path]], thumbnails: Sequence[str]
) -> dict[str, int]:
    """Insert thumbnails into the data, each once; returns how many test pictures and shots have none."""
    data["thumbs"] = [thumbnail for thumbnail in thumbnails if thumbnail]
    for part in ("test", "shots"):
        data[part]["thumb"] = [-1] * len(data[part]["name"])
    shown = (key for (key, _), thumbnail in zip(pictures, thumbnails, strict=True) if thumbnail)
    for position, (part, i) in enumerate(shown):
        data[part]["thumb"][i] = position
    return {part: data[part]["thumb"].count(-1) for part in ("test", "shots")}


def _most_confused_classes(report: Report) -> list[tuple[int, int] | None]:
    """For each class, the class that it is most often predicted as, and how often; None if all are right."""
    confusion = report.evaluation.model.evaluation.confusion.copy()
    np.fill_diagonal(confusion, 0)
    return [(int(row.argmax()), int(row.max())) if row.any() else None for row in confusion]


def page_data(report: Report) -> dict[str, Any]:
    """Columns of pictures, curves and points for the script of the page, as JSON values without thumbnails."""
    pictures, evaluation, projection = report.pictures, report.evaluation, report.projection
    systems = {THIS_MODEL: evaluation.model, **evaluation.baselines}
    return {
        "classes": [shorten_name(name) for name in pictures.class_names],
        "test": _test_columns(report),
        "shots": {
            "name": [shot.name for shot in pictures.shots],
            "label": [shot.label for shot in pictures.shots],
        },
        "thumbs": [],
        "curve": _learning_curve(report),
        "reliability": _reliability_curves(report),
        "risk": [
            {**_risk_coverage_curve(name, score), "colour": _colour(name, report)} for name, score in systems.items()
        ],
        "map": {
            "rows": projection.rows.tolist(),
            "views": [{"name": name, "xy": xy.round(4).ravel().tolist()} for name, xy in projection.views.items()],
        },
    }


def _test_columns(report: Report) -> dict[str, Any]:
    """One list per column, each with an entry per test picture."""
    pictures, answers = report.pictures, report.uncertainty.answers
    rows = np.arange(len(pictures.test))
    sets = answers.sets
    return {
        "name": [picture.name for picture in pictures.test],
        "label": pictures.labels.tolist(),
        "answer": pictures.predictions.tolist(),
        "p": pictures.probabilities[rows, pictures.predictions].round(4).tolist(),
        "q": pictures.probabilities[rows, pictures.labels].round(4).tolist(),
        "near": pictures.nearest.tolist(),
        "cosine": pictures.cosine.round(3).tolist(),
        "none": [reason if reason is not None else 0 for reason in answers.reasons],
        "set": None if sets is None else [np.flatnonzero(row)[:MAX_SET_CLASSES].tolist() for row in sets],
    }


def _learning_curve(report: Report) -> dict[str, Any] | None:
    runs = [run for run in report.evaluation.curve if run.metrics is not None]
    if not runs:
        return None
    table, model_head = pivot_runs(runs), report.evaluation.head
    series = []
    for row in sorted(table.rows, key=lambda row: row.label.split(" (")[0] != model_head):
        cells = [(n, table.cell(row, n)) for n in table.parts if table.cell(row, n).values]
        points = [[n, round(cell.mean, 5), round(cell.sd, 5), len(cell.values)] for n, cell in cells]
        is_model, own = row.label.split(" (")[0] == model_head, table.runs(row)
        name = plain_name(table, row)
        series.append(
            {
                "name": f"{name}, as this model" if is_model else name,
                "points": points,
                "colour": method_style(own[0].method).css,
                "level": own[0].method == WITHOUT_SHOTS,
            }
        )
    return {"shots": list(table.parts), "series": series}


def _reliability_curves(report: Report) -> list[dict[str, Any]]:
    """Of the model, and of its logits without calibration if calibration changes them."""
    score, calibrator = report.evaluation.model, report.model.uncertainty_.calibrator
    probabilities = {THIS_MODEL: score.probabilities}
    if calibrator.n or calibrator.temperature != 1:
        probabilities[UNCALIBRATED] = softmax(report.logits)
    return [
        {**_reliability_curve(name, p, score.labels), "colour": _colour(name, report)}
        for name, p in probabilities.items()
    ]


def _colour(system: str, report: Report) -> str:
    """The colour of a system in charts: that of its method."""
    if system == UNCALIBRATED:
        return "var(--soft)"
    return method_style(report.evaluation.head if system == THIS_MODEL else system).css


def _reliability_curve(name: str, p: Array, labels: Array) -> dict[str, Any]:
    confidence, is_right = np.minimum(p.max(axis=1), 1.0), p.argmax(axis=1) == labels
    bins = reliability(confidence, is_right, RELIABILITY_BINS)
    columns = zip(bins.confidence.round(4), bins.accuracy.round(4), bins.count, strict=True)
    error = reliability(confidence, is_right, mass="equal-mass").error
    return {"name": name, "bins": [[float(a), float(b), int(n)] for a, b, n in columns], "error": error}


def _risk_coverage_curve(name: str, score: Score) -> dict[str, Any]:
    confidence = score.probabilities.max(axis=1)
    is_right = score.probabilities.argmax(axis=1) == score.labels
    coverage, risk = risk_coverage(confidence, is_right)
    rows = np.unique(np.linspace(0, len(risk) - 1, min(MAX_CURVE_POINTS, len(risk))).round().astype(int))
    points = np.column_stack([coverage[rows], risk[rows]]).round(4)
    return {"name": name, "points": points.tolist(), "area": aurc(confidence, is_right)}


def _format_percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}"


def _format_interval(metric: Any, scale: float = 100, digits: int = 1) -> str:
    return f"{scale * metric.low:.{digits}f} to {scale * metric.high:.{digits}f}".replace("-", "−")


def _format_points(difference: Any) -> str:
    """A difference of accuracies in points, with its sign."""
    return f"{100 * difference.value:+.1f}".replace("-", "−")
