"""Stacked generalisation: weights of experts that maximise the likelihood of held-out labels, under a prior.

Wolpert, Neural Networks 1992, https://doi.org/10.1016/S0893-6080(05)80023-1. The prior is log-normal: it keeps the
weights near fixed values if few shots can be held out, and above zero always. Labels are assumed to be wrong at a small
rate, which bounds the loss of one shot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipadapter.heads.multilabel import BIAS_PRIOR_STD, binary_losses
from clipadapter.utils.parallel import parallel_map

LABEL_NOISE_RATE = 0.05
"""Assumed share of wrong labels, so that one wrongly labelled shot can't drive the weight of the text to zero."""
INVERSE_TEMPERATURE_PRIOR = (2.0, 1.0)
"""Log-normal prior of the inverse temperature, for zero-shot logits of unit spread: median, and sigma of the log."""
LOGITS_PER_BLOCK = 2**17
"""Float64 logits that `fit_inverse_temperature` works on at a time: a megabyte, which stays in the CPU cache."""
MAX_CROSS_FITTED_LOGITS = 2**18
"""Out-of-fold logits of all experts, up to which the weights are chosen once more without each fold."""
DEFAULT_NOISE_STD = 0.08
"""Typical `noise_std` of ridge regression, for data that show none: two classes have one wrong class each."""

Split = tuple[Tensor, Tensor]  # training rows and held-out rows of a fold
ChooseWeights = Callable[[Tensor | slice], list[float]]
"""Weights of parts of the logits, from the positions of the held-out rows that they may depend on."""


def centre_logits(logits: Tensor) -> Tensor:
    """(n, c) minus the mean of each row, which softmax does not depend on."""
    return logits - logits.mean(dim=1, keepdim=True)


