"""Test-time adaptation: answers that depend on other pictures of the stream, or on several views of a picture.

Nothing here is on by default. See docs/guides/at-test-time.md.
"""

from __future__ import annotations

from clipadapter.adaptation.tda import TdaCache, TdaSettings
from clipadapter.adaptation.zero import count_votes, vote
from clipadapter.utils.registry import unknown

Adapt = str | TdaCache | None
"""A method, a cache that goes on, or None for no adaptation."""
METHODS = ("tda",)
"""What ``adapt`` of predictions may name."""

__all__ = ["METHODS", "Adapt", "TdaCache", "TdaSettings", "count_votes", "create_cache", "vote"]


def create_cache(adapt: Adapt, n_classes: int) -> TdaCache | None:
    """A new cache for a stream of pictures, or the given one.

    Args:
        adapt: "tda", a cache that goes on, or None for no adaptation.
        n_classes: c.

    Raises:
        UnknownNameError: if there is no such method.

    >>> create_cache("tda", 3).n_classes, create_cache(None, 3)
    (3, None)
    """
    if adapt is None or isinstance(adapt, TdaCache):
        return adapt
    if adapt not in METHODS:
        raise unknown("method of test-time adaptation", adapt, list(METHODS))
    return TdaCache(n_classes)
