"""Quality "auto": held-out shots decide whether a model looks at its pictures a second time, at a larger size.

The second look is what the quality "best" reads beside "standard". It brings 20 points where defects are small and 1 or
2 elsewhere, and nothing else tells the two apart. So some shots are read at both qualities, and the held-out answers of
the same head are compared picture by picture. docs/decisions/0047-second-look.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.features import FeatureSet
from clipadapter.formatting import format_count
from clipadapter.heads import Head, TextFeatures, out_of_fold
from clipadapter.heads.estimator import clone

QUALITY_KEY = "quality"
"""Key of the quality of a fit, and of why it was chosen, in the provenance of the support set."""
MAX_TRIAL_SHOTS, MIN_TRIAL_SHOTS_PER_CLASS = 32, 4
"""Shots that are read at the second size: about two seconds on two cores. With many classes only some of them are
tried, with so many shots each where they have them: fewer shots of more classes would say less about a look."""
MIN_GAIN = 0.05
"""Gain in held-out accuracy, less its standard error, that is worth the price: about seven times the prediction time.
Sets without small marks gain 0 to 0.03, and one or two of twelve shots are no evidence of more."""


@dataclass(frozen=True)
class SecondLook:
    """Whether a model looks twice, and why.

    Args:
        is_taken: whether it does.
        cost: how many times as long a prediction takes with a second look.
        gain: held-out accuracy with it less that without it; None if nothing was tried.
        shots: number of held-out shots.
        why_not_tried: why there was no trial; empty if there was one.
    """

    is_taken: bool
    cost: float
    gain: float | None = None
    shots: int = 0
    why_not_tried: str = ""

    def __str__(self) -> str:
        if self.gain is None:
            return f"looks once: {self.why_not_tried} (--quality best looks twice)"
        points = f"{format_count(round(abs(100 * self.gain)), 'point')} {'better' if self.gain >= 0 else 'worse'}"
        if self.is_taken:
            return (
                f"looks twice: {points} on {self.shots} held-out shots; a prediction takes {self.cost:.0f} times as "
                "long (--quality standard takes one look)"
            )
        return (
            f"looks once: on {self.shots} held-out shots a second look is {points}, for {self.cost:.0f} times the "
            "prediction time (--quality best takes it)"
        )


def why_no_trial(head: Head, support: FeatureSet, text: TextFeatures) -> str:
    """Why a trial of the second look would be in vain; empty if it would not.

    Args:
        head: fitted to the shots at the quality "standard".
        support: these shots.
        text: text features of the classes.
    """
    counts = [count for count in support.counts.values() if count]
    if np.median(counts) < 2:
        return "most classes have one shot, so too few can be held out"
    right = _held_out_right(head, support, text)
    accuracy = 0.0 if right is None else float(right.mean())
    if 1 - accuracy < MIN_GAIN:
        return f"{accuracy:.0%} of held-out shots are right, so there is little to gain"
    return ""


def draw_trial_shots(support: FeatureSet, seed: int) -> NDArray[np.int64]:
    """Rows of the shots of the trial: the same number of each class, as far as a class has so many."""
    rng, labels = np.random.default_rng(seed), np.asarray(support.y)
    names = [name for name, count in support.counts.items() if count]
    n_classes = min(len(names), MAX_TRIAL_SHOTS // MIN_TRIAL_SHOTS_PER_CLASS)
    drawn = rng.permutation(names)[:n_classes]
    rows = [rng.permutation(np.flatnonzero(labels == name))[: MAX_TRIAL_SHOTS // n_classes] for name in drawn]
    return np.sort(np.concatenate(rows))


def compare_looks(head: Head, features: FeatureSet, once: Sequence[str], text: TextFeatures, cost: float) -> SecondLook:
    """Compare the held-out answers of a head for the same shots with and without the second look.

    Args:
        head: fitted or not; it does not change.
        features: of the shots of the trial, with all blocks of the quality "best".
        once: names of the blocks of the quality "standard".
        text: text features of all classes.
        cost: see `SecondLook`.
    """
    names = [name for name, count in features.counts.items() if count]
    rows = text.embeddings[[text.labels.index(name) for name in names]]
    text = TextFeatures.of_stored_rows(names, rows, text.logit_scale, text.logit_bias, order="given")
    right = []
    for shots in (features.select_blocks(once), features):
        fitted = clone(head).fit(shots.X, shots.y, text=text, blocks=shots.blocks)
        right.append(_held_out_right(fitted, shots, text))
    if right[0] is None or right[1] is None:
        return SecondLook(False, cost, why_not_tried="too few shots can be held out")
    differences = right[1] - right[0]
    return SecondLook(is_worth_its_price(differences), cost, float(differences.mean()), len(differences))


def is_worth_its_price(differences: NDArray[Any]) -> bool:
    """The rule: the mean gain, less its standard error, is at least `MIN_GAIN`.

    Args:
        differences: (n,) how much more often each held-out shot is right with a second look, -1 to 1.

    >>> is_worth_its_price(np.array([1.0] * 3 + [0.0] * 9)), is_worth_its_price(np.array([1.0] + [0.0] * 11))
    (True, False)
    """
    n = len(differences)
    return n > 1 and float(differences.mean() - differences.std(ddof=1) / n**0.5) >= MIN_GAIN


def _held_out_right(head: Head, shots: FeatureSet, text: TextFeatures) -> NDArray[Any] | None:
    """(m,) how often each of the shots that were held out of a fit was right, 0 to 1; None if none was."""
    held_out = out_of_fold(head, shots.X, shots.y, text, strategies=("own",))
    if held_out is None:
        return None
    is_right = held_out.logits.argmax(axis=1) == held_out.labels
    counts = np.bincount(held_out.rows)
    return np.bincount(held_out.rows, is_right)[counts > 0] / counts[counts > 0]
