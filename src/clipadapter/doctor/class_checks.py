"""Checks of classes: their size, confusions between them, and names that the encoder does not understand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from clipadapter.data.layout import find_similar_names
from clipadapter.doctor.findings import Finding, Picture
from clipadapter.doctor.label_evidence import LabelEvidence
from clipadapter.heads import TextFeatures

MIN_SHOTS = 4
"""Shots below which a class is small: held-out checks then have two or three pictures only."""
MAX_SIZE_RATIO = 5
"""Ratio of the sizes of two classes from which they are imbalanced."""
MAX_P_VALUE = 0.05
MAX_CONFUSION_RATE = 0.1
"""Share of two classes' pictures that are predicted as the other, above which they overlap."""
MIN_CONFUSIONS = 3
"""Confusions that an overlap must have."""
SAME_TEXT_COSINE = 0.995
"""Cosine from which two class texts are the same; two different words for one object stay below it."""
MAX_SHOWN_PICTURES = 4
MAX_SHOWN_CONFUSIONS = 8


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
    small, large = min(not_empty, key=counts.__getitem__), max(not_empty, key=counts.__getitem__)
    if counts[large] >= MAX_SIZE_RATIO * counts[small]:
        message = f"'{small}' has {counts[small]} pictures, '{large}' has {counts[large]}"
        yield Finding("imbalance", 1 - counts[small] / counts[large], message, (), (small, large))


def find_class_overlaps(
    pictures: Sequence[Picture], evidence: LabelEvidence, wrong_labels: set[Picture]
) -> Iterator[Finding]:
    """Pairs of classes with significantly more than a tenth of their held-out pictures predicted as the other.

    Pictures whose label is likely wrong are no confusions of their classes.
    """
    from scipy.stats import binomtest

    checked = np.flatnonzero(evidence.is_held_out).tolist()
    rows = np.array([i for i in checked if pictures[i] not in wrong_labels], np.int64)
    c = len(evidence.names)
    labels = evidence.labels[rows]
    predictions = evidence.held_out[rows].argmax(axis=1) if len(rows) else rows
    confusion = np.zeros((c, c), np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    class_sizes = confusion.sum(axis=1)
    np.fill_diagonal(confusion, 0)
    for a, b in zip(*np.nonzero(np.triu(confusion + confusion.T) >= MIN_CONFUSIONS), strict=True):
        n_confused, n_pictures = int(confusion[a, b] + confusion[b, a]), int(class_sizes[a] + class_sizes[b])
        if binomtest(n_confused, n_pictures, MAX_CONFUSION_RATE, alternative="greater").pvalue > MAX_P_VALUE:
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
    has_text = [bool(row.any()) for row in embeddings]
    for a, b in combinations(range(len(text.labels)), 2):
        cosine, classes = float(cosines[a, b]), (text.labels[a], text.labels[b])
        if (has_text[a] and has_text[b] and cosine >= SAME_TEXT_COSINE) or frozenset(classes) in similar:
            message = f"'{classes[0]}' and '{classes[1]}': cosine of their texts {cosine:.3f}"
            yield Finding("same-text", min(max(cosine, 0.0), 1.0), message, (), classes)


def find_unknown_names(pictures: Sequence[Picture], evidence: LabelEvidence) -> Iterator[Finding]:
    """Classes whose pictures zero-shot does not recognise, while a head fitted to other pictures does.

    A finding needs two things: zero-shot is right for at most half as many pictures as the held-out head, and a sign
    test on the pictures where only one of them is right is significant.
    """
    from scipy.stats import binomtest

    if evidence.zero_shot is None:
        return
    zero_shot, held_out = evidence.zero_shot.argmax(axis=1), evidence.held_out.argmax(axis=1)
    for k, name in enumerate(evidence.names):
        rows = np.flatnonzero(evidence.is_held_out & (evidence.labels == k))
        by_text, by_shots = zero_shot[rows] == k, held_out[rows] == k
        n_gained, n_lost = int((by_shots & ~by_text).sum()), int((by_text & ~by_shots).sum())
        if 2 * by_text.sum() > by_shots.sum() or not n_gained:
            continue
        if binomtest(n_gained, n_gained + n_lost, alternative="greater").pvalue > MAX_P_VALUE:
            continue
        other, count = Counter(evidence.names[j] for j in zero_shot[rows] if j != k).most_common(1)[0]
        message = (
            f"'{name}': by its text {by_text.sum()} of its {len(rows)} pictures are recognised, by shots "
            f"{by_shots.sum()}; most are predicted as '{other}' ({count})"
        )
        score = (by_shots.sum() - by_text.sum()) / len(rows)
        missed = rows[zero_shot[rows] != k][:MAX_SHOWN_PICTURES]
        yield Finding("name", float(score), message, tuple(pictures[i] for i in missed), (name, other))
