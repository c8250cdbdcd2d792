"""What the page's own script draws from, as JSON can hold it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench import Score, summarise
from clipadapter.metrics import reliability
from clipadapter.metrics.detection import aurc, risk_coverage
from clipadapter.prediction import softmax

if TYPE_CHECKING:
    from clipadapter.report.report import Report

Array = NDArray[Any]
WORST = 24
"""Mistakes that are shown one by one."""
BINS = 10
POINTS = 200
"""Points of a curve that are drawn at most."""
OWN = "this model"


def page_data(report: Report) -> dict[str, Any]:
    """Columns of pictures, curves and the map; small pictures are put in later."""
    rows, found = report.rows, report.evaluation
    return {
        "classes": list(rows.class_names),
        "test": _test(report),
        "shots": {"name": [one.name for one in rows.shots], "label": [one.label for one in rows.shots]},
        "thumbs": [],
        "curve": _curve(report),
        "reliability": _reliability(report),
        "risk": [_risk(name, score) for name, score in {OWN: found.model, **found.baselines}.items()],
        "map": {
            "rows": report.map.rows.tolist(),
            "views": [{"name": name, "xy": xy.round(4).ravel().tolist()} for name, xy in report.map.views.items()],
        },
    }


def _test(report: Report) -> dict[str, Any]:
    """One list a column, all of them as long as there are test pictures."""
    rows, answers = report.rows, report.sure.answers
    every = np.arange(len(rows.test))
    sets = answers.sets
    return {
        "name": [one.name for one in rows.test],
        "label": rows.labels.tolist(),
        "answer": rows.answer.tolist(),
        "p": rows.probabilities[every, rows.answer].round(4).tolist(),
        "q": rows.probabilities[every, rows.labels].round(4).tolist(),
        "near": rows.nearest.tolist(),
        "cosine": rows.cosine.round(3).tolist(),
        "none": [reason if reason is not None else 0 for reason in answers.reasons],
        "set": None if sets is None else [np.flatnonzero(row)[:20].tolist() for row in sets],
    }


def _curve(report: Report) -> dict[str, Any] | None:
    runs = [run for run in report.evaluation.curve if run.metrics is not None]
    if not runs:
        return None
    summary = summarise(runs)
    series = []
    own = report.evaluation.head
    for head in sorted(summary.heads, key=lambda head: head.split(" (")[0] != own):
        cells = [(n, summary.cells[head, n]) for n in summary.shots if summary.cells[head, n].values]
        points = [[n, round(cell.mean, 5), round(cell.sd, 5), len(cell.values)] for n, cell in cells]
        series.append({"name": f"{head}, as this model" if head.split(" (")[0] == own else head, "points": points})
    return {"shots": list(summary.shots), "series": series}


def _reliability(report: Report) -> list[dict[str, Any]]:
    """Of the model, and of its logits as they are, where calibration changed them."""
    found = report.evaluation.model
    told = {OWN: found.probabilities}
    if report.model.uncertainty_.calibrator.n or report.model.uncertainty_.calibrator.temperature != 1:
        told["without calibration"] = softmax(report.logits)
    return [_bins(name, p, found.labels) for name, p in told.items()]


def _bins(name: str, p: Array, labels: Array) -> dict[str, Any]:
    top, right = np.minimum(p.max(axis=1), 1.0), p.argmax(axis=1) == labels
    bins = reliability(top, right, BINS)
    columns = zip(bins.confidence.round(4), bins.accuracy.round(4), bins.count, strict=True)
    error = reliability(top, right, mass="equal-mass").error
    return {"name": name, "bins": [[float(a), float(b), int(n)] for a, b, n in columns], "error": error}


def _risk(name: str, score: Score) -> dict[str, Any]:
    sure = score.probabilities.max(axis=1)
    right = score.probabilities.argmax(axis=1) == score.labels
    coverage, risk = risk_coverage(sure, right)
    kept = np.unique(np.linspace(0, len(risk) - 1, min(POINTS, len(risk))).round().astype(int))
    points = np.column_stack([coverage[kept], risk[kept]]).round(4)
    return {"name": name, "points": points.tolist(), "area": aurc(sure, right)}
