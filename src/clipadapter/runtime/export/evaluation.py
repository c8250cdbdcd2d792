"""Measure an exported file: compare it with the model that it came from, or test it on labelled pictures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.classifier import FewShotClassifier
from clipadapter.classifier.evaluation import EvaluationResult, Score, check_label_kind, check_labels, measure_answers
from clipadapter.data import Dataset
from clipadapter.data.images import ImageSource, source_name
from clipadapter.errors import ArtifactError, DataError, InputError
from clipadapter.features import extract
from clipadapter.metrics import evaluate, evaluate_multilabel
from clipadapter.runtime import Outputs, Predictor
from clipadapter.runtime.engines.parity import MIN_AGREEMENT, MIN_COSINES, measure_parity
from clipadapter.uncertainty import Uncertainty
from clipadapter.utils.blocks import FINAL, column_slices

Array = NDArray[Any]
FIRST_BATCH_SIZES = (1, 2)
BATCH_SIZE = 32  # size of the batches after the first two
MIN_ROWS = sum(FIRST_BATCH_SIZES) + 3
"""Pictures that are compared at least. The last 3 are a batch of more than two, as `_run_in_batches` tries."""
DEFAULT_REJECTION_RATE = 0.05  # rate at which rejections are compared if the model has none set
LIMITS = (
    ("logits", 1e-3, None, "logits differ by {:.2g} of their spread, more than {:g}"),
    ("calibration", 1e-3, 1e-3, "probabilities differ by {:.2g} from those of its logits"),
    ("ood_scores", 0.05, None, "scores of 'none of these' differ by {:.2g}, more than {}"),
    ("agreement", MIN_AGREEMENT, MIN_AGREEMENT, "{:.1%} of the answers are the same, less than {:.0%}"),
    ("rejected", 0.98, 0.95, "{:.1%} of the rejections are the same, less than {:.0%}"),
)
"""For each number of `compare_outputs`: the limit where model and file are both in fp32, so that only a picture at a
boundary between two classes may change its class; the limit where one of them is not, None if it does not matter; and
the fault in words. Cosines of features have the limits of backends."""
SHARES = ("agreement", "rejected")  # numbers whose limit is the smallest value, not the largest


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
        `clipadapter.runtime.export.evaluation.compare_outputs`; None without a model.

    Raises:
        InputError: if a label is no class of the file, or pictures have several labels and the file gives one.
        DataError: if a picture has no label, or none can be read.
    """
    uncertainty, names = predictor.uncertainty, predictor.class_names
    if model is not None and model.class_names_ != names:
        raise InputError("the file has other classes than the model: give the model that it was exported from")
    check_label_kind(uncertainty, dataset.multilabel)
    label_sets = dataset.label_sets
    check_labels([label for labels in label_sets for label in labels], names)
    start = time.perf_counter()
    rows, skipped, outputs = predictor.outputs_of(dataset.paths)
    if not rows:
        raise DataError(f"none of the {len(skipped)} test pictures can be read: give others")
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
        skipped=tuple(skipped),
        among_shots=0,
        decisions={} if score is None else measure_answers(uncertainty.decisions, answers, score),
        sources=tuple(source_name(dataset.paths[i]) for i in rows),
        score=score,
    )
    if model is None:
        return result, None
    features = extract(model.encoder_, [dataset.paths[i] for i in rows], batch_size=model.batch_size).features[:, 0]
    return result, compare_outputs(model, features, model.head_.logits(features), outputs)


# ---- The comparison of a file with its model, without which no file is written ----


def compare_file(model: FewShotClassifier, predictor: Predictor, pictures: Sequence[ImageSource]) -> dict[str, Any]:
    """Figures of `compare_outputs` for some pictures, in batches of several sizes; ``n`` is the number of pictures."""
    extracted = extract(model.encoder_, pictures, batch_size=model.batch_size)
    if not extracted.rows:
        raise DataError(
            f"none of the {len(pictures)} pictures to compare the file on can be read: give others (pictures=..., or "
            "--pictures DATA)"
        )
    features = extracted.features[:, 0]
    n = len(features)
    rows = np.arange(max(n, MIN_ROWS)) % n  # few pictures are repeated, so that batches of all sizes are tried
    outputs = _run_in_batches(predictor, [pictures[extracted.rows[i]] for i in rows])
    return {**compare_outputs(model, features[rows], model.head_.logits(features)[rows], outputs), "n": n}


