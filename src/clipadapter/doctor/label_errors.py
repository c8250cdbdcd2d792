"""Labels that are likely wrong.

Confident learning (Northcutt, Jiang and Chuang, JAIR 2021, https://arxiv.org/abs/1911.00068), by cleanlab, on held-out
probabilities. Where classes are hard to tell apart it finds mostly these, so a label is called likely wrong only if the
nearest pictures and the class text don't stand by it either; what the held-out head alone is sure of is a note, and so
is what lies between two classes that are taken for each other anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from clipadapter.doctor.findings import Finding, Picture
from clipadapter.doctor.label_evidence import Evidence
from clipadapter.errors import require

ODDS = 10.0
"""How much likelier another class must be than the given one for a doubt."""
AMONG = 0.05
"""Class text stands by a label that is among this share of the classes that it finds best."""


def suspects(pictures: Sequence[Picture], evidence: Evidence) -> Iterator[Finding]:
    """Findings on labels.

    Args:
        pictures: n.
        evidence: on each.

    Raises:
        MissingExtraError: if cleanlab is not installed.
    """
    rows = np.arange(len(pictures))
    opinion = _opinion(evidence)
    proposed = opinion.argmax(axis=1)
    own, other = opinion[rows, evidence.labels], opinion[rows, proposed]
    kept = evidence.votes[rows, evidence.labels]
    alone = ~_by_text(evidence)
    doubt = (proposed != evidence.labels) & (other > ODDS * own) & (kept <= 1) & alone
    # Of a class's only picture there is nothing held out: its neighbours must say the same as the class text.
    doubt &= evidence.judged | (evidence.votes[rows, proposed] > 0)
    likely = doubt & _confident(evidence) & (kept == 0)
    for i in np.flatnonzero(doubt).tolist():
        label, name = (evidence.names[j] for j in (evidence.labels[i], proposed[i]))
        words = f"{pictures[i].name}: labelled '{label}' ({own[i]:.0%}), looks like '{name}' ({other[i]:.0%})"
        score = (1 + other[i] - own[i]) / 2
        yield Finding("wrong-label" if likely[i] else "doubtful-label", score, words, (pictures[i],), (label, name))


def spared(found: Iterable[Finding], overlaps: Iterable[Finding]) -> list[Finding]:
    """Findings on labels as they stand beside classes that overlap: between these, one label is no more than doubtful.

    Args:
        found: of `suspects`.
        overlaps: findings on pairs of classes.
    """
    mixed = {frozenset(one.classes) for one in overlaps}
    return [replace(one, kind="doubtful-label") if frozenset(one.classes) in mixed else one for one in found]


def _opinion(evidence: Evidence) -> NDArray[np.float64]:
    """(n, c) held-out probabilities; zero-shot's, or none for any class, where there are none."""
    judged = evidence.judged[:, None]
    return np.where(judged, evidence.held, 0.0 if evidence.text is None else evidence.text)


def _by_text(evidence: Evidence) -> NDArray[np.bool_]:
    """(n,) whether the class text finds the given class among the best."""
    if evidence.text is None:
        return np.zeros(len(evidence.labels), bool)
    given = evidence.text[np.arange(len(evidence.labels)), evidence.labels]
    better = (evidence.text > given[:, None]).sum(axis=1)
    found: NDArray[np.bool_] = better < max(1.0, AMONG * len(evidence.names))
    return found


def _confident(evidence: Evidence) -> NDArray[np.bool_]:
    """(n,) what confident learning takes for wrong: pruned by the estimated noise, or the least normalized margins."""
    found = np.zeros(len(evidence.labels), bool)
    rows = np.flatnonzero(evidence.judged)
    cleanlab = require("cleanlab.filter", "doctor", "looking for wrong labels")
    classes, labels = np.unique(evidence.labels[rows], return_inverse=True)
    if len(classes) < 2:
        return found
    probabilities = evidence.held[np.ix_(rows, classes)] + 1e-9
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    for rule in ("prune_by_noise_rate", "low_normalized_margin"):
        found[rows] |= cleanlab.find_label_issues(labels, probabilities, filter_by=rule, n_jobs=1)
    return found
