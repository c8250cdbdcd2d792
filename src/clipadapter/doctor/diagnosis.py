"""The checks of a data set: `diagnose`, and what it finds in labels and classes. `pictures` has the checks of pixels.

A label is compared with three predictions: by a head that was fitted without the picture, by its neighbours, and by
class text. Labels that are likely wrong come from confident learning (Northcutt, Jiang and Chuang, JAIR 2021,
https://arxiv.org/abs/1911.00068), by cleanlab, on held-out probabilities. Most of its results are pictures of classes
that are hard to distinguish. So a label is called likely wrong only if the nearest pictures, and among many classes the
class text, do not support it either. It is called doubtful if only the held-out head disagrees with it, or if its two
classes overlap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipadapter.classifier import FewShotClassifier
from clipadapter.data import Dataset
from clipadapter.data.layout import find_similar_names
from clipadapter.doctor.findings import Diagnosis, Finding, Picture, rank_findings
from clipadapter.doctor.pictures import (
    Neighbours,
    check_image_quality,
    find_duplicates,
    group_duplicates,
    measure_images,
    nearest_neighbours,
)
from clipadapter.errors import require
from clipadapter.features import FeatureSet
from clipadapter.heads import TextFeatures, create_head, out_of_fold
from clipadapter.heads.support import label_positions
from clipadapter.uncertainty import learn_calibrator

FOLDS = 8  # folds of the held-out predictions: each head is fitted to seven eighths of the pictures
VOTING_NEIGHBOURS = 5  # nearest pictures whose labels are counted
MAX_MIN_ODDS = 10.0
"""Ratio of the probabilities of another class and of the given one from which a label is doubtful; with fewer classes
it is their number. Probabilities are calibrated on the labels, of which some are wrong: with two classes and 10 % wrong
labels no ratio is above 9."""
MAX_SUPPORTING_VOTES = 1
"""A label that more of the nearest pictures have is not doubtful, unless classes are so few that chance gives more."""
TOP_TEXT_SHARE = 0.05
"""Class text supports a label that is among this share of the classes with the largest zero-shot probability: none if
there are fewer than 20, of which text ranks many a wrong label first."""
MIN_SHOTS = 4  # shots below which a class is small: held-out checks then have two or three pictures only
MAX_SIZE_RATIO = 5  # ratio of the sizes of two classes from which they are imbalanced
MAX_P_VALUE = 0.05
MAX_CONFUSION_RATE = 0.1  # share of two classes' pictures that are predicted as the other, above which they overlap
MIN_CONFUSIONS = 3  # confusions that an overlap must have
SAME_TEXT_COSINE = 0.995
"""Cosine from which two class texts are the same; two different words for one object stay below it."""
MAX_SHOWN_PICTURES = 4
MAX_SHOWN_CONFUSIONS = 8


def diagnose(dataset: Dataset, model: FewShotClassifier, *, seed: int = 0, progress: bool = False) -> Diagnosis:
    """Find faults in labelled pictures; nothing is changed, moved or deleted.

    Pictures are compared by the classifier's features, which its store keeps, and by their pixels. Labels of all splits
    are checked by heads that were fitted without the picture. These heads are not used to measure a model. Labels of
    the first split are checked by its own pictures, so that the doctor of a folder of shots and a report with test
    pictures suspect the same ones.

    Args:
        dataset: all its splits are checked; class sizes are those of the first split.
        model: extracts features and encodes class text. It need not be fitted, and is not changed.
        seed: of the folds.
        progress: show bars on stderr.

    Raises:
        DataError: if a picture has no label, or none can be read.
        MissingExtraError: if cleanlab or ImageHash is not installed.

    >>> from PIL import Image
    >>> import tempfile, pathlib
    >>> from clipadapter.data import load_dataset
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> for split in ("train", "test"):
    ...     for colour in ("red", "blue"):
    ...         (root / split / colour).mkdir(parents=True)
    ...         Image.new("RGB", (40, 40), colour).save(root / split / colour / "1.png")
    >>> diagnosis = diagnose(load_dataset(root), FewShotClassifier(encoder="toy", cache=None))
    >>> diagnosis.findings[0].kind, diagnosis.findings[0].message
    ('leak', 'train/blue/1.png = test/blue/1.png (equal files)')
    """
    require("imagehash", "doctor", "the search for near duplicates")
    require("cleanlab.filter", "doctor", "the search for wrong labels")
    splits = dataset.splits
    by_path = sorted(dataset.samples, key=lambda each: (splits.index(each.split), str(each.label), str(each.path)))
    dataset = replace(dataset, samples=tuple(by_path))  # the folds must not depend on the order
    features = model.extract_features(dataset.paths, dataset.labels, dataset.class_names, views=1)
    all_pictures = [Picture.from_sample(sample, dataset.root) for sample in dataset.samples]
    rows: list[int] = list(features.provenance["rows"])
    unreadable = [all_pictures[i] for i in sorted(set(range(len(all_pictures))).difference(rows))]
    findings = [
        Finding("unreadable", 1.0, f"{picture.name}: {reason}", (picture,))
        for picture, (_, reason) in zip(unreadable, features.provenance["skipped"], strict=True)
    ]
    # A file may be deleted after its features were extracted.
    measured = measure_images([all_pictures[row].path for row in rows], progress)
    features, measures = features.take(list(measured)), list(measured.values())
    pictures = [all_pictures[rows[i]] for i in measured]
    encoded = model.encode_classes(dataset.class_names)
    text = encoded if encoded.has_text else None
    neighbours = nearest_neighbours(features.final)
    evidence = collect_label_evidence(features, text, neighbours, seed)
    findings += group_duplicates(pictures, find_duplicates(measures, neighbours))
    suspects, overlaps = find_suspected_labels(pictures, evidence)
    shots = [i for i, picture in enumerate(pictures) if picture.split == splits[0]]
    if 0 < len(shots) < len(pictures):
        # Which shots are suspected must not depend on the test pictures that are given with them.
        part = features.take(shots)
        shot_evidence = collect_label_evidence(part, text, nearest_neighbours(part.final), seed)
        among_shots, _ = find_suspected_labels([pictures[i] for i in shots], shot_evidence)
        suspects = [*among_shots, *(each for each in suspects if each.pictures[0].split != splits[0])]
    findings += [*suspects, *overlaps, *find_unknown_names(pictures, evidence)]
    findings += check_class_sizes(pictures, dataset.class_names, dataset.splits)
    findings += find_same_texts(text) if text is not None else ()
    info, tower = model.encoder_.info, model.encoder_.tower()
    squashes = tower is not None and tower.pixels.resize == "squash"  # long pictures, which others crop
    findings += check_image_quality(pictures, measures, info.image_size, squashes)
    return Diagnosis(
        dataset.name,
        info.name,
        len(dataset.samples),
        len(dataset.class_names),
        dataset.splits,
        int(evidence.is_held_out.sum()),
        rank_findings(findings),
    )


def find_suspected_labels(pictures: Sequence[Picture], evidence: LabelEvidence) -> tuple[list[Finding], list[Finding]]:
    """Findings on labels, and on classes that overlap, between which a label is doubtful and not wrong."""
    label_errors = list(find_label_errors(pictures, evidence))
    wrong_labels = {finding.pictures[0] for finding in label_errors if finding.kind == "wrong-label"}
    overlaps = list(find_class_overlaps(pictures, evidence, wrong_labels))
    pairs = {frozenset(overlap.classes) for overlap in overlaps}
    for i, error in enumerate(label_errors):
        if frozenset(error.classes) in pairs:
            label_errors[i] = replace(error, kind="doubtful-label")
    return label_errors, overlaps


# ---- Predictions that labels are compared with ----


@dataclass(frozen=True, eq=False)
class LabelEvidence:
    """Three predictions for n pictures and c classes, in the order of the class names."""

    labels: NDArray[np.int64]  # (n,) class positions by the labels
    # (n, c) probabilities by a head that was fitted without the picture; NaN if its class has no other
    held_out: NDArray[np.float64]
    votes: NDArray[np.int64]  # (n, c) how many of the nearest pictures have each label
    zero_shot: NDArray[np.float64] | None  # (n, c) probabilities by class text; None if the encoder has no text tower
    names: tuple[str, ...]  # of the classes

    @property
    def is_held_out(self) -> NDArray[np.bool_]:
        """(n,) whether there is a held-out prediction."""
        return ~np.isnan(self.held_out[:, 0])


def collect_label_evidence(
    features: FeatureSet, text: TextFeatures | None, neighbours: Neighbours, seed: int = 0
) -> LabelEvidence:
    """Predict each picture by a head that is fitted to the others, by its neighbours and by class text."""
    names = features.class_names
    text = None if text is None else text.with_order("given")
    labels = label_positions(np.asarray(features.y), np.asarray(names))
    n, c = len(labels), len(names)
    held_out = np.full((n, c), np.nan)
    if len(labels) and np.bincount(labels).max() > 1 and len(set(features.y)) > 1:
        # GDA has a closed form, and on held-out shots it is as good as heads that take ten times as long.
        folds = out_of_fold(create_head("gda"), features.final, features.y, text, folds=FOLDS, seed=seed)
        assert folds is not None  # a class has two shots
        # Without class text a head has the classes of its shots only, sorted.
        columns = np.arange(c) if text is not None else label_positions(np.unique(features.y), np.asarray(names))
        held_out[folds.rows] = 0
        held_out[np.ix_(folds.rows, columns)] = calibrate(folds.logits.astype(np.float64), folds.labels)
    votes = np.zeros((n, c), np.int64)
    for voters in neighbours[1][:, :VOTING_NEIGHBOURS].T:
        votes[np.arange(n), labels[voters]] += 1
    zero_shot = None
    if text is not None:
        head = create_head("zero-shot").fit(features.final, features.y, text=text)
        zero_shot = calibrate(head.logits(features.final).astype(np.float64), labels)
    return LabelEvidence(labels, held_out, votes, zero_shot, names)


def calibrate(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Probabilities (r, c) at the temperature with the smallest log-loss of the labels: positions, (r,)."""
    # The pictures are many, and their encoder may be any: the temperature has no prior.
    return learn_calibrator(logits, labels, prior_deviation=np.inf).probabilities(logits)


