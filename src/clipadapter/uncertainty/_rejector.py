"""A learned judge of strange pictures: its scores, threshold, reasons, and what is saved of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError
from clipadapter.uncertainty._columns import Memory
from clipadapter.uncertainty._rejector_state import memory_arrays, read_state
from clipadapter.uncertainty._scores import unit_rows

Array = NDArray[Any]


@dataclass(frozen=True)
class Part:
    """One score in the sum.

    Args:
        name: of the score.
        weight: what it counts.
        centre: mean over the held-out shots.
        deviation: standard deviation over them.
    """

    name: str
    weight: float
    centre: float
    deviation: float


@dataclass(frozen=True)
class Threshold:
    """Where "none of these" begins.

    Args:
        value: pictures with a higher score are rejected.
        rate: share of pictures of the classes that was asked to be rejected.
        least: smallest rate that so many held-out shots can set, 1 / (r + 1).
        enough: whether ``rate`` is not below it; if it is, a normal tail is assumed.
        bound: one shot a class, so that the rate is a bound from above only.
        shots: r, held-out shots that set it.
    """

    value: float
    rate: float
    least: float
    enough: bool
    bound: bool
    shots: int


@dataclass(frozen=True, eq=False)
class Rejector:
    """How strange pictures are to a fitted model.

    Args:
        method: as learned.
        parts: scores that are summed.
        held_out: (r, p) the parts' scores of held-out shots.
        bound: whether no class had two shots.
        names: of the distractors.
        memory: what pictures are compared with.
    """

    method: str
    parts: tuple[Part, ...]
    held_out: Array
    bound: bool
    names: tuple[str, ...]
    memory: Memory

    def scores(self, features: ArrayLike, logits: ArrayLike, probabilities: ArrayLike | None = None) -> Array:
        """How strange pictures are (m,): a sum of standard scores, 0 for the mean held-out shot; higher is stranger.

        Args:
            features: (m, d) as from the encoder, any length.
            logits: (m, c) of the head.
            probabilities: (m, c) calibrated; only the method "msp" needs them.

        Raises:
            InputError: if a shape does not fit.
        """
        return self.total(self.columns(features, logits, probabilities))

    def total(self, columns: ArrayLike) -> Array:
        """How strange pictures are (m,), from the scores (m, p) of the parts.

        Raises:
            InputError: if there is not a column for each part.
        """
        found = np.asarray(columns, dtype=np.float64)
        if found.ndim != 2 or found.shape[1] != len(self.parts):
            raise InputError(f"scores {found.shape}: give a column for each of the {len(self.parts)} parts")
        return np.asarray(self._weighted(found).sum(axis=1))

    def threshold(self, rate: float = 0.05) -> Threshold:
        """The score above which pictures are rejected, so that a share ``rate`` of pictures of the classes is.

        The ceil((r + 1)(1 - rate))-th lowest held-out score (the quantile of split conformal prediction: Vovk et al.
        2005): a new picture of a class, exchangeable with the held-out shots, is above it with probability at most
        ``rate``. The held-out scores are by fits to fewer shots, so that this holds but nearly: where 5 % was asked,
        5 to 6 % were rejected from two shots a class on (Caltech-101, 81 classes, 5 draws).

        Where there are too few held-out shots for the rate, no score of theirs is high enough: then it is the highest
        of them, or the bound that a normal tail puts on one more score (Student's t), whichever is higher; with fewer
        than three, nothing is rejected.

        Args:
            rate: between 0 and 1.

        Raises:
            InputError: if the rate is out of range.
        """
        if not 0 < rate < 1:
            raise InputError(f"the share to be rejected is between 0 and 1, but is {rate}")
        ordered = np.sort(self.total(self.held_out))
        r = len(ordered)
        position = math.ceil((r + 1) * (1 - rate) - 1e-9)
        value = float(ordered[position - 1]) if position <= r else _beyond(ordered, rate)
        return Threshold(value, rate, 1 / (r + 1), position <= r, self.bound, r)

    def reasons(self, features: ArrayLike, logits: ArrayLike, probabilities: ArrayLike | None = None) -> list[str]:
        """What makes each of m pictures strange, in a few words: the part that adds most to its score."""
        return self.reasons_by(self.columns(features, logits, probabilities), features)

    def reasons_by(self, columns: ArrayLike, features: ArrayLike) -> list[str]:
        """The same from the parts' scores (m, p); features (m, d) serve to name a distractor."""
        found = np.asarray(columns, dtype=np.float64)
        most = self._weighted(found).argmax(axis=1)
        rows = unit_rows(np.asarray(features))
        return [self._words(int(p), found[i, p], rows[i]) for i, p in enumerate(most)]

    def light(self) -> Rejector:
        """The same without what pictures are compared with: for where the parts' scores come from elsewhere."""
        return replace(self, names=(), memory=Memory(scale=self.memory.scale))

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Facts for JSON and arrays: all that `from_state` needs."""
        facts = {
            "method": self.method,
            "parts": [vars(part) for part in self.parts],
            "bound": self.bound,
            "names": list(self.names),
            "scale": self.memory.scale,
            "floor": self.memory.spread.floor if self.memory.spread else None,
        }
        return facts, {"held_out": self.held_out, **memory_arrays(self.memory)}

    @classmethod
    def from_state(cls, facts: dict[str, Any], arrays: dict[str, Array], light: bool = False) -> Rejector:
        """What `state` gave, checked.

        Args:
            facts: as from `state`.
            arrays: likewise.
            light: it was `light`, and may lack what pictures are compared with.

        Raises:
            ArtifactError: if something is missing, or of the wrong shape or kind, or not finite.
        """
        parts, names, memory = read_state(facts, arrays, light)
        made = tuple(Part(**part) for part in parts)
        return cls(str(facts["method"]), made, arrays["held_out"], bool(facts["bound"]), names, memory)

    def columns(self, features: ArrayLike, logits: ArrayLike, probabilities: ArrayLike | None = None) -> Array:
        """The score (m, p) of each part; arguments as of `scores`."""
        rows, answers = np.asarray(features), np.asarray(logits, dtype=np.float64)
        width = self.memory.width
        if rows.ndim != 2 or answers.ndim != 2 or len(rows) != len(answers) or width not in (rows.shape[1], None):
            raise InputError(
                f"features {rows.shape} and logits {answers.shape}: give a row of each for every picture, features "
                f"of width {width}"
            )
        likely = None if probabilities is None else np.asarray(probabilities, dtype=np.float64)
        lengths = unit_rows(rows)
        found = [self.memory.column(part.name, lengths, answers, likely) for part in self.parts]
        return np.stack(found, axis=1) if len(rows) else np.zeros((0, len(self.parts)))

    def _weighted(self, columns: Array) -> Array:
        centre, deviation = (np.array([getattr(p, key) for p in self.parts]) for key in ("centre", "deviation"))
        return np.asarray((columns - centre) / deviation * np.array([part.weight for part in self.parts]))

    def _words(self, p: int, value: float, row: Array) -> str:
        """Why one picture (d,) is strange by part ``p``, whose score of it is ``value``."""
        name, memory = self.parts[p].name, self.memory
        below = int(100 * (self.held_out[:, p] < value).mean())
        share = "all of the shots are" if below == 100 else f"{below} % of the shots are"
        if name == "distractors" and memory.distractors is not None and memory.text is not None:
            other = memory.distractors @ row
            if other.max() > (memory.text @ row).max() and self.names:
                return f"nearer to '{self.names[int(other.argmax())]}' than to any class name"
            return f"nearer to names of other things than {share}"
        if name == "background":
            return (
                "nearer to background pictures than to any class"
                if value > 0
                else f"nearer to background pictures than {share}"
            )
        if name in ("mahalanobis", "knn"):
            return f"farther from every class than {share}" + (" from other classes" if self.bound else "")
        if name in ("text", "mcm"):
            return f"less like any class name than {share}"
        return f"less like any class than {share}"


def _beyond(ordered: Array, rate: float) -> float:
    """The score that one more of r ascending ones exceeds with probability ``rate``, if they are normal.

    Student's quantile is by its expansion in 1 / (r - 1) (Abramowitz and Stegun 1964, 26.7.5): within 2 % for rates
    down to 0.01 from six shots on, and lower than it is with fewer.

    >>> round(_beyond(np.array([-1.0, 0.0, 1.0, 0.5, -0.5]), 0.05), 2)  # 0 + 2.13 * 0.79 * sqrt(1.2)
    1.84
    """
    r = len(ordered)
    if r < 3:
        return math.inf
    z, v = -NormalDist().inv_cdf(rate), r - 1
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    bound = float(ordered.mean() + t * ordered.std(ddof=1) * math.sqrt(1 + 1 / r))
    return max(bound, float(ordered[-1]))
