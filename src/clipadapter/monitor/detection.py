"""A stream of pictures beside what is usual."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipadapter.errors import DataError, InputError
from clipadapter.monitor import messages as words
from clipadapter.monitor.covariate_shift import Looks, compare_looks
from clipadapter.monitor.drift import CHECKS, ClassShare, Drift, Finding, NoneShare, Window, holm
from clipadapter.monitor.label_shift import Shares, against_pictures, against_shots
from clipadapter.monitor.observations import AnyModel, Seen, model_trust, see
from clipadapter.monitor.ood_rate import more_than_usual, wilson
from clipadapter.monitor.priors import Array, estimate_priors, prior_intervals
from clipadapter.monitor.reference import Reference, from_pictures, from_shots

LEAST = 20
"""Pictures that a stream, a reference and a window must have."""
MOST = 1000
"""Pictures of a sample whose looks are compared: of more, so many are drawn."""
LEAST_SHOTS = 3
"""Shots a class that the shares of the classes are compared with: two show too little of a model's mistakes."""
WINDOWS = 12
REJECT = 0.05
WINDOW_DRAWS = 199


@dataclass(frozen=True)
class Plan:
    """How a stream is looked at.

    Args:
        alpha: chance of a false alarm.
        window: pictures in a window; None divides the stream into 12, of 20 pictures at least.
        skip: names of checks that are left out.
        rate: of "none of these"; None if the model can't say that.
        seed: of all that is drawn.
    """

    alpha: float
    window: int | None
    skip: frozenset[str]
    rate: float | None
    seed: int

    @property
    def draws(self) -> int:
        """So many that the least p-value is a twentieth of alpha; of the smallest of three Holm asks a third."""
        return max(199, min(99_999, math.ceil(20 / self.alpha) - 1))


def watch(
    model: AnyModel,
    stream: Sequence[Path],
    *,
    reference: Sequence[Path] | None = None,
    usual: Mapping[str, float] | None = None,
    times: Sequence[float] | None = None,
    reject: float | None = None,
    alpha: float = 0.01,
    window: int | None = None,
    skip: Collection[str] = (),
    seed: int = 0,
) -> Drift:
    """Look whether pictures that come in are still such as the model was made for.

    Args:
        model: fitted, one label a picture; or an exported file as `clipadapter.runtime.Predictor`.
        stream: paths of pictures, in the order in which they came.
        reference: paths of pictures of the usual situation; the model's shots if not given.
        usual: usual shares of classes by name, beside shots; the others share the rest. As the shots are if not given.
        times: seconds since 1970 at which each picture of the stream came.
        reject: share of pictures of the classes that may be called "none of these"; the model's if not given, else 5 %.
        alpha: chance of a false alarm, of all checks together.
        window: pictures in a window; a twelfth of the stream, but 20 at least, if not given.
        skip: names of `CHECKS` to leave out.
        seed: of all that is drawn.

    Raises:
        InputError: if pictures may have several labels, an argument is out of range, or the shots can't serve as
            reference.
        DataError: if there are fewer than 20 pictures that can be read.

    ::

        found = watch(model, list_images("today"), reference=list_images("usual"))
        found.drift, found.sentence()
    """
    plan = _plan(model, reject, alpha, window, skip, seed)
    if reference is not None and usual:
        raise InputError("usual shares are seen from the pictures of the reference: leave usual out, or the reference")
    before = from_shots(model, plan.rate, usual) if reference is None else from_pictures(model, reference, plan.rate)
    seen = see(model, stream, plan.rate)
    _enough(seen, "the stream has")
    _enough(before, "the reference has" if reference is not None else "the model has kept shots of")
    again = before.probabilities_of(seen)
    shares = _shares(before, again, plan)
    looks = None if "looks" in plan.skip else _looks(before, seen.features, again, plan, plan.draws)
    classes = _classes(model, before, seen, shares, plan)
    strange = _strange(model, seen, plan)
    none = _none(before, strange, plan)
    findings = _findings(before, looks, shares, classes, none, strange, plan)
    return Drift(
        len(seen),
        seen.repeated,
        seen.skipped,
        "pictures" if before.labels is None else "shots",
        len(before),
        alpha,
        findings,
        classes,
        none,
        tuple(_windows(before, seen, again, strange, times, plan)),
    )


def _plan(
    model: AnyModel, reject: float | None, alpha: float, window: int | None, skip: Collection[str], seed: int
) -> Plan:
    uncertainty = model_trust(model) if hasattr(model, "uncertainty_") or hasattr(model, "about") else None
    if uncertainty is None:
        raise InputError("this FewShotClassifier is not fitted: call fit(images, labels), or load(folder)")
    if uncertainty.multilabel is not None:
        raise InputError("drift is watched where a picture has one label, but this model's pictures may have several")
    if not 0.0001 <= alpha < 0.5:
        raise InputError(f"alpha is the chance of a false alarm, between 0.0001 and 0.5, but is {alpha}")
    if window is not None and window < LEAST:
        raise InputError(f"a window needs {LEAST} pictures or more to say anything, but {window} were asked for")
    if unknown := sorted(set(skip) - set(CHECKS)):
        raise InputError(f"no check is called {unknown[0]!r}; there are: {', '.join(CHECKS)}")
    if set(skip) == set(CHECKS):
        raise InputError("every check is left out: keep one")
    rate = None if uncertainty.rejector is None else reject or uncertainty.decisions.reject or REJECT
    if rate is not None and math.isinf(uncertainty.rejector.threshold(rate).value):
        rate = None  # so few shots were held out that nothing is ever called none of the classes
    return Plan(alpha, window, frozenset(skip), rate, seed)


