"""Measure an exported file on labelled test pictures, so that its precision is trusted by more than a comparison."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from clipadapter.classifier import FewShotClassifier
from clipadapter.classifier.evaluation import EvaluationResult, Score, check_label_kind, check_labels, measure_answers
from clipadapter.data import Dataset
from clipadapter.errors import DataError, InputError
from clipadapter.export.parity import compare_outputs
from clipadapter.features import extract
from clipadapter.metrics import evaluate, evaluate_multilabel
from clipadapter.runtime import Outputs, Predictor


def evaluate_file(
    predictor: Predictor, dataset: Dataset, model: FewShotClassifier | None = None
) -> tuple[EvaluationResult, dict[str, Any] | None]:
    """Measure an exported file on labelled pictures.

    Args:
        predictor: the open file.
        dataset: the pictures; unreadable ones are left out and named.
        model: that the file was exported from, to compare their outputs.

    Returns:
        The metrics; ``among_shots`` is 0, since the file does not have the shots. And the figures of
        `clipadapter.export.parity.compare_outputs`; None without a model.

    Raises:
        InputError: if a label is no class of the file, or pictures have several labels and the file gives one.
        DataError: if a picture has no label, or none can be read.
    """
    uncertainty, names = predictor.uncertainty, predictor.class_names
    if model is not None and model.class_names_ != names:
        raise InputError("the file has other classes than the model: give the model that it was exported from")
    check_label_kind(uncertainty, dataset.multilabel)
    label_sets = dataset.label_sets if dataset.multilabel else tuple((label,) for label in dataset.labels)
    check_labels([label for labels in label_sets for label in labels], names)
    start = time.perf_counter()
    pictures, outputs = predictor.outputs_of(dataset.paths)
    rows = [i for i, picture in enumerate(pictures) if picture.error is None]
    if not rows:
        raise DataError(f"none of the {len(pictures)} test pictures can be read: give others")
    answers, score = predictor.answer(outputs), None
    if dataset.multilabel:
        targets = np.array([[name in label_sets[i] for name in names] for i in rows])
        assert answers.sets is not None
        evaluation: Any = evaluate_multilabel(targets, answers.probabilities, answers.sets, names)
    else:
        logs = uncertainty.calibrator.log_probabilities(np.asarray(outputs.logits, np.float64))
        evaluation = evaluate([label_sets[i][0] for i in rows], logs, names)
        score = Score(evaluation, outputs.logits, time.perf_counter() - start)
    result = EvaluationResult(
        data=dataset.name,
        class_names=names,
        evaluation=evaluation,
        n_test=len(rows),
        skipped=tuple((picture.name, picture.error) for picture in pictures if picture.error is not None),
        among_shots=0,
        decisions={} if score is None else measure_answers(uncertainty.decisions, answers, score),
        sources=tuple(pictures[i].name for i in rows),
        score=score,
    )
    return result, None if model is None else _compare(model, outputs, [dataset.paths[i] for i in rows])


def _compare(model: FewShotClassifier, outputs: Outputs, paths: list[Any]) -> dict[str, Any]:
    """Figures of the comparison with the outputs of a model for the same pictures."""
    features = extract(model.encoder_, paths, batch_size=model.batch_size).features[:, 0]
    return compare_outputs(
        model.uncertainty_, features, model.head_.logits(features), outputs, model.encoder_.info.blocks
    )
