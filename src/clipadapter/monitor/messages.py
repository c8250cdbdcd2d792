"""Results of the checks as phrases."""

from __future__ import annotations

from collections.abc import Sequence

from clipadapter.monitor.drift import ClassPrior
from clipadapter.monitor.ood_rate import OodRate

MAX_NAMED_CLASSES = 3


def describe_covariate_shift(p_value: float) -> str:
    """Phrase for a change of the features."""
    return f"the pictures look different (p = {p_value:.2g})"


def describe_label_shift(classes: Sequence[ClassPrior], alpha: float, is_reliable: bool) -> str:
    """Phrase for a change of the class priors; the class with the smallest p-value comes first."""
    order = sorted(classes, key=lambda prior: (prior.p_value or 0.0, -abs(prior.current - prior.reference)))
    changed = [prior for prior in order if prior.p_value is not None and prior.p_value <= alpha] or order[:1]
    phrases = [_describe_class(prior, "is" if is_reliable else "seems") for prior in changed[:MAX_NAMED_CLASSES]]
    n_unnamed = len(changed) - MAX_NAMED_CLASSES
    return ", ".join(phrases) + (f", and {n_unnamed} more classes changed" if n_unnamed > 0 else "")


def describe_ood_rate(rate: OodRate, reference: str) -> str:
    """Phrase for pictures of none of the classes."""
    expected = (
        f"target {format_percent(rate.target)}" if reference == "shots" else f"usually {format_percent(rate.reference)}"
    )
    return f"{format_percent(rate.current)} are none of the classes ({expected})"


def _describe_class(prior: ClassPrior, verb: str) -> str:
    shares = f"({format_percent(prior.current)}, usually {format_percent(prior.reference)})"
    if prior.current < 0.001 or prior.current < prior.reference / 20:
        return f"'{prior.name}' {'has' if verb == 'is' else 'seems to have'} nearly vanished {shares}"
    if prior.reference < 0.001:
        return f"'{prior.name}' {verb} new {shares}"
    ratio = prior.current / prior.reference
    digits = ".2g" if ratio < 1 else ".1f"
    return f"'{prior.name}' {verb} {ratio:{digits}} times as frequent as usual {shares}"


def format_percent(share: float) -> str:
    """A share in percent.

    >>> format_percent(0.314), format_percent(0.004), format_percent(0.0)
    ('31 %', '0.4 %', '0 %')
    """
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"