def _enough(seen: Seen | Reference, who: str) -> None:
    if len(seen) < LEAST:
        raise DataError(
            f"{who} {len(seen)} different pictures that can be used: too few to tell a change by, give {LEAST} or more"
        )


def _shares(before: Reference, again: Array, plan: Plan) -> Shares | None:
    if "shares" in plan.skip or (before.labels is not None and _shots_a_class(before) < LEAST_SHOTS):
        return None
    if before.labels is not None:
        return against_shots(before.probabilities, before.labels, before.usual, again, draws=plan.draws, seed=plan.seed)
    return against_pictures(before.probabilities, again, draws=plan.draws, seed=plan.seed)


def _looks(before: Reference, features: Array, again: Array, plan: Plan, draws: int) -> Looks:
    m, c = again.shape
    now = estimate_priors(again, before.assumed)
    # One picture of each class beside, as usual: a class that did not come must not have no odds at all.
    ratio = ((m * now + c * before.share) / (m + c)) / np.maximum(before.share, 1 / (len(before) + c))
    rng = np.random.default_rng(plan.seed)
    old, new = (np.sort(rng.permutation(n)[:MOST]) for n in (len(before), m))
    P, Q = before.probabilities[old], again[new]
    odds = tuple(_odds(each, before, ratio) for each in (P, Q))
    return compare_looks(before.features[old], features[new], (P, Q), (odds[0], odds[1]), draws=draws, seed=plan.seed)


def _odds(probabilities: Array, before: Reference, ratio: Array) -> Array:
    """How much likelier each picture is in the stream, for the classes it may be of."""
    joint = probabilities / before.assumed * np.maximum(before.share, 1e-6)
    return np.asarray(joint @ ratio / joint.sum(axis=1))


def _classes(
    model: AnyModel, before: Reference, seen: Seen, shares: Shares | None, plan: Plan
) -> tuple[ClassShare, ...]:
    names = getattr(model, "class_names_", None) or model.class_names  # type: ignore[union-attr]
    now, low, high = prior_intervals(seen.probabilities, before.assumed, seed=plan.seed)
    return tuple(
        ClassShare(
            name,
            float(before.usual[i]),
            float(now[i]),
            float(low[i]),
            float(high[i]),
            None if shares is None else float(shares.by_class[i]),
        )
        for i, name in enumerate(names)
    )


def _strange(model: AnyModel, seen: Seen, plan: Plan) -> Array | None:
    """Which pictures (m,) are none of the classes; None if the model can't say."""
    if plan.rate is None or seen.strangeness is None:
        return None
    return np.asarray(seen.strangeness > model_trust(model).rejector.threshold(plan.rate).value)


def _none(before: Reference, strange: Array | None, plan: Plan) -> NoneShare | None:
    if strange is None or plan.rate is None:
        return None
    usual = before.rejected / before.judged if before.judged else plan.rate
    return NoneShare(plan.rate, usual, *wilson(int(strange.sum()), len(strange)))


def _findings(
    before: Reference,
    looks: Looks | None,
    shares: Shares | None,
    classes: tuple[ClassShare, ...],
    none: NoneShare | None,
    strange: Array | None,
    plan: Plan,
) -> tuple[Finding, ...]:
    values: dict[str, float] = {}
    if looks is not None:
        values["looks"] = looks.p
    if shares is not None:
        values["shares"] = shares.p
    if strange is not None and "none" not in plan.skip:
        values["none"] = more_than_usual(int(strange.sum()), len(strange), before.rejected, before.judged)
    corrected = dict(zip(values, holm(list(values.values())), strict=True))
    found = {name: p <= plan.alpha for name, p in corrected.items()}
    sure = not (found.get("looks") or found.get("none"))
    told = {
        "looks": words.of_looks(corrected.get("looks", 1.0)),
        "shares": words.of_shares(classes, plan.alpha, sure),
        "none": words.of_none(none, "pictures" if before.labels is None else "shots") if none else "",
    }
    return tuple(
        Finding(name, values[name], corrected[name], found[name], told[name])
        if name in values
        else Finding(name, None, None, False, "left out" if name in plan.skip else UNTESTED[name])
        for name in CHECKS
    )


UNTESTED = {
    "shares": f"it takes {LEAST_SHOTS} shots a class or more, or pictures of the usual situation",
    "none": "the model can't tell pictures of none of its classes, it takes two shots a class or more",
}


def _shots_a_class(before: Reference) -> float:
    """Shots of the classes that have any, on average."""
    assert before.labels is not None
    return float(np.unique(before.labels, return_counts=True)[1].mean())


def _windows(
    before: Reference, seen: Seen, again: Array, strange: Array | None, times: Sequence[float] | None, plan: Plan
) -> list[Window]:
    m = len(seen)
    size = plan.window or max(LEAST, math.ceil(m / WINDOWS))
    found = []
    for rows in np.array_split(np.arange(m), max(1, m // size)):
        looks = None
        if "looks" not in plan.skip:
            looks = _looks(before, seen.features[rows], again[rows], plan, WINDOW_DRAWS)
        P = seen.probabilities[rows]
        found.append(
            Window(
                int(rows[0]),
                int(rows[-1]) + 1,
                None if times is None else float(times[seen.rows[rows[0]]]),
                None if strange is None else wilson(int(strange[rows].sum()), len(rows)),
                float(P.max(axis=1).mean()),
                None if looks is None else looks.distance,
                None if looks is None else looks.chance,
                tuple(float(share) for share in estimate_priors(P, before.assumed)),
            )
        )
    return found
