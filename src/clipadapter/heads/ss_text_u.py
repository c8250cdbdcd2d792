"""SS-Text-U: closed-form class vectors from text, shots and pictures without labels, assigned by optimal transport.

Paper: Silva-Rodriguez et al., 2026, https://arxiv.org/abs/2603.02959. With unit text t_k, unit features f, logit scale
s, N shots, n_k of them of class k, M pictures without labels, and class frequencies r:

    a_k = s n_k / (2 N) sum of f over the shots of class k
    Z   = Sinkhorn(exp(s cos(f_i, w_k)), columns in proportion to r, rows to 1)      (M, c)
    w_k = a_k + s / M sum_i z_ik f_i + t_k

Z and w are updated in turn; the logits are s cos(x, w). Transport is computed with logarithms, since exp overflows in
float32 where s is 100.
Differs from the released code, which `SsTextU.official` is: r is the class frequencies of the pictures without labels,
estimated by the class vectors of the shots and text (`class_frequencies`), where the code takes those of the shots.
The first Z is computed with these class vectors too, where the code starts from text. On 13 development sets with 4
shots per class, accuracy on balanced, skewed, few-class and single-class pools is 81.8, 80.6, 80.9 and 86.1 %, with the
parameters of the code 81.0, 72.2, 61.5 and 54.4 %.
"""

from __future__ import annotations

import warnings
from typing import Annotated

import torch
from torch import Tensor

from clipadapter.errors import MethodWarning
from clipadapter.heads.base import NOT_NEGATIVE, POSITIVE, Head, OneOf, SupportSet, register_head
from clipadapter.heads.class_frequencies import balancing_bias, effective_number, estimate_frequencies
from clipadapter.heads.out_of_fold import most_classes_repeat
from clipadapter.heads.select import losses_at_best_temperature
from clipadapter.heads.ss_text import SsText, sum_by_class
from clipadapter.utils.functional import cosine_logits, unit

MIN_EFFECTIVE_SHARE = 0.5
"""Least effective number of classes among pictures without labels, as a share of all classes. On 13 development sets
with 4 or 8 shots per class, none of 236 balanced pools of 16 to 256 pictures was below it, 4 % of those with one shot,
and 70 to 100 % of the pools of one class, or of a quarter of the classes and at least two."""
MAX_BIAS_LOGITS = 2**22  # most logits of held-out shots that `held_out_logits` computes


@register_head("ss-text-u", paper="https://arxiv.org/abs/2603.02959")
class SsTextU(Head):
    """Closed-form class vectors from text, shots and pictures without labels, which may have few of the classes.

    Args:
        marginal: class frequencies of the pictures without labels: "estimated" from their features, "shots" for those
            of the shots, or "uniform".
        missing_class_ratio: with marginal "shots", by which factor a class without shots is less frequent than the
            least frequent class with shots; 4 in the released code.
        start: class vectors of the first assignment: "shots" for those of text and shots, or "text".
        updates: number of updates of assignments and class vectors; 0 does not use the pictures without labels.
        rounds: number of Sinkhorn rounds per update; 0 assigns by softmax, without class frequencies.
        support_weight: weight of the shots; 1 is that of SS-Text.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.9], [0.9, 1.0]], logit_scale=10.0)
    >>> pictures = [[9.0, 1.0], [8.0, 2.0], [7.0, 6.0], [1.0, 9.0], [2.0, 8.0]]
    >>> head = SsTextU().fit([[9.0, 0.0], [0.0, 9.0]], ["cat", "dog"], text=text, unlabelled=pictures)
    >>> head.predict(pictures)
    array(['cat', 'cat', 'cat', 'dog', 'dog'], dtype='<U3')

    Fidelity: verified: `SsTextU.official` gives the logits of the authors' code. The default estimates the class
    frequencies of the pictures without labels, and starts from the shots too.
    """

    needs_text = transductive = True
    temperature_prior = (1.9, 1.3, 1.0, 0.9, 0.9)
    recipes = {"official": {"marginal": "shots", "start": "text", "missing_class_ratio": 4.0}}
    """The method of the released code."""

    marginal: Annotated[str, OneOf("estimated", "shots", "uniform")] = "estimated"
    missing_class_ratio: Annotated[float, POSITIVE] = 4.0
    start: Annotated[str, OneOf("shots", "text")] = "shots"
    updates: Annotated[int, NOT_NEGATIVE] = 3
    rounds: Annotated[int, NOT_NEGATIVE] = 10
    support_weight: Annotated[float, NOT_NEGATIVE] = 0.5

    def _fit(self, shots: SupportSet) -> None:
        assert shots.unlabelled is not None
        pictures = unit(shots.unlabelled)
        fixed = self.support_weight * labelled_part(unit(shots.X), shots.labels, shots.n_classes, shots.scale)
        if self.marginal == "estimated":
            self.marginal_ = estimate_pool_frequencies(shots)
        else:
            counts = shots.counts if self.marginal == "shots" else torch.ones_like(shots.counts)
            self.marginal_ = class_marginal(counts, self.missing_class_ratio)
        text, self.scale_ = shots.class_text, shots.scale
        start = text + fixed if self.start == "shots" else text
        self.weight_ = solve_class_vectors(
            text, fixed, pictures, self.marginal_, shots.scale, start=start, updates=self.updates, rounds=self.rounds
        )

    def _logits(self, X: Tensor) -> Tensor:
        return cosine_logits(X, self.weight_.to(X.dtype), self.scale_)


