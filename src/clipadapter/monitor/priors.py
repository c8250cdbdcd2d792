"""Class priors of pictures without labels, from a model's probabilities or from its confusions.

Letters: m pictures, c classes, b resamples or draws, n shots, g chains.

From probabilities: Saerens, Latinne, Decaestecker, "Adjusting the outputs of a classifier to new a priori
probabilities: a simple procedure", Neural Computation 14(1):21-41, 2002,
https://doi.org/10.1162/089976602753284446. Intervals are percentiles of a bootstrap over the pictures (the paper gives
none). They hold if the probabilities are right.

From confusions: Ziegler and Czyż, "Bayesian quantification with black-box estimators", TMLR 2024,
https://arxiv.org/abs/2302.09159. A picture of class k is predicted as class j with probability C[k, j]. The model's
held-out shots show C, but there are only a few per class: so C is uncertain, and has a posterior as the priors have.
The paper samples both by Hamiltonian Monte Carlo. Given the true classes of the pictures, both posteriors are
Dirichlet distributions: so here a Gibbs sampler draws the classes, the priors and C in turn.

Two parts are ours:

- The prior of a row of C is a Dirichlet distribution whose mean has the accuracy on the diagonal and the same value
  everywhere else. Its accuracy and its weight are drawn from their posterior by the shots of all classes. With a fixed
  weight, rows of a weak model would be taken for less spread than they are.
- The prior of the class priors has the weight of half a picture for each class (Jeffreys 1946). With 1/c, the interval
  of a class that is never predicted ends below its prior if classes are many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import InputError, brief
from clipadapter.metrics import wilson_interval

Array = NDArray[np.float64]
MAX_ITERATIONS = 500
TOLERANCE = 1e-6  # EM stops if no prior changes by more
RESAMPLE_TOLERANCE = 1e-4
"""The same for resamples. A percentile of many resamples needs less precision than an estimate."""
MIN_DENSITY = 1e-12
PRIOR_POWERS = np.linspace(0, 1, 21)
RESAMPLES = 400
INTERVAL_QUANTILES = (0.025, 0.975)
MAX_CHUNK_VALUES = 4_000_000  # values (m, b) that are in memory at a time


def estimate_priors(probabilities: Array, assumed: Array) -> Array:
    """Maximum-likelihood prior (c,) of each class, by the EM of Saerens et al. (2002), their eq. 2.9.

    It assumes that pictures of a class look like those that the model was calibrated on: probabilities (m, c) are
    calibrated for the priors ``assumed`` (c,).
    """
    priors = assumed / assumed.sum()
    return np.asarray(_run_em(probabilities / priors, np.ones((1, len(probabilities))), priors[None])[0])


def prior_intervals(probabilities: Array, assumed: Array, *, seed: int = 0) -> tuple[Array, Array, Array]:
    """The result of `estimate_priors` and the ends of its 95 % interval over the draw of the pictures, each (c,).

    The probabilities are taken to be right: errors of the model are not in the interval. Its ends are percentiles of a
    bootstrap. If all pictures are of one class, so are those of each resample, and the percentiles are one point. So
    the interval has at least the ends of Wilson's: even if the class of each picture were known, the share of a class
    among the pictures is not its prior.
    """
    estimate, priors = estimate_priors(probabilities, assumed), assumed / assumed.sum()
    ratio, m, rng = probabilities / priors, len(probabilities), np.random.default_rng(seed)
    start = np.maximum(estimate, 0.1 * priors)  # EM can't change a prior of zero
    start /= start.sum()
    estimates, chunk = [], max(1, MAX_CHUNK_VALUES // m)
    for first in range(0, RESAMPLES, chunk):
        count = min(chunk, RESAMPLES - first)
        weights = rng.multinomial(m, np.full(m, 1 / m), size=count).astype(np.float64)
        estimates.append(_run_em(ratio, weights, np.repeat(start[None], count, axis=0), RESAMPLE_TOLERANCE))
    low, high = np.quantile(np.concatenate(estimates), INTERVAL_QUANTILES, axis=0)
    wilson_low, wilson_high = np.array([wilson_interval(share, m) for share in estimate]).T
    return estimate, np.minimum(low, wilson_low), np.maximum(high, wilson_high)


def estimate_assumed_priors(probabilities: Array, labels: NDArray[np.int64]) -> Array:
    """Estimate the priors (c,) that probabilities (n, c) are for, from pictures with labels (n,)."""
    n, c = probabilities.shape
    counts = np.bincount(labels, minlength=c)
    # A class without a shot is known by its text, and needs a prior above zero.
    frequencies = counts / n if (counts > 0).all() else (counts + 1) / (n + c)
    best, best_priors = -np.inf, frequencies
    # Some heads learn the class frequencies of unequal shots (power 1), some treat all classes alike (0), some are
    # between: the power with the largest likelihood of the labels is taken.
    for power in PRIOR_POWERS:
        priors = frequencies**power / (frequencies**power).sum()
        joint = probabilities * frequencies / priors
        likelihood = joint[np.arange(n), labels] / np.maximum(joint.sum(axis=1), MIN_DENSITY)
        if (value := float(np.log(np.maximum(likelihood, MIN_DENSITY)).sum())) > best + 1e-9:
            best, best_priors = value, priors
    return np.asarray(best_priors)


def complete_priors(priors: Mapping[str, float] | None, names: Sequence[str], sample_priors: Array) -> Array:
    """Priors (c,) of all classes from those of some: the others share the rest in the proportions of their shots."""
    if not priors:
        return sample_priors
    if unknown := sorted(set(priors) - set(names)):
        raise InputError(f"no class is called {brief(unknown[0])}; the model's classes: {', '.join(names)}")
    total, is_other = sum(priors.values()), np.array([name not in priors for name in names])
    if min(priors.values()) < 0 or total > 1 + 1e-9 or (abs(total - 1) > 1e-9 and not is_other.any()):
        raise InputError(
            f"the usual class frequencies (--usual, reference_priors=) add up to {total:g}: give numbers "
            "between 0 and 1 that are 1 in all"
        )
    others = sample_priors * is_other
    others = others / others.sum() * max(0.0, 1 - total) if others.sum() else others
    return np.array([priors.get(name, others[i]) for i, name in enumerate(names)])


def _run_em(ratio: Array, weights: Array, start: Array, tolerance: float = TOLERANCE) -> Array:
    """Maximum-likelihood priors (b, c), each row for its weights (b, m) of the pictures; ratio (m, c) is p / prior."""
    priors, total = start.astype(np.float64), weights.sum(axis=1, keepdims=True)
    for _ in range(MAX_ITERATIONS):
        density = np.maximum(priors @ ratio.T, MIN_DENSITY)  # (b, m)
        updated = priors * ((weights / density) @ ratio) / total
        updated /= updated.sum(axis=1, keepdims=True)
        change = float(np.abs(updated - priors).max())
        priors = updated
        if change < tolerance:
            break
    return priors


# ---- From the confusions of held-out shots ----

WARM_UP = 60
"""Steps of each chain that are not used. With 400 and with 2,000, mean widths and coverage of intervals were within 2 %
of those with 60 (10 classes of clothing, 6 shots, 20 streams)."""
DRAWS = 2000  # draws that intervals are made of, if classes are few
MAX_CHAINS = 50
MIN_STEPS = 40  # steps of each chain that are used, at least
MIN_DRAWS = 120
MAX_VALUES = 20_000_000
"""Random values that are drawn in all, about 1 s, unless that gives fewer than `MIN_DRAWS`: 1,000 classes take 6 s."""
ACCURACY_STEPS = 40  # accuracies that the prior of the confusions may have
PRIOR_WEIGHTS = 2.0 ** np.arange(7)  # weights, in shots, that the prior of a row of the confusions may have
MAX_ACCURACY = 0.999
CLASS_PRIOR_WEIGHT = 0.5  # weight, in pictures, of the prior of each class prior


def draw_priors(predicted_counts: NDArray[np.int64], confusions: Array, *, draws: int = DRAWS, seed: int = 0) -> Array:
    """Draw class priors (b, c) from predictions by class (c,) and confusions (c, c) of shots by fits without them."""
    rng, c = np.random.default_rng(seed), len(predicted_counts)
    columns = np.flatnonzero(predicted_counts)  # a class that is never predicted adds no factor to the likelihood
    values = c * len(columns)  # that are drawn per step of a chain
    chains = int(np.clip(MAX_VALUES // (values * (WARM_UP + MIN_STEPS)), 1, MAX_CHAINS))
    affordable = max(MIN_STEPS, MIN_DRAWS // chains, MAX_VALUES // (values * chains) - WARM_UP)
    steps = min(affordable, max(1, math.ceil(draws / chains)))
    rows = confusions + _draw_row_priors(confusions, chains, rng)  # (g, c, c)
    used = rows[:, :, columns]
    unused = np.maximum(rows.sum(axis=2) - used.sum(axis=2), 1e-12)
    C = used / rows.sum(axis=2, keepdims=True)
    priors = np.full((chains, c), 1 / c)
    samples = []
    for step in range(WARM_UP + steps):
        joint = np.swapaxes(priors[:, :, None] * C, 1, 2) + 1e-300  # (g, columns, c)
        of_class = rng.multinomial(predicted_counts[columns], joint / joint.sum(axis=2, keepdims=True))
        by_class = np.swapaxes(of_class, 1, 2)  # (g, c, columns): pictures by true and predicted class
        priors = _normalise(rng.standard_gamma(CLASS_PRIOR_WEIGHT + by_class.sum(axis=2)))
        weights = rng.standard_gamma(used + by_class)
        C = weights / (weights.sum(axis=2) + rng.standard_gamma(unused) + 1e-300)[:, :, None]
        if step >= WARM_UP:
            samples.append(priors)
    return np.concatenate(samples)


def _draw_row_priors(counts: Array, chains: int, rng: np.random.Generator) -> Array:
    """Draw parameters (g, c, c) of the Dirichlet priors of all rows, one set per chain."""
    # The accuracy and the weight come from a grid, with probabilities proportional to the likelihood of the counts
    # (Dirichlet-multinomial distribution).
    c = len(counts)
    accuracies = np.linspace(1 / c, MAX_ACCURACY, ACCURACY_STEPS)[:, None]
    diagonal, other = PRIOR_WEIGHTS * accuracies, PRIOR_WEIGHTS * (1 - accuracies) / max(c - 1, 1)
    off_diagonal = counts[~np.eye(c, dtype=bool)]
    log_likelihood = np.ravel(
        _log_rising_factorials(diagonal, np.diag(counts))
        + _log_rising_factorials(other, off_diagonal)
        - _log_rising_factorials(PRIOR_WEIGHTS * np.ones_like(accuracies), counts.sum(axis=1))
    )
    chosen = rng.choice(log_likelihood.size, size=chains, p=_normalise(np.exp(log_likelihood - log_likelihood.max())))
    row_priors = np.repeat(other.ravel()[chosen], c * c).reshape(chains, c, c)
    row_priors[:, np.arange(c), np.arange(c)] = diagonal.ravel()[chosen][:, None]
    return row_priors


def _log_rising_factorials(start: Array, counts: Array) -> Array:
    """Sum over the counts of log(a (a + 1) ... (a + count - 1)), for each a in ``start``."""
    # That is the difference of two log-gamma functions, which NumPy lacks; the counts are the few shots of a class.
    repeats = [int((counts > i).sum()) for i in range(int(counts.max(initial=0)))]
    return np.asarray(sum((times * np.log(start + i) for i, times in enumerate(repeats)), np.zeros_like(start)))


def _normalise(weights: Array) -> Array:
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))
