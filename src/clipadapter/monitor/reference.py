"""What is usual: the model's shots, or pictures of the usual situation.

Of a shot a model says too much, since it learned from it. So shots are held out in folds, and for the tests the stream
is asked by the heads of these folds too, each picture by one of them: both then come from fits that are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import InputError
from clipadapter.monitor.observations import AnyModel, Seen, model_trust, see
from clipadapter.monitor.priors import TINY, Array, estimate_priors
from clipadapter.runtime import Predictor

if TYPE_CHECKING:
    from clipadapter.classifier import FewShotClassifier

STEPS = 20


@dataclass(frozen=True, eq=False)
class Reference:
    """The usual pictures.

    Args:
        features: (n, d).
        probabilities: (n, c), by fits that did not see them.
        labels: (n,) class positions of shots; None of pictures without labels.
        assumed: (c,) shares of the classes that the model's probabilities are for.
        usual: (c,) shares that are usual.
        share: of the classes among the pictures at hand (c,).
        rejected: how many are none of the classes to the model.
        judged: of how many that is known.
        again: probabilities (m, c) of other pictures, from features (m, d), by fits as those of these; None if these
            are by the model itself.
        skipped: (name, reason) of pictures that can't be read.
    """

    features: Array
    probabilities: Array
    labels: NDArray[np.int64] | None
    assumed: Array
    usual: Array
    share: Array
    rejected: int
    judged: int
    again: Callable[[NDArray[Any]], Array] | None = None
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.features)

    def probabilities_of(self, seen: Seen) -> Array:
        """Probabilities (m, c) of pictures that can be compared with these."""
        return np.asarray(seen.probabilities) if self.again is None else self.again(seen.features)


def from_pictures(model: AnyModel, paths: Sequence[Path], rate: float | None) -> Reference:
    """Pictures of the usual situation as reference.

    Raises:
        DataError: if none can be read.
    """
    seen = see(model, paths, rate)
    assumed = _counted(model)
    share = estimate_priors(seen.probabilities, assumed)
    none = 0
    if rate is not None and seen.strangeness is not None:
        none = int((seen.strangeness > model_trust(model).rejector.threshold(rate).value).sum())
    return Reference(
        seen.features, seen.probabilities, None, assumed, share, share, none, len(seen), skipped=seen.skipped
    )


def from_shots(model: AnyModel, rate: float | None, usual: Mapping[str, float] | None) -> Reference:
    """A model's shots as reference.

    Args:
        model: fitted.
        rate: of "none of these"; None if the model can't say that.
        usual: shares of classes that are usual; the others share the rest as the shots do.

    Raises:
        InputError: if the shots were not kept, or can't be held out; or a share is wrong.
    """
    if isinstance(model, Predictor):
        raise InputError(f"an exported file has no shots to compare with: {GIVE}")
    if why := _why_not(model):
        raise InputError(f"{why}: {GIVE}")
    from clipadapter.heads import out_of_fold

    names, support, uncertainty = model.class_names_, model.support_, model.uncertainty_
    unseen = out_of_fold(
        model.head_, support.X, support.y, model.text_, strategies=("folds",), keep_heads=True, seed=model.seed
    )
    assert unseen is not None
    once = unseen.first_per_shot
    probabilities = uncertainty.calibrator.probabilities(once.logits)

    def again(features: NDArray[Any]) -> Array:
        turn = np.arange(len(features)) % len(unseen.heads)
        logits = np.empty((len(features), len(names)))
        for i, head in enumerate(unseen.heads):
            logits[turn == i] = head.logits(features[turn == i]) if (turn == i).any() else 0
        return np.asarray(uncertainty.calibrator.probabilities(logits * unseen.logit_scale_ratio))

    share = np.bincount(once.labels, minlength=len(names)) / len(once.labels)
    none = judged = 0
    if rate is not None and uncertainty.rejector is not None:
        scores = uncertainty.rejector.total(uncertainty.rejector.held_out)
        none, judged = int((scores > uncertainty.rejector.threshold(rate).value).sum()), len(scores)
    return Reference(
        np.asarray(support.plain, np.float64)[once.rows],
        probabilities,
        once.labels,
        assumed_priors(probabilities, once.labels),
        usual_shares(usual, names, share),
        share,
        none,
        judged,
        again,
    )


GIVE = "give pictures of the usual situation (--reference FOLDER, reference=)"


def assumed_priors(probabilities: Array, labels: NDArray[np.int64]) -> Array:
    """Shares (c,) of the classes that probabilities are for, seen from pictures with labels.

    Some heads learn how frequent the classes are among unequal shots, some treat all alike, some are between. So the
    shares are taken to a power between 0 (all alike) and 1 (as among the pictures), the one that makes the labels
    likeliest. Where the pictures are as many of each class there is nothing to choose.

    Args:
        probabilities: (n, c) by fits that did not see the picture.
        labels: (n,) class positions.

    >>> assumed_priors(np.array([[0.5, 0.5]] * 4), np.array([0, 0, 0, 1]))  # blind, and takes the classes for alike
    array([0.5, 0.5])
    >>> assumed_priors(np.array([[0.75, 0.25]] * 4), np.array([0, 0, 0, 1]))
    array([0.75, 0.25])
    """
    n, c = probabilities.shape
    share = (np.bincount(labels, minlength=c) + 1) / (n + c)  # a class without a shot is known by its text
    share = np.bincount(labels, minlength=c) / n if (np.bincount(labels, minlength=c) > 0).all() else share
    best, found = -np.inf, share
    for power in np.linspace(0, 1, STEPS + 1):
        prior = share**power / (share**power).sum()
        joint = probabilities * share / prior
        likely = joint[np.arange(n), labels] / np.maximum(joint.sum(axis=1), TINY)
        if (value := float(np.log(np.maximum(likely, TINY)).sum())) > best + 1e-9:
            best, found = value, prior
    return np.asarray(found)


def usual_shares(given: Mapping[str, float] | None, names: Sequence[str], share: Array) -> Array:
    """Shares (c,) that are usual: those given, and the rest divided among the other classes as their shots are.

    Raises:
        InputError: if a name is no class, or the shares are more than everything.

    >>> usual_shares({"ok": 0.8}, ["ok", "bent", "torn"], np.array([0.5, 0.25, 0.25])).round(2).tolist()
    [0.8, 0.1, 0.1]
    """
    if not given:
        return share
    if unknown := sorted(set(given) - set(names)):
        raise InputError(f"no class is called {unknown[0]!r}; the model's classes: {', '.join(names)}")
    total, others = sum(given.values()), np.array([name not in given for name in names])
    if min(given.values()) < 0 or total > 1 + 1e-9 or (abs(total - 1) > 1e-9 and not others.any()):
        raise InputError(f"the usual shares add up to {total:g}: give shares between 0 and 1 that are 1 in all")
    rest = share * others
    rest = rest / rest.sum() * max(0.0, 1 - total) if rest.sum() else rest
    return np.array([given.get(name, rest[i]) for i, name in enumerate(names)])


def _counted(model: AnyModel) -> Array:
    """Shares of the classes among a model's shots (c,), also of one that did not keep their features."""
    if isinstance(model, Predictor):
        return np.full(len(model.class_names), 1 / len(model.class_names))  # an exported file does not say
    support, names = model.support_, model.class_names_
    known = support.counts if len(support) else support.provenance.get("shots", {})
    counts = np.array([float(known.get(name, 0)) for name in names])
    counts = counts + 1 if (counts <= 0).any() else counts
    return np.asarray(counts / counts.sum())


def _why_not(model: FewShotClassifier) -> str:
    """Why a model's shots can't be held out; "" if they can."""
    head, support = model.head_, model.support_
    if not len(support):
        return "the model was saved without its shots (--no-support)"
    if head.tunes_encoder or head.needs_tower:
        return f"the head {type(head).__name__} would have to be trained again to say what is usual"
    if head.transductive:
        return f"the head {type(head).__name__} is transductive, so that no shot can be held out"
    if max(support.counts.values()) < 2:
        return "with one shot a class there is nothing to say what is usual"
    return ""
