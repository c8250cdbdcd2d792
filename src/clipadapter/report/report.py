"""The report on a fitted model: measurements, single pictures, findings of the doctor, and the page that shows them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter import __version__
from clipadapter.bench.evaluation import ModelEvaluation, evaluate_model
from clipadapter.bench.plots import WITHOUT_SHOTS
from clipadapter.bench.projection import MAX_POINTS, METHOD_TITLES, Method, project
from clipadapter.bench.study import pivot_runs
from clipadapter.bench.tables import plain_name
from clipadapter.classifier import FewShotClassifier
from clipadapter.classifier.evaluation import Score, measure_answers
from clipadapter.data import Dataset, Sample
from clipadapter.data.thumbnails import encode_thumbnails
from clipadapter.doctor import KINDS, Diagnosis, diagnose, render_findings
from clipadapter.errors import ClipAdapterError, InputError
from clipadapter.explain.explanation import name_shot, nearest_rows
from clipadapter.features import FeatureSet
from clipadapter.metrics import MetricsWithIntervals, bootstrap_metrics, metrics_shown, reliability
from clipadapter.metrics.detection import aurc, auroc, fpr_at, risk_coverage
from clipadapter.rendering.html import create_environment, read_asset
from clipadapter.rendering.method_colours import method_style
from clipadapter.uncertainty import Answers, DecisionOptions
from clipadapter.utils.files import write_atomically
from clipadapter.utils.formatting import shorten_name
from clipadapter.utils.prediction import softmax

Array = NDArray[Any]
THIS_MODEL = "this model"  # name of the model among the systems that are compared
SHOT_COUNT_KINDS = ("no-shots", "few-shots", "imbalance")
"""Kinds of findings that count the shots. They are wrong if files of shots are missing."""
MIN_TSNE_POINTS = 10  # points below which neighbourhoods, and so t-SNE, mean nothing
NEAREST_SHOTS = 3  # shots that are shown with each picture
DEFAULT_REJECT_RATE, DEFAULT_COVERAGE = 0.05, 0.9


@dataclass(frozen=True, eq=False)
class Report:
    """Measurements of a model on test pictures."""

    evaluation: ModelEvaluation  # of the model and of its baselines
    metrics_by_model: dict[str, MetricsWithIntervals]  # of the model, which comes first, and of its baselines, by name
    answers: Answers  # for the test pictures
    uncertainty: dict[str, Any]  # rejection and prediction sets, as requested and as measured
    pictures: PictureTable  # the test pictures and the shots one by one
    projection: Projection  # features in the plane
    doctor: DoctorResults  # findings, or why there are none
    model: FewShotClassifier  # fitted

    def to_dict(self) -> dict[str, Any]:
        """The measurements as JSON values, without single pictures."""
        return {
            **self.evaluation.to_dict(),
            "figures": {name: metrics.to_dict() for name, metrics in self.metrics_by_model.items()},
            "uncertainty": self.uncertainty,
            "findings": None if self.doctor.diagnosis is None else self.doctor.diagnosis.counts,
        }

    def to_html(self) -> str:
        """The report as an HTML page that loads no other file. All text from users is escaped."""
        environment = create_environment(PACKAGE)
        environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":"), "sort_keys": False}
        environment.filters.update(
            percent=lambda share, digits=1: f"{100 * share:.{digits}f}",
            points=lambda difference: f"{100 * difference.value:+.1f}".replace("-", "−"),  # with its sign
            interval=_format_interval,
            number="{:,}".format,
        )
        data, diagnosis, evaluation = page_data(self), self.doctor.diagnosis, self.evaluation
        # Of each class, which one it is most often predicted as, and how often; None if all are right.
        confusion = evaluation.model.evaluation.confusion.copy()
        np.fill_diagonal(confusion, 0)
        options = {"per_kind": MAX_FINDINGS_PER_KIND, "side": FINDING_SIDE, "level": 3}
        return environment.get_template("report.html").render(
            report=self,
            evaluation=evaluation,
            metrics=metrics_shown("report", "single-label"),
            model_metrics=self.metrics_by_model[THIS_MODEL].metrics,
            uncertainty=self.uncertainty,
            data=data,
            worst=evaluation.model.mistakes[:MAX_WORST_MISTAKES],
            predicted=evaluation.model.evaluation.predictions.predicted,
            most_confused=[(int(row.argmax()), int(row.max())) if row.any() else None for row in confusion],
            kinds=KINDS,
            findings="" if diagnosis is None else render_findings(diagnosis, **options),
            findings_css=read_asset("clipadapter.doctor", "findings.css"),
            colours={name: _colour(name, self) for name in self.metrics_by_model},
            css=read_asset(PACKAGE, "report.css"),
            js=read_asset(PACKAGE, "report.js"),
            version=__version__,
            left_out=_insert_thumbnails(data, _pictures_by_importance(self)),
        )

    def write(self, path: str | Path) -> Path:
        """Write the page, completely or not at all; its folder is created."""
        return write_atomically(path, self.to_html())


def make_report(
    model: FewShotClassifier,
    dataset: Dataset,
    *,
    outliers: Sequence[Path] = (),
    reject: float | None = None,
    coverage: float | None = None,
    curve: bool = True,
    seeds: Sequence[int] = (1, 2, 3),
    doctor: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Measure a fitted model, and collect the pictures that explain its mistakes.

    The rates of rejection and coverage are those of the model by default, else 5 and 90 %. The seed is that of the
    bootstrap, the projection and the doctor's folds.

    >>> import numpy as np, tempfile
    >>> from PIL import Image
    >>> from clipadapter.data import load_dataset
    >>> root = Path(tempfile.mkdtemp())
    >>> for colour in ("red", "blue"):
    ...     (root / colour).mkdir()
    ...     Image.new("RGB", (8, 8), colour).save(root / colour / "1.png")
    >>> data = load_dataset(root)
    >>> model = FewShotClassifier(encoder="toy", cache=None).fit(data.paths, data.labels)
    >>> report = make_report(model, data, doctor=False)
    >>> report.metrics_by_model["this model"].metrics["accuracy"].value, len(report.pictures.test)
    (1.0, 2)
    """
    if dataset.multilabel or model.uncertainty_.multilabel is not None:
        raise InputError(
            f"the report needs one label per picture, but the model or '{dataset.name}' has several: use "
            "clipadapter eval"
        )
    evaluation = evaluate_model(model, dataset, curve=curve, seeds=seeds, progress=progress)
    strange: Array | None = None
    if outliers:
        no_label = ["none of these"]  # feature sets have labels, and these pictures have none
        strange = model.extract_features(outliers, no_label * len(outliers), no_label, views=1).plain
    test, rates = evaluation.test, {"reject": reject, "coverage": coverage}
    answers, uncertainty = measure_uncertainty(model, test.plain, evaluation.model, **rates, outliers=strange)
    pictures = collect_pictures(dataset, evaluation, model.support_)
    predictions = {name: one.evaluation.predictions for name, one in _systems(evaluation).items()}
    findings = DoctorResults(why_not_run="it was switched off (--no-doctor)")
    return Report(
        evaluation=evaluation,
        metrics_by_model=bootstrap_metrics(predictions, seed=seed),
        answers=answers,
        uncertainty=uncertainty,
        pictures=pictures,
        projection=project_features(test.final, model.support_.final, seed),
        doctor=run_doctor(model, pictures, seed, progress) if doctor else findings,
        model=model,
    )


