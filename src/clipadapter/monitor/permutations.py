"""Which pictures might have been the stream's: permutations that allow for other shares of the classes.

Where two samples are of one distribution, every division of them is as likely, and a permutation test is exact. Where
the stream has the same classes in other shares, it is not: a picture of a class that is r times as frequent belongs to
the stream with r times the odds. Given all pictures, a set S of m of them is the stream's with probability
proportional to the product of the odds in S. Drawing from that makes the test exact again if the odds are known
(weighted exchangeability, Tibshirani et al. 2019, https://arxiv.org/abs/1904.06019; the conditional permutation test of
Berrett et al. 2020, https://arxiv.org/abs/1807.05405, draws nearly so by swaps).

The draw is the exact one of Chen, Dempster and Liu (1994, Biometrika 81:457-469), one picture after the other.

Letters: N pictures of both samples, m of the stream, b draws.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError

Mask = NDArray[np.bool_]


def draw_groups(odds: ArrayLike, m: int, draws: int, rng: np.random.Generator) -> Mask:
    """Sets of m out of N, each with probability proportional to the product of its odds.

    Args:
        odds: (N,) positive.
        m: size of a set.
        draws: b.
        rng: to draw with.

    Returns:
        (b, N), true where a picture is in the set.

    Raises:
        InputError: if the odds are not positive, or m is not between 0 and N.

    >>> drawn = draw_groups([1.0, 1.0, 2.0], 1, 4000, np.random.default_rng(0))
    >>> bool(abs(drawn.mean(axis=0) - [0.25, 0.25, 0.5]).max() < 0.05)  # the third has half of the odds
    True
    """
    values = np.asarray(odds, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all() or (values <= 0).any() or not 0 <= m <= len(values):
        raise InputError(f"{m} of {values.shape} can't be drawn: give one positive odds a picture")
    logs = np.log(values / np.exp(np.log(values).mean()))  # only their ratios count
    sums = _symmetric(logs, m)
    left = np.full(draws, m)
    drawn = np.zeros((draws, len(values)), bool)
    for i, log in enumerate(logs):
        with np.errstate(invalid="ignore"):  # -inf - -inf: nothing is left to be drawn
            chance = np.exp(log + sums[i + 1, left - 1] - sums[i, left])
        drawn[:, i] = (left > 0) & (rng.random(draws) < chance)
        left -= drawn[:, i]
    return drawn


def _symmetric(logs: NDArray[np.float64], m: int) -> NDArray[np.float64]:
    """Logs of the sums over all sets of j of the pictures i ... N of their products of odds (N + 1, m + 1)."""
    sums = np.full((len(logs) + 1, m + 1), -np.inf)
    sums[-1, 0] = 0.0
    for i in range(len(logs) - 1, -1, -1):
        sums[i] = sums[i + 1]
        sums[i, 1:] = np.logaddexp(sums[i + 1, 1:], logs[i] + sums[i + 1, :-1])
    return sums
