"""ZERO: confident views of one picture vote for its class.

Paper: Farina et al., NeurIPS 2024, https://arxiv.org/abs/2405.18330. Code: FarinaMatteo/zero (MIT).

Of all views of a picture those of lowest entropy are kept. Each of them votes for its most probable class, which is the
softmax at temperature zero, and the class with most votes wins. Of several such classes the one wins that the next
views vote for, in the order of their entropy.

Differences: the authors' code breaks a tie by the next views in the order in which they were made. Its probabilities
are shares of the votes, which are 0 and 1 for most pictures; here the votes decide the class, and the probabilities are
the means of those of all views, whose log-loss on development sets is a third of that of the votes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.adaptation.tda import entropy
from clipadapter.errors import InputError

Array = NDArray[Any]
KEPT_SHARE = 0.3
"""Share of the views that vote, rounded down. The paper's first version has 0.1, the authors' code 0.3."""


def vote(log_probabilities: Array) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The class with most votes (n,), and the mean probabilities of all views (n, c).

    Args:
        log_probabilities: (n, v, c) of v views of n pictures; at least one view of each votes.

    Raises:
        InputError: if the shape is another, or there is no view.

    >>> classes, probabilities = vote(np.log([[[0.9, 0.1], [0.3, 0.7], [0.2, 0.8]]]))
    >>> classes, probabilities.round(2)
    (array([0]), array([[0.47, 0.53]]))
    """
    z = np.asarray(log_probabilities, np.float64)
    if z.ndim != 3 or not z.shape[1]:
        raise InputError(f"log-probabilities must be (n, v, c) of one view or more, got {z.shape}")
    n_kept = max(1, int(KEPT_SHARE * z.shape[1]))
    return np.array([count_votes(views, n_kept).argmax() for views in z], np.intp), np.exp(z).mean(axis=1)


def count_votes(views: Array, n_kept: int) -> NDArray[np.int64]:
    """Votes (c,) from log-probabilities (v, c) of one picture; a tie is broken by one more vote.

    >>> count_votes(np.log([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]]), 2)  # the third view breaks the tie
    array([2, 1])
    """
    rows = views[np.argsort(entropy(np.exp(views)), kind="stable")]  # the views of lowest entropy first
    choices = rows.argmax(axis=1)
    votes = np.bincount(choices[:n_kept], minlength=rows.shape[1])
    tied = np.flatnonzero(votes == votes.max())
    if len(tied) > 1:
        more = [int(k) for k in choices[n_kept:] if k in tied]
        votes[more[0] if more else tied[rows[0, tied].argmax()]] += 1
    return votes