def _systems(evaluation: ModelEvaluation) -> dict[str, Score]:
    """The scores of the model, which comes first, and of its baselines."""
    return {THIS_MODEL: evaluation.model, **evaluation.baselines}


# ---- Findings of the doctor ----


@dataclass(frozen=True, eq=False)
class DoctorResults:
    """Findings of the doctor, or why it was not run."""

    # Of the shots with existing files (split train) and the test pictures (split test)
    diagnosis: Diagnosis | None = None
    why_not_run: str = ""  # why there is no diagnosis
    n_missing_shots: int = 0  # shots without an existing file


def run_doctor(model: FewShotClassifier, pictures: PictureTable, seed: int, progress: bool) -> DoctorResults:
    """Find faults in shots and test pictures together, so that a picture in both is found."""
    names = pictures.class_names
    samples = tuple(
        Sample(picture.path.absolute(), names[picture.label], split)
        for split, part in (("train", pictures.shots), ("test", pictures.test))
        for picture in part
        if picture.path is not None and picture.path.is_file()
    )
    n_shots = sum(sample.split == "train" for sample in samples)
    if not samples:
        return DoctorResults(why_not_run="the files of the pictures do not exist any more")
    root = Path(os.path.commonpath([sample.path.parent for sample in samples]))
    # `diagnose` encodes class text again from the prompts, and that sets attributes of the model: so it gets a copy.
    model = copy(model)
    model.descriptions = model.prompts_
    try:
        diagnosis = diagnose(Dataset("shots and test", root, samples, names), model, seed=seed, progress=progress)
    except ClipAdapterError as error:  # a missing extra, or deleted files: the report is made without a diagnosis
        return DoctorResults(why_not_run=str(error))
    if n_shots < len(pictures.shots) or not n_shots:
        findings = tuple(finding for finding in diagnosis.findings if finding.kind not in SHOT_COUNT_KINDS)
        diagnosis = replace(diagnosis, findings=findings)
    return DoctorResults(diagnosis, n_missing_shots=len(pictures.shots) - n_shots)


