"""Whether more pictures are none of the classes than usual."""

from __future__ import annotations

import math

Z = 1.959963984540054
"""97.5 % point of the normal distribution."""


def more_than_usual(now: int, m: int, usual: int, n: int) -> float:
    """Chance of so many where nothing changed: Fisher's exact test, one-sided.

    It holds for shots too, of whose scores the threshold itself was taken: that ``now`` or more of m pictures are above
    the score that ``usual`` of n shots are above, says that of the now + usual strangest of all so many are the m's,
    and where nothing changed these are drawn from all at random.

    Args:
        now: pictures of the stream that are none of the classes.
        m: pictures of the stream.
        usual: likewise of the reference.
        n: pictures of the reference.

    >>> round(more_than_usual(3, 3, 0, 3), 3)  # one of the 20 ways to choose three of six
    0.05
    >>> more_than_usual(0, 10, 0, 10)
    1.0
    """
    strange = now + usual
    ways = [_log_ways(m, k) + _log_ways(n, strange - k) for k in range(max(now, strange - n), min(m, strange) + 1)]
    return min(1.0, math.fsum(math.exp(way - _log_ways(m + n, strange)) for way in ways))


def wilson(count: int, m: int) -> tuple[float, float, float]:
    """A share of m pictures, with Wilson's 95 % interval (1927).

    >>> [round(x, 3) for x in wilson(10, 10)]
    [1.0, 0.722, 1.0]
    """
    share = count / m
    centre = (share + Z**2 / (2 * m)) / (1 + Z**2 / m)
    half = Z * math.sqrt(share * (1 - share) / m + Z**2 / (4 * m**2)) / (1 + Z**2 / m)
    return share, max(0.0, centre - half), min(1.0, centre + half)


def _log_ways(n: int, k: int) -> float:
    """Log of n over k."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