# ---- Labels ----


class Doubt(NamedTuple):
    """A label that other predictions contradict."""

    row: int
    label: str
    other: str  # the class that the picture looks like
    p_label: float  # probability of the label, by a head that was fitted without the picture
    p_other: float


def find_doubts(evidence: LabelEvidence) -> list[Doubt]:
    """The labels that neither a held-out prediction, nor neighbours, nor class text support."""
    rows = np.arange(len(evidence.labels))
    fallback = 0.0 if evidence.zero_shot is None else evidence.zero_shot
    probabilities = np.where(evidence.is_held_out[:, None], evidence.held_out, fallback)
    predicted = probabilities.argmax(axis=1)
    p_label, p_predicted = probabilities[rows, evidence.labels], probabilities[rows, predicted]
    is_doubtful = (predicted != evidence.labels) & (p_predicted > min(MAX_MIN_ODDS, len(evidence.names)) * p_label)
    max_votes = max(MAX_SUPPORTING_VOTES, _chance_votes(evidence))
    is_doubtful &= (_supporting_votes(evidence) <= max_votes) & ~_is_supported_by_text(evidence)
    # The only picture of a class has no held-out prediction: one of its neighbours must agree with the class text.
    is_doubtful &= evidence.is_held_out | (evidence.votes[rows, predicted] > 0)
    names = evidence.names
    return [
        Doubt(i, names[evidence.labels[i]], names[predicted[i]], float(p_label[i]), float(p_predicted[i]))
        for i in np.flatnonzero(is_doubtful).tolist()
    ]


