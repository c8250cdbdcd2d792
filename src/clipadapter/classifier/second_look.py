"""Quality "auto": held-out shots decide whether a model looks at its pictures a second time, at a larger size.

The second look is what the quality "best" reads beside "standard". It brings 20 points where defects are small and 1 or
2 elsewhere, and nothing else tells the two apart. So some shots are read at both qualities, and the held-out answers of
the same head are compared picture by picture. docs/decisions/0048-second-look.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.classifier.encoder_choice import blocks_to_read, relative_cost
from clipadapter.classifier.reader import Reader
from clipadapter.data.images import ImageSource
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, TextFeatures, out_of_fold
from clipadapter.heads.estimator import clone
from clipadapter.utils.formatting import format_count

QUALITY_KEY = "quality"  # key of the quality of a fit, and of why it was chosen, in the provenance of the support set
MAX_TRIAL_SHOTS, MIN_TRIAL_SHOTS_PER_CLASS = 32, 4
"""Shots that are read at the second size: about two seconds on two cores. With many classes only some of them are
tried, with so many shots each where they have them: fewer shots of more classes would say less about a look."""
NOT_TRIED = "looks once: {} (--quality best looks twice)"
TOO_FEW = NOT_TRIED.format("too few shots can be held out")
MIN_GAIN = 0.075
"""Gain in held-out accuracy, less its standard error, that is worth the price: about seven times the prediction time.
Sets whose new pictures gain 0 to 0.03 have up to 0.07 here, since the weights of the blocks are chosen on the held-out
shots too; sets of small defects have 0.09 to 0.36."""


def try_second_look(
    reader: Reader, head: Head, support: FeatureSet, text: TextFeatures, images: Sequence[ImageSource], seed: int
) -> tuple[Reader | None, str]:
    """A reader that looks twice, if that is worth its price, else None; and why.

    Args:
        reader: that made the features of the fit.
        head: fitted to them.
        support: the shots.
        text: of the classes.
        images: the pictures of the fit.
        seed: of the shots that are tried.
    """
    encoder, others = reader.encoder, reader.others
    if support.targets is not None or reader.running.precision not in ("auto", "fp32"):  # others exclude rare patches
        return None, ""
    once, twice = (blocks_to_read(encoder, others, [head], each, reader.named) for each in ("standard", "best"))
    if once == twice:  # the encoder has no second size, or its blocks were named
        return None, ""
    if np.median([count for count in support.counts.values() if count]) < 2:
        return None, NOT_TRIED.format("most classes have one shot, so too few can be held out")
    right = _held_out_right(head, support, text)
    accuracy = 0.0 if right is None else float(right.mean())
    if 1 - accuracy < MIN_GAIN:
        return None, NOT_TRIED.format(f"{accuracy:.0%} of held-out shots are right, so there is little to gain")
    rows = draw_trial_shots(support, seed)
    shots = support.take(rows)
    shots = replace(shots, X=shots.plain)
    right = _right_of_fit(head, shots, text)
    if right is None:
        return None, TOO_FEW
    if _least_gain(1 - right) < MIN_GAIN:  # not even if a second look were right on all of them
        share = f"{right.mean():.0%} of {len(right)} held-out shots are right"
        return None, NOT_TRIED.format(f"{share}, and too few are wrong to show a gain")
    pictures = [images[support.provenance["rows"][row]] for row in rows]
    longer = reader.with_second_look(twice)
    again = replace(shots, X=longer.features(pictures), blocks=longer.encoder.info.blocks)
    cost = relative_cost(encoder, others, twice) / relative_cost(encoder, others, once)
    # Both of the features that were read now: those of the fit may be of another backend.
    one, two = (_right_of_fit(head, part, text) for part in (again.select_blocks(once), again))
    is_taken, why = _compare_looks(one, two, cost)
    return longer if is_taken else None, why


def draw_trial_shots(support: FeatureSet, seed: int) -> NDArray[np.int64]:
    """Rows of the shots of the trial: the same number of each class, as far as a class has so many."""
    rng, labels = np.random.default_rng(seed), np.asarray(support.y)
    names = [name for name, count in support.counts.items() if count]
    n_classes = min(len(names), MAX_TRIAL_SHOTS // MIN_TRIAL_SHOTS_PER_CLASS)
    # Where not all classes are drawn, those of one shot come last: nothing of them can be held out.
    drawn = sorted(rng.permutation(names), key=lambda name: support.counts[name] < 2)[:n_classes]
    rows = [rng.permutation(np.flatnonzero(labels == name))[: MAX_TRIAL_SHOTS // n_classes] for name in drawn]
    return np.sort(np.concatenate(rows))


def _compare_looks(once: NDArray[Any] | None, twice: NDArray[Any] | None, cost: float) -> tuple[bool, str]:
    """Whether a second look, with which a prediction takes ``cost`` times as long, is worth its price, and why."""
    if once is None or twice is None:
        return False, TOO_FEW
    differences = twice - once  # of each held-out shot, -1 to 1
    gain, held_out = float(differences.mean()), f"on {len(differences)} held-out shots"
    points = f"{format_count(round(abs(100 * gain)), 'point')} {'better' if gain >= 0 else 'worse'}"
    if _least_gain(differences) >= MIN_GAIN:
        longer = f"a prediction takes {cost:.0f} times as long (--quality standard takes one look)"
        return True, f"looks twice: {points} {held_out}; {longer}"
    price = f"for {cost:.0f} times the prediction time (--quality best takes it)"
    return False, f"looks once: {held_out} a second look is {points}, {price}"


def _least_gain(differences: NDArray[Any]) -> float:
    """The mean of some differences, less its standard error."""
    n = len(differences)
    return float(differences.mean() - differences.std(ddof=1) / n**0.5) if n > 1 else -1.0


def _right_of_fit(head: Head, shots: FeatureSet, text: TextFeatures) -> NDArray[Any] | None:
    """`_held_out_right` of a new fit to shots of some of the classes."""
    names = [name for name, count in shots.counts.items() if count]
    rows = text.embeddings[[text.labels.index(name) for name in names]]
    text = TextFeatures.of_stored_rows(names, rows, text.logit_scale, text.logit_bias, order="given")
    return _held_out_right(clone(head).fit(shots.X, shots.y, text=text, blocks=shots.blocks), shots, text)


def _held_out_right(head: Head, shots: FeatureSet, text: TextFeatures) -> NDArray[Any] | None:
    """(m,) how often each of the shots that were held out of a fit was right, 0 to 1; None if none was."""
    held_out = out_of_fold(head, shots.X, shots.y, text, strategies=("own",))
    if held_out is None:
        return None
    is_right = held_out.logits.argmax(axis=1) == held_out.labels
    counts = np.bincount(held_out.rows)
    return np.bincount(held_out.rows, is_right)[counts > 0] / counts[counts > 0]
