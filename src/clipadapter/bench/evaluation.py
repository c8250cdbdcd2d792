"""Measures a saved model on test pictures, beside zero-shot and a linear probe that are fitted to the same shots."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sklearn.base import clone

from clipadapter.bench.bundle import Bundle, columns_for_head
from clipadapter.bench.comparison import shared_rows
from clipadapter.bench.fitting import few_shot
from clipadapter.bench.methods import BASELINES, registered_name
from clipadapter.bench.plots import confusion_matrix, learning_curve
from clipadapter.bench.protocols.cross_validation import DEFAULT_FOLDS, count_folds, fold_scores
from clipadapter.bench.run import Run, library_versions
from clipadapter.bench.score import Score, check_labels, decision_metrics, score, score_multilabel
from clipadapter.bench.sources import dataset_features
from clipadapter.classifier import FewShotClassifier
from clipadapter.data import Dataset
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.files import write_atomically
from clipadapter.heads import Head, create_head
from clipadapter.metrics import MultiLabelEvaluation


@dataclass(frozen=True, eq=False)
class ModelEvaluation:
    """What `evaluate_model` gives.

    Args:
        head: the model's head.
        data: name of the data.
        n_test: test pictures that could be read.
        model: figures of the model.
        baselines: figures of zero-shot, and of the linear probe if the model has its shots. None for a head that tunes
            the encoder: its shots' features are those of the tuned one.
        skipped: (name, reason) of test pictures that can't be read.
        among_shots: how many test pictures are shots of the model.
        curve: records of fits on fewer of the model's shots; empty if there is one shot a class or none was kept.
        facts: what else is worth writing down.
        test: features of the test pictures, marked for evaluation; its provenance tells which they are.
    """

    head: str
    data: str
    n_test: int
    model: Score
    baselines: dict[str, Score]
    skipped: list[tuple[str, str]]
    among_shots: int
    curve: list[Run]
    facts: dict[str, Any]
    test: FeatureSet

    @property
    def scores(self) -> dict[str, Score]:
        """The model first, then the baselines."""
        return {f"this model ({self.head})": self.model, **self.baselines}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "head": self.head,
            "data": self.data,
            "n_test": self.n_test,
            "skipped": [{"path": name, "reason": reason} for name, reason in self.skipped],
            "among_shots": self.among_shots,
            "model": self.model.evaluation.to_dict(),
            "baselines": {name: found.metrics.model_dump() for name, found in self.baselines.items()},
            "curve": [run.model_dump() for run in self.curve],
            **self.facts,
        }

    def write(self, folder: Path) -> list[Path]:
        """Write ``metrics.json``, ``confusion.png``, and ``learning-curve.png`` where shots vary.

        Raises:
            InputError: if the folder can't be written.
        """
        found = self.model.evaluation
        title = f"{self.head} on {self.data}: {100 * found.metrics['accuracy']:.1f} % of {self.n_test} pictures right"
        files = [
            write_atomically(folder / "metrics.json", json.dumps(self.to_dict(), indent=1) + "\n"),
            confusion_matrix(found, folder / "confusion.png", title),
        ]
        if self.curve:
            name = f"{self.data}: draws from the model's own shots"
            files.append(learning_curve(self.curve, folder / "learning-curve.png", name))
        return files


def evaluate_model(
    model: FewShotClassifier,
    dataset: Dataset,
    *,
    curve: bool = True,
    seeds: Sequence[int] = (1, 2, 3),
    progress: bool = False,
) -> ModelEvaluation:
    """Measure a fitted model, and zero-shot and a linear probe beside it.

    Args:
        model: fitted.
        dataset: labelled test pictures; unreadable ones are left out and named.
        curve: fit on 1, 2, 4 ... of the model's shots a class too.
        seeds: of these draws.
        progress: show bars on stderr.

    Raises:
        InputError: if a label is no class of the model.
        DataError: if a picture has no label, or none can be read.
    """
    names = model.class_names_
    if model.uncertainty_.multilabel is not None:
        raise InputError("the model gives several labels a picture: test it on a table with the column 'labels'")
    check_labels(dataset.labels, names)
    test = dataset_features(model, dataset, names).mark_for_evaluation()
    support, text = model.support_, model.text_
    beside = () if model.head_.tunes_encoder else BASELINES if len(support) else BASELINES[:1]
    heads = {name: create_head(name) for name in beside}
    for head in heads.values():
        # Zero-shot does not look at the shots: without any it is shown the class text instead.
        X, y = (columns_for_head(head, support, text).X, support.y) if len(support) else (text.embeddings, text.labels)
        head.fit(X, y, text=text)
    info = model.encoder_.info
    found = score(model.head_, test, model.uncertainty_.calibrator)
    return ModelEvaluation(
        head=registered_name(model.head_),
        data=dataset.name,
        n_test=len(test),
        model=found,
        baselines={name: score(head, columns_for_head(head, test, text)) for name, head in heads.items()},
        skipped=list(test.provenance["skipped"]),
        among_shots=len(shared_rows(support, test)),
        curve=_curve(model, support, test, seeds, progress) if curve and len(support) else [],
        facts={
            "asked": decision_metrics(model, test, found),
            "params": model.head_.get_params(deep=False),
            "encoder": {"name": info.name, "fingerprint": info.fingerprint},
            "shots": dict(Counter(support.y)),
            "versions": library_versions(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
        test=test,
    )


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """What `cross_validate_model` gives.

    Args:
        head: the model's head.
        n_pictures: pictures that the model was fitted to; each is answered once.
        folds: number of folds.
        model: figures of the head over all folds.
        baselines: the same of zero-shot and the linear probe.
        facts: what else is worth writing down.
    """

    head: str
    n_pictures: int
    folds: int
    model: Score
    baselines: dict[str, Score]
    facts: dict[str, Any]

    @property
    def scores(self) -> dict[str, Score]:
        """The model's head first, then the baselines."""
        return {f"this head ({self.head})": self.model, **self.baselines}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "head": self.head,
            "protocol": "cross-validation",
            "folds": self.folds,
            "n_pictures": self.n_pictures,
            "model": self.model.evaluation.to_dict(),
            "baselines": {name: found.metrics.model_dump() for name, found in self.baselines.items()},
            **self.facts,
        }

    def write(self, folder: Path) -> list[Path]:
        """Write ``metrics.json`` and ``confusion.png``.

        Raises:
            InputError: if the folder can't be written.
        """
        found = self.model.evaluation
        right = f"{100 * found.metrics['accuracy']:.1f} % of {self.n_pictures} pictures right"
        title = f"{self.head}, cross-validation over {self.folds} folds: {right}"
        return [
            write_atomically(folder / "metrics.json", json.dumps(self.to_dict(), indent=1) + "\n"),
            confusion_matrix(found, folder / "confusion.png", title),
        ]


