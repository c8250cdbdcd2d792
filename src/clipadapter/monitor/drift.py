"""What a look at a stream of pictures found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKS = {"looks": "how the pictures look", "shares": "how frequent the classes are", "none": "none of the classes"}
"""What is tested, by the name of the test."""


@dataclass(frozen=True)
class Finding:
    """One test.

    Args:
        check: "looks", "shares" or "none".
        p: chance of such a difference where nothing changed; None if it could not be tested.
        corrected: the same allowing for the number of tests (Holm 1979).
        found: whether that is not above alpha.
        words: what there is to say of it.
    """

    check: str
    p: float | None
    corrected: float | None
    found: bool
    words: str


@dataclass(frozen=True)
class ClassShare:
    """How frequent a class is.

    Args:
        name: of the class.
        usual: its usual share.
        now: its share in the stream.
        low: lower end of the 95 % interval of ``now``.
        high: upper end.
        p: chance of such a difference in any of the classes where nothing changed; None if it was not tested.
    """

    name: str
    usual: float
    now: float
    low: float
    high: float
    p: float | None


@dataclass(frozen=True)
class NoneShare:
    """How many pictures are none of the classes.

    Args:
        rate: that was promised.
        usual: share among the reference's pictures.
        now: share in the stream.
        low: lower end of Wilson's 95 % interval of ``now``.
        high: upper end.
    """

    rate: float
    usual: float
    now: float
    low: float
    high: float


@dataclass(frozen=True)
class Window:
    """Pictures that came one after the other.

    Args:
        start: number of the first, from 0, in the order of the stream.
        end: number after the last.
        begins: when the first came, in seconds since 1970; None if that is not known.
        none: share that is none of the classes, with Wilson's 95 % interval; None if the model can't say.
        probability: mean probability of the likeliest class.
        distance: how far their looks are from the usual, in standard deviations of chance; None if not looked at.
        chance: the distance that 95 % of as many usual pictures stay below.
        shares: of the classes.
    """

    start: int
    end: int
    begins: float | None
    none: tuple[float, float, float] | None
    probability: float
    distance: float | None
    chance: float | None
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Drift:
    """What was found of a stream.

    Args:
        pictures: how many were looked at.
        repeated: how many more were the same picture again.
        skipped: (name, reason) of those that can't be read.
        reference: what they were compared with: "shots" or "pictures".
        reference_pictures: how many these were.
        alpha: chance of a false alarm.
        findings: the tests, in the order of `CHECKS`.
        classes: how frequent each class is.
        none: how many pictures are none of them; None if the model can't say.
        windows: the stream over time.
    """

    pictures: int
    repeated: int
    skipped: tuple[tuple[str, str], ...]
    reference: str
    reference_pictures: int
    alpha: float
    findings: tuple[Finding, ...]
    classes: tuple[ClassShare, ...]
    none: NoneShare | None
    windows: tuple[Window, ...]

    @property
    def drift(self) -> bool:
        """Whether anything changed."""
        return any(finding.found for finding in self.findings)

    def sentence(self) -> str:
        """The verdict in a line."""
        found = [finding.words for finding in self.findings if finding.found]
        if found:
            return f"drift: {'; '.join(found)}"
        tested = [finding for finding in self.findings if finding.p is not None]
        least = min((finding.corrected or 0.0 for finding in tested), default=1.0)
        return f"no drift was found (p = {least:.2g})" if tested else "nothing could be tested"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "drift": self.drift,
            "verdict": self.sentence(),
            "pictures": self.pictures,
            "repeated": self.repeated,
            "skipped": [{"source": name, "error": reason} for name, reason in self.skipped],
            "reference": self.reference,
            "reference_pictures": self.reference_pictures,
            "alpha": self.alpha,
            "findings": [vars(finding) for finding in self.findings],
            "classes": [vars(one) for one in self.classes],
            "none": None if self.none is None else vars(self.none),
            "windows": [self._window(one) for one in self.windows],
        }

    def _window(self, one: Window) -> dict[str, Any]:
        names = (share.name for share in self.classes)
        none = None if one.none is None else dict(zip(("now", "low", "high"), one.none, strict=True))
        return {**vars(one), "none": none, "shares": dict(zip(names, one.shares, strict=True))}

    def to_png(self, path: str | Path) -> Path:
        """Draw it: what changed over time, and how frequent the classes are.

        Args:
            path: PNG file to write.

        Raises:
            InputError: if it can't be written.
        """
        from clipadapter.monitor.plot import draw

        return draw(self, path)


def holm(values: Sequence[float]) -> list[float]:
    """P-values that allow for their number: Holm (1979, Scandinavian Journal of Statistics 6:65-70).

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order, found, highest = sorted(range(len(values)), key=lambda i: values[i]), [0.0] * len(values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - place) * values[i]))
        found[i] = highest
    return found