def find_label_errors(pictures: Sequence[Picture], evidence: LabelEvidence) -> Iterator[Finding]:
    """Findings on labels."""
    is_wrong = _is_wrong_by_confident_learning(evidence) & (_supporting_votes(evidence) <= _chance_votes(evidence))
    for i, label, other, p_label, p_other in find_doubts(evidence):
        message = f"{pictures[i].name}: labelled '{label}' ({p_label:.0%}), looks like '{other}' ({p_other:.0%})"
        kind = "wrong-label" if is_wrong[i] else "doubtful-label"
        yield Finding(kind, (1 + p_other - p_label) / 2, message, (pictures[i],), (label, other))


def _supporting_votes(evidence: LabelEvidence) -> NDArray[np.int64]:
    """(n,) how many of the nearest pictures have the label."""
    return evidence.votes[np.arange(len(evidence.labels)), evidence.labels]


def _chance_votes(evidence: LabelEvidence) -> int:
    return VOTING_NEIGHBOURS // len(evidence.names)


def _is_supported_by_text(evidence: LabelEvidence) -> NDArray[np.bool_]:
    """(n,) whether the label is among the classes with the largest zero-shot probabilities."""
    if evidence.zero_shot is None:
        return np.zeros(len(evidence.labels), bool)
    p_label = evidence.zero_shot[np.arange(len(evidence.labels)), evidence.labels]
    rank = (evidence.zero_shot > p_label[:, None]).sum(axis=1)
    return np.asarray(rank < int(TOP_TEXT_SHARE * len(evidence.names)))