def cross_validate_model(model: FewShotClassifier, folds: int = DEFAULT_FOLDS, seed: int = 1) -> CrossValidation:
    """Estimate how good a model is without test pictures: by cross-validation of its head on the model's own shots.

    For each fold the head is fitted again, with the same parameters, to the shots of the other folds. So the figures
    are of heads that saw fewer shots than the model did. Logits become probabilities by their softmax: the model's
    calibration was fitted to all shots.

    Args:
        model: fitted; it stays as it is.
        folds: number of folds; at most as many as the smallest class has shots.
        seed: of the folds.

    Raises:
        InputError: if the model has several labels per picture, tunes the encoder, or was saved without its shots; or
            if a class has a single shot.
    """
    support, text, head = model.support_, model.text_, model.head_
    if model.uncertainty_.multilabel is not None or head.tunes_encoder:
        why = "tunes the encoder" if head.tunes_encoder else "gives several labels a picture"
        raise InputError(f"a model that {why} can't be cross-validated on its shots: give test pictures")
    if not len(support):
        raise InputError("the model was saved without its shots (--no-support): give test pictures")
    bundle = Bundle(support, text)
    scores = {name: fold_scores(create_head(name), bundle, folds, seed)[0] for name in BASELINES}
    return CrossValidation(
        head=registered_name(head),
        n_pictures=len(support),
        folds=count_folds(support.y, folds),
        model=fold_scores(head, bundle, folds, seed)[0],
        baselines=scores,
        facts={
            "params": head.get_params(deep=False),
            "encoder": {"name": model.encoder_.info.name, "fingerprint": model.encoder_.info.fingerprint},
            "shots": support.counts,
            "versions": library_versions(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )


def _curve(
    model: FewShotClassifier, support: FeatureSet, test: FeatureSet, seeds: Sequence[int], progress: bool
) -> list[Run]:
    most = max(Counter(support.y).values())
    if most == 1 or model.head_.tunes_encoder:
        return []
    own = registered_name(model.head_)
    heads: dict[str, Head] = {name: create_head(name) for name in BASELINES}
    heads[own] = clone(model.head_)
    shots = sorted({2**i for i in range(most.bit_length())} | {most})
    return few_shot(heads, support, test, model.text_, shots, seeds, progress=progress)


@dataclass(frozen=True, eq=False)
class MultiLabelModelEvaluation:
    """What `evaluate_multilabel_model` gives.

    Args:
        head: the model's head.
        data: name of the data.
        n_test: test pictures that could be read.
        model: figures of the model.
        baselines: figures of zero-shot and the linear probe; none if the model was saved without its shots.
        skipped: (name, reason) of test pictures that can't be read.
        facts: what else is worth writing down.
    """

    head: str
    data: str
    n_test: int
    model: MultiLabelEvaluation
    baselines: dict[str, MultiLabelEvaluation]
    skipped: list[tuple[str, str]]
    facts: dict[str, Any]

    @property
    def scores(self) -> dict[str, MultiLabelEvaluation]:
        """The model first, then the baselines."""
        return {f"this model ({self.head})": self.model, **self.baselines}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "head": self.head,
            "data": self.data,
            "n_test": self.n_test,
            "skipped": [{"path": name, "reason": reason} for name, reason in self.skipped],
            "model": self.model.to_dict(),
            "baselines": {name: found.to_dict() for name, found in self.baselines.items()},
            **self.facts,
        }

    def write(self, folder: Path) -> list[Path]:
        """Write ``metrics.json``.

        Raises:
            InputError: if the folder can't be written.
        """
        return [write_atomically(folder / "metrics.json", json.dumps(self.to_dict(), indent=1) + "\n")]


def evaluate_multilabel_model(model: FewShotClassifier, dataset: Dataset) -> MultiLabelModelEvaluation:
    """Measure a model of pictures with several labels, and zero-shot and a linear probe beside it.

    Args:
        model: fitted to such pictures.
        dataset: test pictures with all their labels; unreadable ones are left out and named.

    Raises:
        InputError: if the model gives one label a picture, or a label is no class of it.
        DataError: if labels are not known, or no picture can be read.
    """
    if model.uncertainty_.multilabel is None:
        raise InputError(
            f"the pictures of '{dataset.name}' have several labels each, but the model gives one: fit it to a table "
            "with the column 'labels' too"
        )
    names = model.class_names_
    strange = sorted({label for labels in dataset.label_sets for label in labels} - set(names))
    if strange:
        raise InputError(f"the test pictures have labels that are no class of the model: {', '.join(strange[:5])}")
    test = model.extract_features(dataset.paths, dataset.label_sets, names, views=1).mark_for_evaluation()
    return MultiLabelModelEvaluation(
        head=registered_name(model.head_),
        data=dataset.name,
        n_test=len(test),
        model=score_multilabel(model, test),
        baselines={name: score_multilabel(one, test) for name, one in _baselines(model, BASELINES)},
        skipped=list(test.provenance["skipped"]),
        facts={
            "params": model.head_.get_params(deep=False),
            "encoder": {"name": model.encoder_.info.name, "fingerprint": model.encoder_.info.fingerprint},
            "shots": model.support_.counts,
            "versions": library_versions(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )


def _baselines(model: FewShotClassifier, names: Sequence[str]) -> list[tuple[str, FewShotClassifier]]:
    """Other heads, fitted to the model's shots."""
    if not len(model.support_):
        return []
    fitted = [(name, FewShotClassifier(model.encoder_, create_head(name), cache=None)) for name in names]
    return [(name, one.fit_features(model.support_, model.text_)) for name, one in fitted]
