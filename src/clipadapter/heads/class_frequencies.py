"""How frequent each class is among pictures without labels, estimated by a head's logits for them.

Paper: Saerens, Latinne, Decaestecker, Neural Computation 14(1), 2002. Given probabilities p(k | x) of a model for
which all classes are equally frequent, the likelihood of frequencies r is the product over the pictures of
sum_k r_k p(k | x), up to a constant. The EM algorithm finds the maximum.

Three parts are ours:

- A bias for each class, as of Alexandari et al., ICML 2020, https://arxiv.org/abs/1901.06852: with it the model
  predicts all classes equally often for shots that it has not seen. There it is learned on validation data.
- The Dirichlet prior of the frequencies has the weight of one picture in all.
- The errors of a model look like unequal frequencies too. So unequal frequencies are compared with equal ones by BIC.
  The number of parameters is the effective number of classes minus one, so that a few classes are few parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PRIOR_PICTURES = 1.0  # weight of the Dirichlet prior of the frequencies, in pictures
MAX_EM_STEPS = 200
EM_TOLERANCE = 1e-5  # EM stops when the frequencies change by less than this in all
BIAS_PICTURES = 3.0  # weight of equal frequencies when a bias is learned from shots, in pictures per class
BIAS_STEPS = 20


def estimate_frequencies(logits: Tensor, bias: Tensor | None = None) -> Tensor:
    """Class frequencies (c,) of pictures without labels; they sum to 1.

    They are equal frequencies where the pictures are no evidence against these. The logits (m, c) are calibrated, of a
    model for which all classes are equally frequent; a bias (c,) is added to them, see `balancing_bias`.
    """
    probabilities = (logits if bias is None else logits + bias).softmax(dim=1).double()
    m, c = probabilities.shape
    equal = torch.full_like(probabilities[0], 1 / c)
    r = equal
    for _ in range(MAX_EM_STEPS):
        expected_counts = r * (probabilities.T @ (1 / (probabilities @ r)))
        previous, r = r, (expected_counts + PRIOR_PICTURES / c) / (m + PRIOR_PICTURES)
        if float((r - previous).abs().sum()) < EM_TOLERANCE:
            break
    gain = float((probabilities @ r).log().sum() - m * math.log(1 / c))
    penalty = 0.5 * (effective_number(r) - 1) * math.log(max(m, 2))
    weight = torch.sigmoid(torch.tensor(gain - penalty, dtype=r.dtype))
    return (weight * r + (1 - weight) * equal).to(logits.dtype)


def effective_number(frequencies: Tensor) -> float:
    """The exponential of the entropy: how many equally frequent classes are as diverse as these frequencies (c,)."""
    return math.exp(float(torch.special.entr(frequencies.double()).sum()))


def balancing_bias(logits: Tensor, labels: Tensor) -> Tensor:
    """Bias (c,), zero on average, with which a model predicts the classes of unseen shots equally often.

    All classes that have shots count equally; the others have no bias.
    """
    n, c = logits.shape
    counts = torch.bincount(labels, minlength=c).to(logits.dtype)
    has_shots = counts > 0
    weights = (1 / counts[labels]) / has_shots.sum()
    expected = n / has_shots.sum()
    bias = logits.new_zeros(c)
    p = logits.softmax(dim=1)
    for _ in range(BIAS_STEPS):
        factors = bias.exp()  # the softmax of logits + bias is p times these, divided by its sum
        predicted = n * ((weights / (p @ factors)) @ p) * factors
        # Half of the Newton step for independent classes, which would not converge for classes that are alike.
        bias = bias - 0.5 * ((predicted + BIAS_PICTURES) / (expected + BIAS_PICTURES)).log()
        bias = torch.where(has_shots, bias - bias[has_shots].mean(), 0.0)
    return bias