def _is_wrong_by_confident_learning(evidence: LabelEvidence) -> NDArray[np.bool_]:
    """(n,) whether cleanlab calls the label wrong: by the estimated noise rate, or by the normalised margin."""
    is_wrong = np.zeros(len(evidence.labels), bool)
    rows = np.flatnonzero(evidence.is_held_out)
    cleanlab = require("cleanlab.filter", "doctor", "the search for wrong labels")
    classes, labels = np.unique(evidence.labels[rows], return_inverse=True)
    if len(classes) < 2:
        return is_wrong
    probabilities = evidence.held_out[np.ix_(rows, classes)] + 1e-9
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    for rule in ("prune_by_noise_rate", "low_normalized_margin"):
        is_wrong[rows] |= cleanlab.find_label_issues(labels, probabilities, filter_by=rule, n_jobs=1)
    return is_wrong


# ---- Classes ----


def check_class_sizes(pictures: Sequence[Picture], names: Sequence[str], splits: Sequence[str]) -> Iterator[Finding]:
    """Findings on the number of pictures per class, in the first split, which shots are drawn from."""
    split = splits[0]
    counts = Counter(picture.label for picture in pictures if picture.split == split)
    where = "" if split == "all" else f" in {split}"
    for name in names:
        count = counts[name]
        examples = tuple(picture for picture in pictures if picture.label == name)[:MAX_SHOWN_PICTURES]
        if not count:
            yield Finding("no-shots", 1.0, f"'{name}' has no picture{where}", examples, (name,))
        elif count < MIN_SHOTS:
            message = f"'{name}' has {count} picture{'s' if count > 1 else ''}{where}"
            yield Finding("few-shots", 1 - count / MIN_SHOTS, message, examples, (name,))
    not_empty = [name for name in names if counts[name]]
    if not not_empty:
        return
    small, large = min(not_empty, key=counts.__getitem__), max(not_empty, key=counts.__getitem__)
    if counts[large] >= MAX_SIZE_RATIO * counts[small]:
        message = f"'{small}' has {counts[small]} pictures, '{large}' has {counts[large]}"
        yield Finding("imbalance", 1 - counts[small] / counts[large], message, (), (small, large))