# ---- Pictures one by one ----


@dataclass(frozen=True)
class ReportPicture:
    """One picture."""

    path: Path | None  # of the file; None if that is not known
    name: str  # its file and the folder above it, as printable text
    label: int  # position of its class


@dataclass(frozen=True, eq=False)
class PictureTable:
    """Pictures one by one."""

    test: tuple[ReportPicture, ...]  # m test pictures
    shots: tuple[ReportPicture, ...]  # n shots of the model
    class_names: tuple[str, ...]  # of all classes, in order
    nearest: Array  # (m, k) the shots most similar to each picture, the nearest first
    cosine: Array  # (m, k) their similarity


def collect_pictures(dataset: Dataset, evaluation: ModelEvaluation, support: FeatureSet) -> PictureTable:
    """The pictures of an evaluation."""
    names = support.class_names
    position = {name: i for i, name in enumerate(names)}
    paths = [dataset.samples[i].path for i in evaluation.test.provenance["rows"]]
    test = [_picture(path, int(k)) for path, k in zip(paths, evaluation.model.labels, strict=True)]
    shots = []
    for i, label in enumerate(support.y):
        _, source, is_path = name_shot(support, i)
        k = position[label]
        shots.append(_picture(Path(source), k) if is_path else ReportPicture(None, source, k))
    nearest, cosine = nearest_rows(np.asarray(evaluation.test.final), support.final, NEAREST_SHOTS)
    return PictureTable(tuple(test), tuple(shots), tuple(names), nearest, cosine)


def _picture(path: Path, label: int) -> ReportPicture:
    # Not the whole path: the page may be given to others, and must not name the folders of this machine.
    name = "/".join(path.parts[-2:])
    return ReportPicture(path, name.encode(errors="backslashreplace").decode(), label)


# ---- Rejection and prediction sets ----


def rejection_scores(answers: Answers) -> Array:
    """Score of "none of these"; one minus the largest probability if the model has no such score."""
    return 1 - answers.probabilities.max(axis=1) if answers.ood_scores is None else answers.ood_scores


def measure_uncertainty(
    model: FewShotClassifier,
    features: Array,
    result: Score,
    *,
    reject: float | None = None,
    coverage: float | None = None,
    outliers: Array | None = None,
) -> tuple[Answers, dict[str, Any]]:
    """Predict with rejection and prediction sets, as far as the model has learned them; features have all blocks.

    Returns the answers for the test pictures, and the rates that were requested and measured as JSON values.
    """
    uncertainty, defaults = model.uncertainty_, model.uncertainty_.decisions
    reject_rate = None if uncertainty.rejector is None else reject or defaults.reject or DEFAULT_REJECT_RATE
    set_coverage = None if uncertainty.conformal is None else coverage or defaults.coverage or DEFAULT_COVERAGE
    decisions = DecisionOptions(reject_rate, set_coverage, defaults.costs)

    width = model.support_.blocks[0].width  # "none of these" reads the block final

    def predict(X: Array, logits: Array) -> Answers:
        return uncertainty.answer(logits, X[:, :width], decisions, [head.logits(X) for head in model.fold_heads_])

    answers = predict(features, result.logits)
    measured = measure_answers(decisions, answers, result)
    rates: dict[str, Any] = {}
    if "reject" in measured:
        rates["reject"] = {"requested": measured["reject"], "measured": measured["rejected"]}
    if answers.sets is not None:
        rates["sets"] = {
            "requested": measured["coverage"],
            "measured": measured["covered"],
            "mean_size": measured["set_size"],
            "single": float((answers.sets.sum(axis=1) == 1).mean()),
        }
    if outliers is not None:
        of_outliers = predict(outliers, model.head_.logits(outliers))
        scores, outlier_scores = rejection_scores(answers), rejection_scores(of_outliers)
        rates["outliers"] = {
            "pictures": len(outlier_scores),
            "auroc": auroc(scores, outlier_scores),
            "fpr95": fpr_at(scores, outlier_scores),
            "rejected": float(of_outliers.rejected.mean()) if "reject" in measured else None,
        }
    if "cost" in measured:
        rates["cost"] = {"mean": measured["cost"], "of_the_likeliest": measured["cost_of_likeliest"]}
    return answers, rates