def estimate_pool_frequencies(shots: SupportSet) -> Tensor:
    """Class frequencies (c,) of the pictures without labels, by SS-Text's class vectors of text and shots.

    Without a temperature: with two shots per class it loses 5 points on skewed pools.
    """
    assert shots.unlabelled is not None
    logits = cosine_logits(shots.unlabelled, supervised_vectors(shots), shots.scale)
    return estimate_frequencies(logits, held_out_calibration(shots, use_temperature=False)[1])


def warn_if_few_classes(shots: SupportSet, method: str) -> None:
    """Warn if the pictures without labels seem to have few classes for a method."""
    number, c = effective_number(estimate_pool_frequencies(shots)), shots.n_classes
    if number < MIN_EFFECTIVE_SHARE * c:
        message = (
            f"{method} expects pictures of all classes without labels, but these have an estimated {number:.1f} of "
            f"{c} classes (effective number): prefer ss-text-u, stata or auto for such pictures"
        )
        warnings.warn(MethodWarning(message), stacklevel=3)


def supervised_vectors(shots: SupportSet) -> Tensor:
    """SS-Text's class vectors (c, d) of text and shots."""
    return shots.class_text + labelled_part(unit(shots.X), shots.labels, shots.n_classes, shots.scale)


def held_out_logits(shots: SupportSet) -> Tensor | None:
    """SS-Text's logits (n, c) for shots that it did not see.

    None for a single shot, and for so many shots and classes that they would cost more than the fit.
    """
    n, labels, x = len(shots.labels), shots.labels, unit(shots.X)
    if n == 1 or n * shots.n_classes > MAX_BIAS_LOGITS:
        return None
    head, sums, at = SsText(), sum_by_class(x, labels, shots.n_classes), torch.arange(n)
    # First all classes with all shots, but n - 1 as their number; then each shot's own class without the shot.
    weight = shots.class_text + head._pull(shots, shots.counts, n - 1)[:, None] * sums
    pull = head._pull(shots, shots.counts[labels] - 1, n - 1)
    moved = shots.class_text[labels] + pull[:, None] * (sums[labels] - x)
    dots, squares = x @ weight.T, weight.square().sum(dim=1).expand(n, -1).clone()  # both (n, c)
    dots[at, labels], squares[at, labels] = (x * moved).sum(dim=1), moved.square().sum(dim=1)
    return shots.scale * dots / squares.sqrt()


def held_out_calibration(shots: SupportSet, *, use_temperature: bool = True) -> tuple[float, Tensor]:
    """Temperature and bias (c,) with which SS-Text's logits are calibrated on `held_out_logits`; 1 and zero without.

    The bias balances the predicted classes. From 8 shots per class on it changes little. StatA estimates class
    frequencies with both. SS-Text is underconfident, and EM explains weak evidence for all classes by few classes:
    without a temperature it ends at one class on large pools that are hard to classify. The temperature is 1 if most
    classes have one shot, since shots of the other classes say nothing about such a class.
    """
    held_out = held_out_logits(shots)
    if held_out is None:
        return 1.0, shots.X.new_zeros(shots.n_classes)
    has_evidence = use_temperature and most_classes_repeat(shots.labels)
    temperature = losses_at_best_temperature(held_out, shots.labels)[1] if has_evidence else 1.0
    return temperature, balancing_bias(held_out / temperature, shots.labels)


def labelled_part(rows: Tensor, labels: Tensor, n_classes: int, scale: float) -> Tensor:
    """Part (c, d) of the class vectors that comes from shots (n, d): s n_k / N times the sum of those of the class.

    That is SS-Text's; SS-Text-U takes half of it.
    """
    factors = scale / len(labels) * torch.bincount(labels, minlength=n_classes).to(rows.dtype)
    return sum_by_class(rows, labels, n_classes) * factors[:, None]


def class_marginal(counts: Tensor, missing_class_ratio: float = 4.0) -> Tensor:
    """Class frequencies (c,) of shots, with a low one for classes without shots; see `SsTextU`."""
    filled = torch.where(counts > 0, counts, counts[counts > 0].min() / missing_class_ratio)
    return filled / filled.sum()


def solve_class_vectors(
    text: Tensor,
    fixed: Tensor,
    pictures: Tensor,
    marginal: Tensor,
    scale: float,
    *,
    start: Tensor,
    updates: int,
    rounds: int,
) -> Tensor:
    """Class vectors (c, d): the alternating updates of the paper.

    Rows may have any length. The lengths balance the three parts: text (c, d), the fixed part of the shots (c, d), and
    the pictures (m, d) of class frequencies ``marginal``. ``start`` (c, d) makes the first assignment.
    """
    weight = start
    for _ in range(updates):
        assigned = transport(cosine_logits(pictures, weight, scale), marginal, rounds)
        weight = fixed + scale / len(pictures) * assigned.T @ pictures + text
    return weight if updates else fixed + text


def transport(scores: Tensor, marginal: Tensor, rounds: int) -> Tensor:
    """Assignments (m, c), whose rows sum to 1 and whose columns are in proportion to the marginal (c,), nearly.

    Sinkhorn's algorithm scales the exponentials of the scores: each round columns, then rows. Without any round the
    result is a softmax.
    """
    log_marginal = marginal.clamp_min(torch.finfo(marginal.dtype).tiny).log()
    for _ in range(rounds):
        scores = (scores - scores.logsumexp(dim=0) + log_marginal).log_softmax(dim=1)
    return scores.softmax(dim=1)