def compare_outputs(model: FewShotClassifier, features: Array, logits: Array, outputs: Outputs) -> dict[str, Any]:
    """Numbers of a comparison of a model with its file, whose names are keys in the metadata of files.

    ``features`` (n, d) and ``logits`` (n, c) are the model's, of the pictures whose outputs the file gave.
    """
    uncertainty, blocks = model.uncertainty_, model.encoder_.info.blocks
    features = np.asarray(features, np.float32)
    file_features = np.asarray(outputs.features if outputs.blocks is None else outputs.blocks, np.float32)
    parity = measure_parity(features, file_features, blocks=blocks)
    assert outputs.probabilities is not None
    measured = {
        "n": len(features),
        # Of features, for each picture in its worst block.
        "cosine_least": parity.min_cosine,
        "cosine_mean": parity.mean_cosine,
        # The largest differences: in standard deviations of all logits; and of the file's probabilities to those of the
        # model, and to those that the model computes from the file's logits.
        "logits": _max_difference(logits, outputs.logits) / max(float(np.std(logits)), 1e-12),
        "probabilities": _max_difference(uncertainty.probabilities(logits), outputs.probabilities),
        "calibration": _max_difference(uncertainty.probabilities(outputs.logits), outputs.probabilities),
        # The share of equal predictions, or of pairs of picture and class if there may be several labels.
        "agreement": float((_predict(uncertainty, logits) == _predict(uncertainty, outputs.logits)).mean()),
    }
    slices, rejector = column_slices(blocks), uncertainty.rejector
    if rejector is not None and outputs.ood_scores is not None and outputs.ood_score_parts is not None:
        rate = uncertainty.decisions.reject or DEFAULT_REJECTION_RATE
        threshold = rejector.threshold(rate).value
        model_scores = rejector.scores(features[:, slices[FINAL]] if slices else features, logits)
        spread = float(np.std(rejector.weighted_sum(rejector.held_out_scores)))
        # Both are compared: other programs read the total, `Predictor` the parts.
        file_scores = np.stack([outputs.ood_scores, rejector.weighted_sum(outputs.ood_score_parts)])
        measured |= {  # in standard deviations of the shots' scores, and the share of equal rejections
            "ood_scores": _max_difference(model_scores, file_scores) / (spread if spread > 1e-6 else 1.0),
            "rejected": float(((model_scores > threshold) == (file_scores > threshold)).all(axis=0).mean()),
            "rate": rate,
        }
    figures: dict[str, Any] = {name: round(value, 9) for name, value in measured.items()}
    if len(slices) > 1:
        by_block = {name: measure_parity(features[:, part], file_features[:, part]) for name, part in slices.items()}
        figures["blocks"] = {
            name: {"cosine_least": round(each.min_cosine, 9), "cosine_mean": round(each.mean_cosine, 9)}
            for name, each in by_block.items()
        }
    return figures


def find_faults(measured: Mapping[str, Any], is_exact: bool) -> list[str]:
    """Differences above the limits, in words; with ``is_exact`` those for a model and a file that are both in fp32."""
    (min_cosine, min_mean), faults = MIN_COSINES["fp32" if is_exact else "int8"], []
    # "not x >= limit" also finds values that are not numbers.
    for name, each in measured.get("blocks", {"": measured}).items():
        if not (each["cosine_least"] >= min_cosine and each["cosine_mean"] >= min_mean):
            faults.append(
                f"the smallest cosine of features{f' of the block {name}' if name else ''} is "
                f"{each['cosine_least']:.5f} and their mean {each['cosine_mean']:.5f}, where {min_cosine} and "
                f"{min_mean} are needed"
            )
    for name, exact_limit, other_limit, words in LIMITS:
        value, limit = measured.get(name), exact_limit if is_exact else other_limit
        if value is None or limit is None:
            continue
        if not (value >= limit if name in SHARES else value <= limit):
            faults.append(words.format(value, limit))
    return faults


def describe_parity(measured: Mapping[str, Any]) -> str:
    """The numbers of `compare_outputs` in one line."""
    parts = [
        f"same answers {measured['agreement']:.1%}",
        f"smallest cosine of features {measured['cosine_least']:.6f}",
        f"logits differ by {measured['logits']:.1e} of their spread",
        f"probabilities by {measured['probabilities']:.1e}",
    ]
    if "rejected" in measured:
        parts.append(f"same rejections {measured['rejected']:.1%}")
    return ", ".join(parts)


def _run_in_batches(predictor: Predictor, sources: Sequence[ImageSource]) -> Outputs:
    """Outputs of a file for pictures, in batches of one, two and more: a graph may work for one size only."""
    squares = np.stack([predictor.preprocess(source) for source in sources])
    ends = [*np.cumsum(FIRST_BATCH_SIZES), *range(sum(FIRST_BATCH_SIZES) + BATCH_SIZE, len(squares), BATCH_SIZE)]
    batches = np.split(squares, ends)
    try:
        return Outputs.concatenate([predictor.run(batch) for batch in batches])
    except Exception as error:  # those of runtimes have no common base
        reason = str(error.__cause__ or error).strip().split("\n")[-1]
        raise ArtifactError(
            f"the file could not be run on batches of {', '.join(map(str, map(len, batches)))}, so it was not written "
            f"({reason}): the head or the image tower is not a graph for any number of pictures. See docs/export.md"
        ) from error


def _predict(uncertainty: Uncertainty, logits: Array) -> Array:
    """The best class (n,) of each picture, or which classes it has (n, c)."""
    if uncertainty.multilabel is not None:
        return uncertainty.multilabel.decide(logits)
    return uncertainty.calibrator.probabilities(logits).argmax(axis=1)


def _max_difference(a: Array, b: Array) -> float:
    """The largest difference; infinite where a value is not finite."""
    difference = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    return float(np.where(np.isfinite(difference), difference, np.inf).max(initial=0.0))