# ---- Features in the plane ----


@dataclass(frozen=True, eq=False)
class Projection:
    """Points in the plane."""

    rows: Array  # (k,) which of the given features are drawn
    views: dict[str, Array]  # (k, 2) coordinates in 0..1 by name of the method; the one to show first comes first


def project_features(test: Array, shots: Array, seed: int = 0) -> Projection:
    """PCA and t-SNE of (m, d) test features and (n, d) shots, rows m to m + n - 1, or of some of them."""
    X = np.concatenate([np.asarray(test), np.asarray(shots)])
    rows = np.linspace(0, len(X) - 1, min(len(X), MAX_POINTS)).astype(int)
    X = X[rows]
    methods: list[Method] = ["tsne", "pca"] if len(X) >= MIN_TSNE_POINTS else ["pca"]
    views: dict[str, Array] = {}
    with suppress(InputError):  # too few points, or all the same: there is nothing to draw
        for method in methods:
            points = project(X, method, seed)
            low, high = points.min(axis=0), points.max(axis=0)
            extent = max(float((high - low).max()), 1e-12)  # both directions are scaled by one factor
            views[METHOD_TITLES[method]] = (points - (low + high) / 2) / extent + 0.5
    return Projection(rows, views)


# ---- The page ----

PictureKey = tuple[str, int]  # ("test" or "shots", row)
PACKAGE = "clipadapter.report"
UNCALIBRATED = "without calibration"
MAX_THUMBNAIL_LETTERS = 4_000_000
"""Size of all thumbnails together: a page of some thousand pictures opens at once, and is small enough for a mail."""
THUMBNAIL_SIDE, THUMBNAIL_QUALITY = 176, 68
"""Side in pixels: twice that of the page, for screens with two pixels per point."""
FINDING_SIDE = 160
MAX_FINDINGS_PER_KIND = 6
MAX_WORST_MISTAKES = 24
MAX_CURVE_POINTS = 200
MAX_SET_CLASSES = 20
RELIABILITY_BINS = 10


def _pictures_by_importance(report: Report) -> list[tuple[PictureKey, Path]]:
    """Key and path of the pictures to show. Those that the page needs most come first."""
    pictures = report.pictures
    mistakes = report.evaluation.model.mistakes
    order = [("test", i) for i in mistakes]
    order += [("shots", int(j)) for i in mistakes[:MAX_WORST_MISTAKES] for j in pictures.nearest[i]]
    order += [("test", int(i)) for i in np.random.default_rng(0).permutation(len(pictures.test))]
    order += [("shots", int(j)) for i in mistakes for j in pictures.nearest[i]]
    order += [("shots", int(j)) for j in np.random.default_rng(0).permutation(len(pictures.shots))]
    parts = {"test": pictures.test, "shots": pictures.shots}
    paths = {(part, i): parts[part][i].path for part, i in order}  # each once, at its first position
    return [(key, path) for key, path in paths.items() if path is not None]


def _insert_thumbnails(data: dict[str, Any], pictures: Sequence[tuple[PictureKey, Path]]) -> dict[str, int]:
    """Insert thumbnails into the data, each once; returns how many test pictures and shots have none."""
    paths = [path for _, path in pictures]
    thumbnails = encode_thumbnails(paths, THUMBNAIL_SIDE, THUMBNAIL_QUALITY, MAX_THUMBNAIL_LETTERS)
    data["thumbs"] = [thumbnail for thumbnail in thumbnails if thumbnail]
    for part in ("test", "shots"):
        data[part]["thumb"] = [-1] * len(data[part]["name"])
    shown = (key for (key, _), thumbnail in zip(pictures, thumbnails, strict=True) if thumbnail)
    for position, (part, i) in enumerate(shown):
        data[part]["thumb"][i] = position
    return {part: data[part]["thumb"].count(-1) for part in ("test", "shots")}