def find_class_overlaps(
    pictures: Sequence[Picture], evidence: LabelEvidence, wrong_labels: set[Picture]
) -> Iterator[Finding]:
    """Pairs of classes with significantly more than a tenth of their held-out pictures predicted as the other."""
    # Pictures whose label is likely wrong are no confusions of their classes.
    is_wrong = np.array([picture in wrong_labels for picture in pictures], bool)
    rows = np.flatnonzero(evidence.is_held_out & ~is_wrong)
    labels, predictions = evidence.labels[rows], evidence.held_out[rows].argmax(axis=1)
    c = len(evidence.names)
    confusion = np.zeros((c, c), np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    class_sizes = confusion.sum(axis=1)
    np.fill_diagonal(confusion, 0)
    for a, b in zip(*np.nonzero(np.triu(confusion + confusion.T) >= MIN_CONFUSIONS), strict=True):
        n_confused, n_pictures = int(confusion[a, b] + confusion[b, a]), int(class_sizes[a] + class_sizes[b])
        if not _is_above(n_confused, n_pictures, MAX_CONFUSION_RATE):
            continue
        first, second = evidence.names[a], evidence.names[b]
        message = (
            f"'{first}' and '{second}': {n_confused} of {n_pictures} held-out pictures are predicted as the other class"
        )
        is_confused = ((labels == a) & (predictions == b)) | ((labels == b) & (predictions == a))
        examples = tuple(pictures[i] for i in rows[is_confused][:MAX_SHOWN_CONFUSIONS])
        yield Finding("overlap", n_confused / n_pictures, message, examples, (first, second))


def find_same_texts(text: TextFeatures) -> Iterator[Finding]:
    """Pairs of classes with the same text embedding, or with names that differ in spelling only."""
    embeddings = np.asarray(text.embeddings, np.float64)
    cosines = embeddings @ embeddings.T
    similar = {frozenset(pair) for names in find_similar_names(text.labels) for pair in combinations(names, 2)}
    for a, b in combinations(range(len(text.labels)), 2):
        cosine, classes = float(cosines[a, b]), (text.labels[a], text.labels[b])
        if cosine >= SAME_TEXT_COSINE or frozenset(classes) in similar:
            message = f"'{classes[0]}' and '{classes[1]}': cosine of their texts {cosine:.3f}"
            yield Finding("same-text", min(max(cosine, 0.0), 1.0), message, (), classes)


def find_unknown_names(pictures: Sequence[Picture], evidence: LabelEvidence) -> Iterator[Finding]:
    """Classes whose pictures zero-shot does not recognise, while a head fitted to other pictures does."""
    if evidence.zero_shot is None:
        return
    zero_shot, held_out = evidence.zero_shot.argmax(axis=1), evidence.held_out.argmax(axis=1)
    for k, name in enumerate(evidence.names):
        rows = np.flatnonzero(evidence.is_held_out & (evidence.labels == k))
        by_text, by_shots = zero_shot[rows] == k, held_out[rows] == k
        n_gained, n_lost = int((by_shots & ~by_text).sum()), int((by_text & ~by_shots).sum())
        # Text must be right for half as many pictures at most, and a sign test on those where one alone is right be
        # significant.
        if 2 * by_text.sum() > by_shots.sum() or not n_gained or not _is_above(n_gained, n_gained + n_lost):
            continue
        other, count = Counter(evidence.names[j] for j in zero_shot[rows] if j != k).most_common(1)[0]
        message = (
            f"'{name}': by its text {by_text.sum()} of its {len(rows)} pictures are recognised, by shots "
            f"{by_shots.sum()}; most are predicted as '{other}' ({count})"
        )
        score = (by_shots.sum() - by_text.sum()) / len(rows)
        missed = rows[zero_shot[rows] != k][:MAX_SHOWN_PICTURES]
        yield Finding("name", float(score), message, tuple(pictures[i] for i in missed), (name, other))


def _is_above(count: int, total: int, share: float = 0.5) -> bool:
    """Whether a count out of a total is significantly above a share (binomial test)."""
    from scipy.stats import binomtest

    return bool(binomtest(count, total, share, alternative="greater").pvalue <= MAX_P_VALUE)
