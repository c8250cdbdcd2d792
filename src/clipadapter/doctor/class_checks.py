"""Classes that are small, taken for each other, or called by names that the encoder does not understand."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from clipadapter.doctor.findings import Finding, Picture
from clipadapter.doctor.label_evidence import Evidence
from clipadapter.heads import TextFeatures

FEW = 4
"""Shots below which a class is small: held-out checks then rest on two or three pictures."""
UNEQUAL = 5
SURE = 0.05
"""Largest probability of what was seen by chance."""
OVERLAP = 0.1
"""Share of two classes' pictures that are taken for the other, above which they overlap."""
LEAST = 3
"""Confusions that make an overlap at least."""
SAME_TEXT = 0.995
"""Cosine of two class texts that say the same; two different words for one thing stay below it."""


def sizes(pictures: Sequence[Picture], names: Sequence[str], splits: Sequence[str]) -> Iterator[Finding]:
    """Findings on the number of pictures a class, in the first part, which is what shots are drawn from."""
    part = splits[0]
    counts = Counter(picture.label for picture in pictures if picture.split == part)
    for name in names:
        count = counts[name]
        own = tuple(picture for picture in pictures if picture.label == name)[:4]
        where = "" if part == "all" else f" in {part}"
        if not count:
            yield Finding("no-shots", 1.0, f"'{name}' has no picture{where}", own, (name,))
        elif count < FEW:
            words = f"'{name}' has {count} picture{'s' if count > 1 else ''}{where}"
            yield Finding("few-shots", 1 - count / FEW, words, own, (name,))
    there = [name for name in names if counts[name]]
    small, large = min(there, key=counts.__getitem__), max(there, key=counts.__getitem__)
    if counts[large] >= UNEQUAL * counts[small]:
        words = f"'{small}' has {counts[small]} pictures, '{large}' has {counts[large]}"
        yield Finding("imbalance", 1 - counts[small] / counts[large], words, (), (small, large))


def overlaps(pictures: Sequence[Picture], evidence: Evidence, likely: set[Picture]) -> Iterator[Finding]:
    """Pairs of classes whose held-out pictures are taken for the other more often than a tenth, beyond chance.

    Args:
        pictures: n.
        evidence: on each.
        likely: pictures whose label is likely wrong: these are not confusions of their classes.
    """
    from scipy.stats import binomtest

    rows = np.array([i for i in np.flatnonzero(evidence.judged).tolist() if pictures[i] not in likely], np.int64)
    c = len(evidence.names)
    wrong = np.zeros((c, c), np.int64)
    said = evidence.held[rows].argmax(axis=1) if len(rows) else rows
    np.add.at(wrong, (evidence.labels[rows], said), 1)
    counts = wrong.sum(axis=1)
    np.fill_diagonal(wrong, 0)
    for a, b in zip(*np.nonzero(np.triu(wrong + wrong.T) >= LEAST), strict=True):
        times, of = int(wrong[a, b] + wrong[b, a]), int(counts[a] + counts[b])
        if binomtest(times, of, OVERLAP, alternative="greater").pvalue > SURE:
            continue
        one, other = evidence.names[a], evidence.names[b]
        words = f"'{one}' and '{other}': {times} of {of} held-out pictures are taken for the other class"
        both = evidence.labels[rows]
        mixed = rows[((both == a) & (said == b)) | ((both == b) & (said == a))]
        yield Finding("overlap", times / of, words, tuple(pictures[i] for i in mixed[:8]), (one, other))


def same_texts(text: TextFeatures) -> Iterator[Finding]:
    """Pairs of classes whose text is the same to the encoder, or whose names differ in writing only."""
    unit = np.asarray(text.embeddings, np.float64)
    similar = unit @ unit.T
    plain = [_plain(label) for label in text.labels]
    known = [bool(row.any()) for row in unit]
    for a in range(len(plain)):
        for b in range(a + 1, len(plain)):
            cosine = float(similar[a, b])
            if (known[a] and known[b] and cosine >= SAME_TEXT) or plain[a] == plain[b]:
                words = f"'{text.labels[a]}' and '{text.labels[b]}': cosine of their texts {cosine:.3f}"
                yield Finding("same-text", min(max(cosine, 0.0), 1.0), words, (), (text.labels[a], text.labels[b]))


def _plain(name: str) -> str:
    """A name without what is only writing: case, signs, the s of a plural."""
    return re.sub(r"s$", "", re.sub(r"[\W_]+", "", name.lower()))


def names_not_understood(pictures: Sequence[Picture], evidence: Evidence) -> Iterator[Finding]:
    """Classes whose own pictures zero-shot misses while what was learned from the others finds them.

    A class is named if zero-shot finds at most half as many as the held-out head, by a sign test on the pictures that
    only one of them finds.
    """
    from scipy.stats import binomtest

    if evidence.text is None:
        return
    judged, said, learned = evidence.judged, evidence.text.argmax(axis=1), evidence.held.argmax(axis=1)
    for k, name in enumerate(evidence.names):
        rows = np.flatnonzero(judged & (evidence.labels == k))
        by_text, by_shots = said[rows] == k, learned[rows] == k
        gained, lost = int((by_shots & ~by_text).sum()), int((by_text & ~by_shots).sum())
        if 2 * by_text.sum() > by_shots.sum() or not gained:
            continue
        if binomtest(gained, gained + lost, alternative="greater").pvalue > SURE:
            continue
        instead, times = Counter(evidence.names[j] for j in said[rows] if j != k).most_common(1)[0]
        words = (
            f"'{name}': its text finds {by_text.sum()} of its {len(rows)} pictures, what was learned from shots "
            f"{by_shots.sum()}; most are called '{instead}' ({times})"
        )
        score = (by_shots.sum() - by_text.sum()) / len(rows)
        missed = rows[said[rows] != k][:4]
        yield Finding("name", float(score), words, tuple(pictures[i] for i in missed), (name, instead))