def page_data(report: Report) -> dict[str, Any]:
    """Columns of pictures, curves and points for the script of the page, as JSON values without thumbnails."""
    pictures, evaluation, projection = report.pictures, report.evaluation, report.projection
    predictions, rows = evaluation.model.evaluation.predictions, np.arange(evaluation.n_test)
    answers, sets = report.answers, report.answers.sets
    return {
        "classes": [shorten_name(name) for name in pictures.class_names],
        "test": {  # one list per column, each with an entry per test picture
            "name": [picture.name for picture in pictures.test],
            "label": predictions.labels.tolist(),
            "answer": predictions.predicted.tolist(),
            "p": predictions.probabilities.max(axis=1).round(4).tolist(),
            "q": predictions.probabilities[rows, predictions.labels].round(4).tolist(),
            "near": pictures.nearest.tolist(),
            "cosine": pictures.cosine.round(3).tolist(),
            "none": [reason if reason is not None else 0 for reason in answers.reasons],
            "set": None if sets is None else [np.flatnonzero(row)[:MAX_SET_CLASSES].tolist() for row in sets],
        },
        "shots": {"name": [shot.name for shot in pictures.shots], "label": [shot.label for shot in pictures.shots]},
        "thumbs": [],
        "curve": _learning_curve(evaluation),
        "reliability": _reliability_curves(report),
        "risk": [_risk_coverage_curve(name, score, report) for name, score in _systems(evaluation).items()],
        "map": {
            "rows": projection.rows.tolist(),
            "views": [{"name": name, "xy": xy.round(4).ravel().tolist()} for name, xy in projection.views.items()],
        },
    }


def _learning_curve(evaluation: ModelEvaluation) -> dict[str, Any] | None:
    runs = [run for run in evaluation.curve if run.metrics is not None]
    if not runs:
        return None
    table, series = pivot_runs(runs), []
    for row in sorted(table.rows, key=lambda row: row.label.split(" (")[0] != evaluation.head):
        cells = [(n, table.cell(row, n)) for n in table.parts if table.cell(row, n).values]
        name, method = plain_name(table, row), table.runs(row)[0].method
        series.append(
            {
                "name": f"{name}, as this model" if row.label.split(" (")[0] == evaluation.head else name,
                "points": [[n, round(cell.mean, 5), round(cell.sd, 5), len(cell.values)] for n, cell in cells],
                "colour": method_style(method).css,
                "level": method == WITHOUT_SHOTS,
            }
        )
    return {"shots": list(table.parts), "series": series}


def _reliability_curves(report: Report) -> list[dict[str, Any]]:
    """Of the model, and of its logits without calibration if calibration changes them."""
    score, calibrator = report.evaluation.model, report.model.uncertainty_.calibrator
    probabilities, curves = {THIS_MODEL: score.probabilities}, []
    if calibrator.n or calibrator.temperature != 1:
        probabilities[UNCALIBRATED] = softmax(score.logits)
    for name, p in probabilities.items():
        confidence, is_right = np.minimum(p.max(axis=1), 1.0), p.argmax(axis=1) == score.labels
        bins = reliability(confidence, is_right, RELIABILITY_BINS)
        columns = (bins.confidence.round(4).tolist(), bins.accuracy.round(4).tolist(), bins.count.tolist())
        error = reliability(confidence, is_right, mass="equal-mass").error
        points = list(zip(*columns, strict=True))
        curves.append({"name": name, "bins": points, "error": error, "colour": _colour(name, report)})
    return curves


def _risk_coverage_curve(name: str, score: Score, report: Report) -> dict[str, Any]:
    confidence, is_right = score.probabilities.max(axis=1), score.evaluation.predictions.correct
    coverage, risk = risk_coverage(confidence, is_right)
    rows = np.unique(np.linspace(0, len(risk) - 1, min(MAX_CURVE_POINTS, len(risk))).round().astype(int))
    points = np.column_stack([coverage[rows], risk[rows]]).round(4).tolist()
    return {"name": name, "points": points, "area": aurc(confidence, is_right), "colour": _colour(name, report)}


def _colour(system: str, report: Report) -> str:
    """The colour of a system in charts: that of its method."""
    if system == UNCALIBRATED:
        return "var(--soft)"
    return method_style(report.evaluation.head if system == THIS_MODEL else system).css


def _format_interval(metric: Any, scale: float = 100, digits: int = 1) -> str:
    return f"{scale * metric.low:.{digits}f} to {scale * metric.high:.{digits}f}".replace("-", "−")
