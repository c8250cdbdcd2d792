"""Labels that are likely wrong.

Confident learning (Northcutt, Jiang and Chuang, JAIR 2021, https://arxiv.org/abs/1911.00068), by cleanlab, on held-out
probabilities. Most of its results are pictures of classes that are hard to distinguish. So a label is called likely
wrong only if the nearest pictures, and among many classes the class text, do not support it either. It is called
doubtful if only the held-out head disagrees with it, or if its two classes overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from clipadapter.doctor.findings import Finding, Picture
from clipadapter.doctor.label_evidence import VOTING_NEIGHBOURS, LabelEvidence
from clipadapter.errors import require

MAX_MIN_ODDS = 10.0
"""Ratio of the probabilities of another class and of the given one from which a label is doubtful; with fewer classes
it is their number. Probabilities are calibrated on the labels, of which some are wrong: with two classes and 10 % wrong
labels no ratio is above 9."""
MAX_SUPPORTING_VOTES = 1
"""A label that more of the nearest pictures have is not doubtful, unless classes are so few that chance gives more."""
TOP_TEXT_SHARE = 0.05
"""Class text supports a label that is among this share of the classes with the largest zero-shot probability: none if
there are fewer than 20, of which text ranks many a wrong label first."""


def find_label_errors(pictures: Sequence[Picture], evidence: LabelEvidence) -> Iterator[Finding]:
    """Findings on labels."""
    rows = np.arange(len(pictures))
    fallback = 0.0 if evidence.zero_shot is None else evidence.zero_shot
    probabilities = np.where(evidence.is_held_out[:, None], evidence.held_out, fallback)
    predicted = probabilities.argmax(axis=1)
    p_label, p_predicted = probabilities[rows, evidence.labels], probabilities[rows, predicted]
    votes, chance_votes = evidence.votes[rows, evidence.labels], VOTING_NEIGHBOURS // len(evidence.names)
    is_doubtful = (predicted != evidence.labels) & (p_predicted > min(MAX_MIN_ODDS, len(evidence.names)) * p_label)
    is_doubtful &= (votes <= max(MAX_SUPPORTING_VOTES, chance_votes)) & ~_is_supported_by_text(evidence)
    # The only picture of a class has no held-out prediction: one of its neighbours must agree with the class text.
    is_doubtful &= evidence.is_held_out | (evidence.votes[rows, predicted] > 0)
    is_wrong = is_doubtful & _is_wrong_by_confident_learning(evidence) & (votes <= chance_votes)
    for i in np.flatnonzero(is_doubtful).tolist():
        label, other = (evidence.names[j] for j in (evidence.labels[i], predicted[i]))
        message = (
            f"{pictures[i].name}: labelled '{label}' ({p_label[i]:.0%}), looks like '{other}' ({p_predicted[i]:.0%})"
        )
        score = (1 + p_predicted[i] - p_label[i]) / 2
        kind = "wrong-label" if is_wrong[i] else "doubtful-label"
        yield Finding(kind, score, message, (pictures[i],), (label, other))


def downgrade_overlapping(findings: Iterable[Finding], overlaps: Iterable[Finding]) -> list[Finding]:
    """Findings on labels, where labels between two classes that overlap are called doubtful, not wrong."""
    pairs = {frozenset(overlap.classes) for overlap in overlaps}
    return [
        replace(finding, kind="doubtful-label") if frozenset(finding.classes) in pairs else finding
        for finding in findings
    ]


def _is_supported_by_text(evidence: LabelEvidence) -> NDArray[np.bool_]:
    """(n,) whether the label is among the classes with the largest zero-shot probabilities."""
    if evidence.zero_shot is None:
        return np.zeros(len(evidence.labels), bool)
    p_label = evidence.zero_shot[np.arange(len(evidence.labels)), evidence.labels]
    rank = (evidence.zero_shot > p_label[:, None]).sum(axis=1)
    is_supported: NDArray[np.bool_] = rank < int(TOP_TEXT_SHARE * len(evidence.names))
    return is_supported


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