def fit_inverse_temperature(logits: Tensor, labels: Tensor, row_weights: Tensor | None = None) -> float:
    """The factor that calibrates zero-shot logits (n, c) of unit spread: its posterior mean (of the logarithm).

    Zero-shot was not fitted to the shots, so the shots serve as a calibration set.
    """
    factors = torch.logspace(-1.5, 1.5, 61, dtype=torch.float64)
    weights = torch.ones(len(labels), dtype=torch.float64) if row_weights is None else row_weights.double()
    median, sigma = INVERSE_TEMPERATURE_PRIOR
    log_posterior = -((factors.log() - np.log(median)) ** 2) / (2 * sigma**2)
    for rows in torch.arange(len(labels)).split(max(1, LOGITS_PER_BLOCK // logits.shape[1])):
        shifted = logits[rows].double()
        shifted -= shifted.amax(dim=1, keepdim=True)  # exp must not overflow
        true_class = shifted.gather(1, labels[rows, None])[:, 0]
        for i, factor in enumerate(factors.tolist()):
            probability = (factor * true_class).exp_() / (factor * shifted).exp_().sum(dim=1)
            likelihood = (1 - LABEL_NOISE_RATE) * probability + LABEL_NOISE_RATE / logits.shape[1]
            log_posterior[i] += weights[rows] @ likelihood.log()
    return float((log_posterior.softmax(dim=0) @ factors.log()).exp())


def noise_std(logits: Tensor, truth: Tensor) -> float:
    """Standard deviation of an expert's logits (n, c) of wrong classes: the unit that its logits are measured in.

    Experts have logits of very different sizes. In this unit one prior of the weights fits all experts and encoders.
    ``truth`` has labels (n,), or zeros and ones (n, c) if pictures may have several.
    """
    if truth.ndim == 2:
        negatives = logits[truth == 0]
        return (float(negatives.std(unbiased=False)) if len(negatives) else 0.0) or 1.0
    n, c = logits.shape
    is_wrong = ~torch.nn.functional.one_hot(truth, c).bool()
    wrong_logits = centre_logits(logits[is_wrong].reshape(n, c - 1))
    degrees_of_freedom = n * max(c - 2, 0)
    if degrees_of_freedom == 0:  # two classes: the only wrong class has no spread
        return float(centre_logits(logits).square().mean().sqrt()) / 2 or 1.0
    return float((wrong_logits.square().sum() / degrees_of_freedom).sqrt()) or 1.0


def predict_held_out(
    splits: Sequence[Split], predict: Callable[[Tensor, Tensor], list[Tensor]], work: int | None = None
) -> list[Tensor]:
    """Predictions (r, c) of each expert for the held-out rows of all folds in their order.

    ``predict`` fits the experts to the training rows of a fold, and predicts its held-out rows. With its cost ``work``,
    folds may run in parallel.
    """
    by_split = parallel_map([partial(predict, *split) for split in splits], None if work else 1, work=work)
    return [torch.cat(parts) for parts in zip(*by_split, strict=True)]


def fit_stacking(
    logits: Sequence[Tensor],
    labels: Tensor,
    prior_median: Sequence[float],
    prior_log_std: Sequence[float],
    row_weights: Tensor | None = None,
) -> tuple[list[float], float]:
    """Weights of ``sum_i w_i logits_i`` that maximise the posterior of the labels under a log-normal prior.

    No weight becomes zero: a few held-out rows that are wrong by chance can't remove an expert. The logits (n, c) of
    each expert are of rows that it was not fitted to. The second value is the log posterior in nats, without the
    constant of the prior.
    """
    c = logits[0].shape[1]
    onehot = torch.nn.functional.one_hot(labels, c).double()
    rows = torch.ones(len(labels), dtype=torch.float64) if row_weights is None else row_weights.double()

    def loss(mixed: Tensor) -> tuple[float, Tensor]:
        probability = mixed.softmax(dim=1)
        true_class = (1 - LABEL_NOISE_RATE) * (probability * onehot).sum(dim=1)
        likelihood = true_class + LABEL_NOISE_RATE / c
        # The gradient of log-loss, times the posterior probability that the label of the row is right.
        is_right = rows * true_class / likelihood
        return float(-(rows @ likelihood.log())), (probability - onehot) * is_right[:, None]

    weights, _, value = _minimise([centre_logits(part) for part in logits], loss, prior_median, prior_log_std)
    return weights, -value


def fit_multilabel_stacking(
    logits: Sequence[Tensor], targets: Tensor, prior_median: Sequence[float], log_std: float, row_weight: float = 1.0
) -> tuple[list[float], Tensor]:
    """Weights that all classes share, and the bias (c,) of each class, of the largest posterior of targets (n, c).

    A weight whose prior median is zero stays zero. The biases lie around a common one with standard deviation
    `BIAS_PRIOR_STD`. ``row_weight`` is below 1 if rows occur several times.
    """
    truth = targets.double()

    def loss(mixed: Tensor) -> tuple[float, Tensor]:
        return float(binary_losses(mixed, truth).sum()) * row_weight, (mixed.sigmoid() - truth) * row_weight

    biases = np.concatenate([[-1.0], np.zeros(targets.shape[1])])
    weights, biases, _ = _minimise(logits, loss, prior_median, [log_std] * len(logits), biases)
    return weights, torch.as_tensor(biases[0] + biases[1:])


def _minimise(
    logits: Sequence[Tensor],
    loss: Callable[[Tensor], tuple[float, Tensor]],
    prior_median: Sequence[float],
    prior_log_std: Sequence[float],
    biases: Any = (),
) -> tuple[list[float], Any, float]:
    """Weights, biases and negative log posterior; ``biases`` has the start of the common one and of the deviations.

    The loss of mixed logits (n, c) is given with its gradient (n, c).
    """
    from scipy.optimize import minimize  # late: a fitted head needs no scipy

    stack, k = torch.stack(list(logits)).double(), len(logits)
    median, log_std = np.asarray(prior_median, dtype=np.float64), np.asarray(prior_log_std, dtype=np.float64)

    def negative_log_posterior(parameters: Any) -> tuple[float, Any]:
        """Of the deviations of the logarithms of the weights from those of the medians, in ``log_std``, and biases."""
        deviations, offsets = parameters[:k], parameters[k:]
        weights = median * np.exp(log_std * deviations)
        mixed = torch.tensordot(torch.as_tensor(weights), stack, dims=1)
        if len(offsets):
            mixed = mixed + torch.as_tensor(offsets[0] + offsets[1:])
        value, residual = loss(mixed)
        penalty = deviations @ deviations
        gradient = torch.tensordot(stack, residual, dims=2).cpu().numpy() * weights * log_std + deviations
        if len(offsets):
            bias_deviations, bias_gradient = offsets[1:] / BIAS_PRIOR_STD, residual.sum(dim=0).cpu().numpy()
            penalty = penalty + bias_deviations @ bias_deviations
            own = bias_gradient + bias_deviations / BIAS_PRIOR_STD
            gradient = np.concatenate([gradient, [bias_gradient.sum()], own])
        return value + float(penalty) / 2, gradient

    start, options = np.concatenate([np.zeros(k), biases]), {"ftol": 1e-11, "gtol": 1e-7}
    result = minimize(negative_log_posterior, start, jac=True, method="L-BFGS-B", options=options)
    weights = median * np.exp(log_std * result.x[:k])
    return [float(weight) for weight in weights], result.x[k:], float(result.fun)


def mix_logits(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted sum (n, c) of logits, in the dtype of the first part."""
    total = sum((weight * part for weight, part in zip(weights, parts, strict=True)), torch.zeros(()))
    return total.to(parts[0].dtype)


def mix_out_of_fold(
    parts: Sequence[Tensor], splits: Sequence[Split], weights: Sequence[float], choose_weights: ChooseWeights
) -> Tensor:
    """Weighted sums (r, c) of out-of-fold logits, where each row has weights that were chosen without its shot.

    Weights that were chosen on all rows would make the rows look better than new pictures are. With very many logits
    they hardly do, and all rows have the same weights. Weights that are zero on all rows stay zero.
    """
    shots = torch.cat([rows for _, rows in splits])  # of each row
    n_shots, n_grouped = len(shots.unique()), 0
    mixture = mix_logits(parts, weights)
    for _, group in splits:
        # The first round of folds holds out every shot once.
        if n_grouped == n_shots or len(parts) * mixture.numel() > MAX_CROSS_FITTED_LOGITS:
            break
        n_grouped += len(group)
        is_own = torch.isin(shots, group)
        chosen = choose_weights(torch.nonzero(~is_own).flatten())
        used = [own if weight else 0.0 for own, weight in zip(chosen, weights, strict=True)]
        mixture[is_own] = mix_logits([part[is_own] for part in parts], used)
    return mixture


@dataclass(frozen=True)
class HeldOut:
    """Out-of-fold logits of a mixture of experts, and the folds that they come from."""

    rows: Tensor  # (p,) the shots that the folds are made of
    splits: list[Split]  # as positions among `rows`
    logits: Tensor  # (r, c) of the held-out rows of all folds in their order, with the weights of the mixture
    labels: Tensor  # (r,)
    row_weights: Tensor  # (r,) with the same sum for every class
    cross_fitted: Tensor  # (r, c) the logits with weights that were chosen without the row's shot, for calibration

    def mix(self, parts: list[Tensor], weights: list[float], choose_weights: ChooseWeights) -> HeldOut:
        """The same rows by a mixture of these logits and further parts (r, c), with a weight for each of them."""
        logits = mix_logits([self.logits, *parts], weights)
        cross_fitted = mix_out_of_fold([self.cross_fitted, *parts], self.splits, weights, choose_weights)
        return replace(self, logits=logits, cross_fitted=cross_fitted)
