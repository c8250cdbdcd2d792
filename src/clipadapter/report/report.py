"""A fitted model and a test part to a `Report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from clipadapter.bench import ModelEvaluation, evaluate_model
from clipadapter.classifier import FewShotClassifier
from clipadapter.data import Dataset
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.files import write_atomically
from clipadapter.metrics import MetricsWithIntervals, bootstrap_metrics
from clipadapter.report._findings import Findings, look
from clipadapter.report.page import render
from clipadapter.report.pictures import Rows, rows_of
from clipadapter.report.projection import Map, draw_map
from clipadapter.report.uncertainty import Sure, ask


@dataclass(frozen=True, eq=False)
class Report:
    """What there is to say of a model.

    Args:
        evaluation: its figures and those of its baselines.
        figures: the same with intervals, by name, the model first.
        sure: "none of these" and sets of classes, asked for and found.
        rows: the test pictures and the shots one by one.
        map: features in the plane.
        findings: of the doctor, or why there are none.
        logits: (m, c) of the test pictures.
        model: the fitted model.
    """

    evaluation: ModelEvaluation
    figures: dict[str, MetricsWithIntervals]
    sure: Sure
    rows: Rows
    map: Map
    findings: Findings
    logits: NDArray[Any]
    model: FewShotClassifier

    def to_dict(self) -> dict[str, Any]:
        """The figures, for JSON; nothing of single pictures."""
        return {
            **self.evaluation.to_dict(),
            "figures": {name: found.to_dict() for name, found in self.figures.items()},
            "trust": self.sure.to_dict(),
            "findings": self.findings.counts,
        }

    def to_html(self) -> str:
        """The page: it asks for nothing else, and can be opened from a file."""
        return render(self)

    def write(self, path: str | Path) -> Path:
        """Write the page, whole or not at all.

        Args:
            path: of the file; its folder is made.

        Raises:
            InputError: if it can't be written.
        """
        return write_atomically(path, self.to_html())


def make_report(
    model: FewShotClassifier,
    dataset: Dataset,
    *,
    background: Sequence[Path] = (),
    reject: float | None = None,
    coverage: float | None = None,
    curve: bool = True,
    seeds: Sequence[int] = (1, 2, 3),
    doctor: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Measure a fitted model and gather what explains the figures.

    Args:
        model: fitted, one label a picture.
        dataset: labelled test pictures.
        background: pictures of none of the classes.
        reject: share of test pictures that may be called none of the classes; the model's if not given, else 5 %.
        coverage: share of test pictures whose class is to be in the set; likewise, else 90 %.
        curve: fit on fewer of the model's shots too.
        seeds: of these draws.
        doctor: look for what is wrong with shots and test pictures.
        seed: of the bootstrap, the map and the doctor's folds.
        progress: show bars on stderr.

    Raises:
        InputError: if pictures may have several labels, or a label is no class of the model.
        DataError: if a picture has no label, or none can be read.

    >>> import numpy as np, tempfile
    >>> from PIL import Image
    >>> from clipadapter.data import load_dataset
    >>> root = Path(tempfile.mkdtemp())
    >>> for colour in ("red", "blue"):
    ...     (root / colour).mkdir()
    ...     Image.new("RGB", (8, 8), colour).save(root / colour / "1.png")
    >>> data = load_dataset(root)
    >>> model = FewShotClassifier(encoder="toy", cache=None).fit(data.paths, data.labels)
    >>> found = make_report(model, data, doctor=False)
    >>> found.figures["this model"].metrics["accuracy"].value, len(found.rows.test)
    (1.0, 2)
    """
    _check_single(model, dataset)
    found = evaluate_model(model, dataset, curve=curve, seeds=seeds, progress=progress)
    strange = _plain(model, background) if background else None
    systems = {"this model": found.model, **found.baselines}
    told = bootstrap_metrics({name: score.evaluation.predictions for name, score in systems.items()}, seed=seed)
    logits = found.model.logits
    sure = ask(
        model,
        found.test.plain,
        logits,
        found.model.labels,
        reject=reject,
        coverage=coverage,
        background=None if strange is None else strange.plain,
    )
    rows = rows_of(dataset, found, model.support_, sure.answers)
    return Report(
        evaluation=found,
        figures=told,
        sure=sure,
        rows=rows,
        map=draw_map(found.test.plain, model.support_.plain, seed),
        findings=look(model, rows, seed, progress) if doctor else Findings(why="not asked for (--no-doctor)"),
        logits=logits,
        model=model,
    )


def _check_single(model: FewShotClassifier, dataset: Dataset) -> None:
    head = getattr(model, "head_", None)
    if head is None:
        raise InputError("this FewShotClassifier is not fitted: call fit(images, labels), or load(folder)")
    for what, several in (("the model", head.task_ == "multilabel"), (f"'{dataset.name}'", dataset.multilabel)):
        if several:
            raise InputError(f"the report is for one label a picture, but {what} has several: use clipadapter eval")


def _plain(model: FewShotClassifier, paths: Sequence[Path]) -> FeatureSet:
    """Features of pictures without a class."""
    name = "none of these"
    return model.extract_features(paths, [name] * len(paths), [name], views=1)
