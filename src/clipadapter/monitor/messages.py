"""Findings in words."""

from __future__ import annotations

from collections.abc import Sequence

from clipadapter.monitor.drift import ClassShare, NoneShare

NAMED = 3
"""Classes that the verdict names."""


def of_looks(p: float) -> str:
    """What is said of different looks."""
    return f"the pictures look different (p = {p:.2g})"


def of_shares(classes: Sequence[ClassShare], alpha: float, sure: bool) -> str:
    """What is said of other shares of the classes, the most surely changed first.

    Args:
        classes: all.
        alpha: chance of a false alarm.
        sure: whether the pictures look as usual, so that shares can be believed.
    """
    order = sorted(classes, key=lambda one: (one.p or 0.0, -abs(one.now - one.usual)))
    changed = [one for one in order if one.p is not None and one.p <= alpha] or order[:1]
    told = [_change(one, "is" if sure else "seems") for one in changed[:NAMED]]
    rest = len(changed) - NAMED
    return ", ".join(told) + (f", and {rest} more classes changed" if rest > 0 else "")


def of_none(none: NoneShare, reference: str) -> str:
    """What is said of pictures of none of the classes."""
    usual = f"promised {percent(none.rate)}" if reference == "shots" else f"usually {percent(none.usual)}"
    return f"{percent(none.now)} are none of the classes ({usual})"


def _change(one: ClassShare, verb: str) -> str:
    shares = f"({percent(one.now)}, usually {percent(one.usual)})"
    if one.now < 0.001 or one.now < one.usual / 20:
        return f"'{one.name}' {'has' if verb == 'is' else 'seems to have'} nearly vanished {shares}"
    if one.usual < 0.001:
        return f"'{one.name}' {verb} new {shares}"
    ratio = one.now / one.usual
    if ratio < 1:
        return f"'{one.name}' {verb} {ratio:.2g} times as frequent as usual {shares}"
    return f"'{one.name}' {verb} {ratio:.1f} times as frequent as usual {shares}"


def percent(share: float) -> str:
    """A share in words.

    >>> percent(0.314), percent(0.004), percent(0.0)
    ('31 %', '0.4 %', '0 %')
    """
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"
