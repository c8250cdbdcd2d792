"""Whether more pictures show none of the classes than in the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class OodRate:
    """Share of the pictures that show none of the classes.

    Args:
        target: share of the pictures of the classes that the threshold of the model rejects.
        reference: share of the reference.
        current: share of the stream.
        low: lower end of Wilson's 95 % interval of ``current``.
        high: upper end.
    """

    target: float
    reference: float
    current: float
    low: float
    high: float


def fisher_p_value(rejected: int, m: int, reference_rejected: int, n: int) -> float:
    """P-value of Fisher's exact test, one-sided: are more pictures of the stream rejected than of the reference?

    The test also holds for shots, although the threshold is the score of one of them. Consider the pictures with the
    highest scores, as many as are rejected in both samples together. If nothing changed, they are a random draw from
    all m + n pictures. The p-value is the probability that ``rejected`` or more of them are of the stream.

    >>> round(fisher_p_value(3, 3, 0, 3), 3)  # one of the 20 ways to choose three of six
    0.05
    >>> fisher_p_value(0, 10, 0, 10)
    1.0
    """
    total = rejected + reference_rejected
    log_ways = [
        _log_binomial(m, k) + _log_binomial(n, total - k) for k in range(max(rejected, total - n), min(m, total) + 1)
    ]
    return min(1.0, math.fsum(math.exp(log - _log_binomial(m + n, total)) for log in log_ways))


def _log_binomial(n: int, k: int) -> float:
    """Logarithm of the binomial coefficient n over k."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
