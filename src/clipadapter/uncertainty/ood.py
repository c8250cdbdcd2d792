"""None of these: whether a picture shows any of the classes at all.

A `Rejector` is learned from the shots alone. Its score says how strange a picture is; its threshold is set so that a
chosen share of pictures of the classes is rejected, by scores of the shots as if they had not been seen. Scores are in
`clipadapter.uncertainty._scores`, each with its paper.

``method="auto"`` is a weighted sum of scores on a common scale (mean and deviation of the held-out shots): the highest
logit, the Mahalanobis distance to the classes' means, and the text (the distractors' share where there are distractors,
else the distance to the nearest class text), and the background if there is one. What a score is worth is seen from
the shots: each shot is also scored as if its class did not exist, and the weight is how many standard deviations these
lie above the others (the rule of a linear discriminant with a diagonal covariance).

Where no class has two shots, text has still never seen them, so that its held-out scores are exact; but a distance can
only be had from the other classes' shots. The sum's threshold is then too high, never too low: fewer pictures of the
classes are rejected than was asked (``Threshold.bound``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import ArtifactError, InputError, TooFewShotsError
from clipadapter.uncertainty.ood_scores import (
    NEEDS,
    TO_SHOTS,
    Memory,
    Spread,
    background_of_itself,
    held_out_column,
    memory_and_seen,
    unit_rows,
)

Array = NDArray[Any]
METHODS = ("auto", *NEEDS)
MOST_BACKGROUND = 512
"""Background pictures that are kept; of more, as many are drawn."""


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


def learn_rejector(
    features: ArrayLike,
    labels: ArrayLike,
    c: int,
    *,
    logits: ArrayLike | None = None,
    rows: ArrayLike | None = None,
    probabilities: ArrayLike | None = None,
    text: ArrayLike | None = None,
    scale: float = 100.0,
    distractors: ArrayLike | None = None,
    names: Sequence[str] = (),
    background: ArrayLike | None = None,
    method: str = "auto",
    seed: int = 0,
) -> Rejector:
    """Learn from the shots how strange a picture may be.

    Args:
        features: (n, d) of the shots, any length.
        labels: (n,) class positions.
        c: number of classes.
        logits: (r, c) of shots by heads that had not seen them (`heads.held_out`); None if there are none.
        rows: (r,) which shots these are.
        probabilities: (r, c) from the held-out logits by the calibrator; only "msp" needs them.
        text: (c, d) unit class text, rows of zeros for classes without; None if there is none.
        scale: the encoder's logit scale.
        distractors: (k, d) text of other things, see `kept_distractors`.
        names: k names of these, for the reasons.
        background: (b, d) features of pictures of none of the classes.
        method: "auto" or the name of one score.
        seed: of the draw among more than 512 background pictures.

    Raises:
        InputError: if the method is not known or lacks what it needs, a shape does not fit, or there is nothing to
            learn from.

    >>> X, y = np.array([[1, 0.1], [1, -0.1], [0.1, 1], [-0.1, 1]]), [0, 0, 1, 1]
    >>> rejector = learn_rejector(X, y, 2, text=np.eye(2))
    >>> strange = rejector.scores([[1, 0], [-1, -1]], np.zeros((2, 2)))
    >>> strange > rejector.threshold(0.2).value
    array([False,  True])
    """
    X, y = np.asarray(features, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if method not in METHODS:
        raise InputError(f"no way to tell strange pictures is called {method!r}; there are: {', '.join(METHODS)}")
    if X.ndim != 2 or not len(X) or y.shape != X.shape[:1] or y.min() < 0 or y.max() >= c:
        raise InputError(f"features {X.shape} and labels {y.shape}: give at least one shot, labels from 0 to {c - 1}")
    extra = {
        "text": _matrix(text, "class text", X.shape[1], c),
        "distractors": _matrix(distractors, "distractors", X.shape[1], len(names) or None),
        "background": _drawn(_matrix(background, "background features", X.shape[1], None), seed),
    }
    answers, likely = (_scattered(part, rows, len(X), c) for part in (logits, probabilities))
    apart = method in ("auto", "mahalanobis", "background")
    memory, seen = memory_and_seen(X, y, c, answers, likely, apart, scale=float(scale), **extra)
    single = bool(np.bincount(y, minlength=c).max() < 2)
    wanted = [method] if method != "auto" else _auto(memory, answers is not None and not single, not single or c > 1)
    columns = [held_out_column(name, memory, seen) for name in wanted]
    known, other = (np.stack([column[i] for column in columns], axis=1) for i in (0, 1))
    # Without a second shot a distance can only be to other classes: too far, so that too few are rejected.
    bound = single and not TO_SHOTS.isdisjoint(wanted)
    known = np.where(np.isnan(known), other, known) if bound else known
    kept = np.isfinite(known).all(axis=1)
    if not kept.any():
        raise TooFewShotsError(
            "nothing is known of pictures that were not learned from: give two shots of some class, or class text"
        )
    known, other = known[kept], other[kept]
    centre, deviation = known.mean(axis=0), known.std(axis=0)
    deviation = np.where(deviation > 1e-12 * (1 + np.abs(centre)), deviation, 1.0)
    weights = np.ones(len(wanted)) if bound or len(wanted) == 1 else _weights(wanted, known, other, memory)
    parts = tuple(Part(*map(_plain, each)) for each in zip(wanted, weights, centre, deviation, strict=True))
    told = tuple(map(str, names)) if "distractors" in wanted else ()
    return Rejector(method, parts, known, bound, told, memory.kept(wanted))


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else float(value)


def _auto(memory: Memory, logits: bool, distances: bool) -> list[str]:
    """The scores that the default sums, if held-out logits, or distances to shots, are to be had."""
    distances = distances and memory.spread is not None
    by_text = "text" if memory.distractors is None else "distractors"
    found = {
        "max-logit": logits,
        "mahalanobis": distances,
        by_text: memory.text is not None,
        "background": distances and memory.background is not None,
    }
    if not any(found.values()):
        raise TooFewShotsError(
            "nothing tells what is strange: give class text, or two shots of some class and one of each"
        )
    return [name for name, there in found.items() if there]


def _weights(wanted: list[str], known: Array, other: Array, memory: Memory) -> Array:
    """How far the scores of strangers lie above the others, in standard deviations; equal if none does."""
    found = []
    for i, name in enumerate(wanted):
        strangers = [other[np.isfinite(other[:, i]), i]]
        if name == "background":
            strangers.append(background_of_itself(memory))
        strangers = [each for each in strangers if len(each)]
        if not strangers:
            return np.ones(len(wanted))
        mean, variance = (float(np.mean([f(each) for each in strangers])) for f in (np.mean, np.var))
        spread = math.sqrt((known[:, i].var() + variance) / 2)
        found.append(max(0.0, (mean - known[:, i].mean()) / spread) if spread > 1e-12 else 0.0)
    return np.array(found) if sum(found) > 0 else np.ones(len(wanted))


def _matrix(value: ArrayLike | None, what: str, width: int, count: int | None) -> Array | None:
    if value is None:
        return None
    found = np.asarray(value, dtype=np.float64)
    if found.ndim != 2 or found.shape[1] != width or len(found) != (len(found) if count is None else count):
        wanted = f"({count or 'any number'}, {width})"
        raise InputError(f"{what} must have shape {wanted}, but have {found.shape}: are they by the same encoder?")
    if not np.isfinite(found).all():
        raise InputError(f"{what} are not all finite")
    return unit_rows(found) if len(found) else None


def _drawn(background: Array | None, seed: int) -> Array | None:
    if background is None or len(background) <= MOST_BACKGROUND:
        return background
    return background[np.sort(np.random.default_rng(seed).permutation(len(background))[:MOST_BACKGROUND])]


def _scattered(values: ArrayLike | None, rows: ArrayLike | None, n: int, c: int) -> Array | None:
    """What is known of some shots (r, c) as (n, c), NaN for the others."""
    if values is None:
        return None
    found, where = np.asarray(values, dtype=np.float64), np.asarray(np.arange(n) if rows is None else rows)
    if found.shape != (len(where), c) or (len(where) and not 0 <= where.min() <= where.max() < n):
        raise InputError(f"held-out answers {found.shape} of rows {where.shape}: give ({len(where)}, {c}) of {n} shots")
    full = np.full((n, c), np.nan)
    full[where] = found
    return full


MATRICES = ("text", "distractors", "background", "shots")
_FACTS = {"method", "parts", "bound", "names", "scale", "floor"}
_PART = {"name", "weight", "centre", "deviation"}


def memory_arrays(memory: Memory) -> dict[str, Array]:
    """The arrays of a memory by name."""
    found = {name: getattr(memory, name) for name in MATRICES if getattr(memory, name) is not None}
    if memory.spread is not None:
        found |= {"means": memory.spread.means, "basis": memory.spread.basis}
    return found


def read_state(
    facts: Mapping[str, Any], arrays: Mapping[str, Array], light: bool = False
) -> tuple[list[dict[str, Any]], tuple[str, ...], Memory]:
    """Parts, names of distractors, and memory, which may be empty if it is ``light``.

    Raises:
        ArtifactError: if something is missing, or of the wrong shape or kind, or not finite.
    """
    _demand(isinstance(facts, Mapping) and set(facts) == _FACTS, f"it must say {', '.join(sorted(_FACTS))}")
    _demand(facts["method"] in ("auto", *NEEDS), f"its method is {facts['method']!r}")
    parts = facts["parts"]
    _demand(isinstance(parts, list) and len(parts) > 0, "its parts must be a list")
    for part in parts:
        _demand(isinstance(part, dict) and set(part) == _PART and part["name"] in NEEDS, f"it has a part {part!r}")
        numbers = [part["weight"], part["centre"], part["deviation"]]
        _demand(all(_number(x) for x in numbers) and part["weight"] >= 0 < part["deviation"], f"{part!r} is no part")
    _demand(_number(facts["scale"]) and facts["scale"] > 0, f"its scale is {facts['scale']!r}")
    _demand(isinstance(facts["bound"], bool), f"its bound is {facts['bound']!r}")
    names = facts["names"]
    _demand(isinstance(names, list) and all(isinstance(name, str) for name in names), "its names must be texts")
    memory = _memory(arrays, facts)
    _demand(arrays["held_out"].shape[1:] == (len(parts),), "its held-out scores don't fit its parts")
    # A table with a stranger's row or column would give a wrong answer, not an error.
    for part in parts:
        _demand(light or _has(memory, part["name"]), f"it lacks the arrays of {part['name']!r}")
    k = 0 if memory.distractors is None else len(memory.distractors)
    _demand(len(names) in (0, k), f"it has {len(names)} names of {k} distractors")
    return parts, tuple(names), memory


def _memory(arrays: Mapping[str, Array], facts: Mapping[str, Any]) -> Memory:
    known = {"held_out", "means", "basis", *MATRICES}
    _demand("held_out" in arrays and set(arrays) <= known, f"its arrays are {sorted(arrays)}")
    widths = set()
    for name, array in arrays.items():
        shaped = isinstance(array, np.ndarray) and array.ndim == 2 and array.dtype.kind == "f"
        _demand(shaped and (len(array) > 0 or name == "basis"), f"{name!r} must be a matrix of numbers")
        _demand(bool(np.isfinite(array).all()), f"{name!r} is not finite")
        widths |= {array.shape[1]} if name != "held_out" else set()
    _demand(len(widths) <= 1, f"its arrays are of widths {sorted(widths)}")
    given: dict[str, Any] = {name: arrays[name] for name in MATRICES if name in arrays}
    if "means" not in arrays:
        return Memory(scale=float(facts["scale"]), **given)
    floor = facts["floor"]
    _demand("basis" in arrays and _number(floor) and floor > 0, f"its floor is {floor!r}")
    classes = {len(arrays[name]) for name in ("means", "text") if name in arrays}
    _demand(len(classes) == 1, f"its means and class text are of {sorted(classes)} classes")
    return Memory(Spread(arrays["means"], arrays["basis"], float(floor)), scale=float(facts["scale"]), **given)


def _has(memory: Memory, name: str) -> bool:
    need = {
        "mahalanobis": (memory.spread,),
        "background": (memory.spread, memory.background),
        "knn": (memory.shots,),
        "distractors": (memory.text, memory.distractors),
        "text": (memory.text,),
        "mcm": (memory.text,),
    }
    return all(each is not None for each in need.get(name, ()))


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _demand(right: bool, text: str) -> None:
    if not right:
        raise ArtifactError(f"the saved rejector can't be used: {text}. Fit and save the model again")
