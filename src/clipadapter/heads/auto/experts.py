"""The simple classifiers that `auto` stacks, and how their weights maximise the likelihood of held-out labels.

Stacked generalisation: Wolpert, Neural Networks 1992, https://doi.org/10.1016/S0893-6080(05)80023-1. The prior of the
weights is log-normal: it keeps them near fixed values if few shots can be held out, and above zero always. Labels are
assumed to be wrong at a small rate, which bounds the loss of one shot.

Each expert is a linear map of centred features, or a kernel sum.

An expert is fitted to the classes that have shots. Its logits have mean zero over these, so that a class without shots
keeps its zero-shot logit. No expert learns class frequencies from unequal numbers of shots: how many images a person
has of a class says little about its frequency in use. So the rows are weighted, or the log counts are an offset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipadapter.heads.losses import BIAS_PRIOR_STD, WRONG_LABEL_SHARE, binary_losses
from clipadapter.heads.softmax_regression import MAX_LOGITS, MAX_SOLVE_COST, LinearOffset, SoftmaxRegression
from clipadapter.utils.devices import SharedChange
from clipadapter.utils.functional import solve_ridge, unit
from clipadapter.utils.parallel import parallel_map

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
            likelihood = (1 - WRONG_LABEL_SHARE) * probability + WRONG_LABEL_SHARE / logits.shape[1]
            log_posterior[i] += weights[rows] @ likelihood.log()
    return float((log_posterior.softmax(dim=0) @ factors.log()).exp())


def share_explained(logits: Tensor, labels: Tensor, row_weights: Tensor) -> float:
    """1 - log-loss / log(c) of logits (n, c): 1 where they are sure and right, 0 where chance is no worse."""
    c, loss = logits.shape[1], 0.0
    for rows in torch.arange(len(labels)).split(max(1, LOGITS_PER_BLOCK // c)):
        probability = logits[rows].double().softmax(dim=1).gather(1, labels[rows, None])[:, 0]
        likelihood = (1 - WRONG_LABEL_SHARE) * probability + WRONG_LABEL_SHARE / c
        loss -= float(row_weights[rows].double() @ likelihood.log())
    return max(0.0, 1 - loss / float(row_weights.sum()) / (np.log(c) or 1.0))


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


def _limit_blas() -> Callable[[], None]:
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas").restore_original_limits


_one_blas_thread = SharedChange(_limit_blas)
"""A second thread of BLAS would only wait, busily, between products of ten rows. The limit is one of the process."""


class Stacking(NamedTuple):
    """What `fit_stacking` chose."""

    weights: list[float]
    log_posterior: float  # in nats, without the constant of the prior
    bias: Tensor  # (c,) of the classes if pictures may have several labels; else empty


def fit_stacking(
    logits: Sequence[Tensor],
    truth: Tensor,
    prior_median: Sequence[float],
    prior_log_std: Sequence[float],
    row_weights: Tensor | float = 1.0,
) -> Stacking:
    """Weights of ``sum_i w_i logits_i`` with the largest posterior of labels (n,), or of multi-label targets (n, c).

    The logits (n, c) of each expert are of rows that it was not fitted to. The prior is log-normal, so that no weight
    becomes zero: a few held-out rows that are wrong by chance can't remove an expert. A weight whose prior median is
    zero stays zero. With targets each class has a bias too, around a common one with standard deviation
    `BIAS_PRIOR_STD`, and ``row_weights`` is one number.
    """
    from scipy.optimize import minimize  # late: a fitted head needs no scipy

    is_multilabel, k, c = truth.ndim == 2, len(logits), logits[0].shape[1]
    stack = torch.stack([part if is_multilabel else centre_logits(part) for part in logits]).double()
    targets = (truth if is_multilabel else torch.nn.functional.one_hot(truth, c)).double()
    rows = row_weights * torch.ones(len(truth), dtype=torch.float64)
    median, log_std = np.asarray(prior_median, dtype=np.float64), np.asarray(prior_log_std, dtype=np.float64)

    def loss(mixed: Tensor) -> tuple[float, Tensor]:
        """Loss of mixed logits (n, c), and its gradient."""
        if is_multilabel:
            return float(binary_losses(mixed, targets).sum()) * float(row_weights), (
                mixed.sigmoid() - targets
            ) * row_weights
        probability = mixed.softmax(dim=1)
        true_class = (1 - WRONG_LABEL_SHARE) * (probability * targets).sum(dim=1)
        likelihood = true_class + WRONG_LABEL_SHARE / c
        # The gradient of log-loss, times the posterior probability that the label of the row is right.
        is_right = rows * true_class / likelihood
        return float(-(rows @ likelihood.log())), (probability - targets) * is_right[:, None]

    def negative_log_posterior(parameters: Any) -> tuple[float, Any]:
        """Of the deviations of the log-weights from the prior, then of the common bias and the classes' deviations."""
        deviations, common_bias, bias = parameters[:k], parameters[k : k + 1], parameters[k + 1 :]
        weights = median * np.exp(log_std * deviations)
        mixed = torch.tensordot(torch.as_tensor(weights), stack, dims=1)
        value, residual = loss(mixed + torch.as_tensor(common_bias + bias) if is_multilabel else mixed)
        penalty = deviations @ deviations
        gradient = torch.tensordot(stack, residual, dims=2).numpy() * weights * log_std + deviations
        if is_multilabel:
            bias_deviations, bias_gradient = bias / BIAS_PRIOR_STD, residual.sum(dim=0).numpy()
            penalty = penalty + bias_deviations @ bias_deviations
            own = bias_gradient + bias_deviations / BIAS_PRIOR_STD
            gradient = np.concatenate([gradient, [bias_gradient.sum()], own])
        return value + float(penalty) / 2, gradient

    start, options = np.zeros(k + (1 + c) * is_multilabel), {"ftol": 1e-11, "gtol": 1e-7}
    start[k : k + 1] = -1.0
    with _one_blas_thread.needed():
        result = minimize(negative_log_posterior, start, jac=True, method="L-BFGS-B", options=options)
    weights = (median * np.exp(log_std * result.x[:k])).tolist()
    return Stacking(weights, -float(result.fun), torch.as_tensor(result.x[k : k + 1] + result.x[k + 1 :]))


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


RIDGE = 0.1  # ridge of linear ridge regression
KERNEL_RIDGE = 0.03  # ridge of kernel ridge regression
MAX_KERNEL_SHOTS = 4000  # kernel ridge regression keeps every shot; with more shots than this it is not used
LBFGS_TOL = 1e-3  # share of the first gradient's norm at which L-BFGS stops
LBFGS_MAX_ITER = 100
MAX_CALIBRATION_LOGITS = 2**22
"""Zero-shot logits that the text is calibrated on where all are more than `MAX_LOGITS`: 419 rows of 10,000 classes.
Each logit is taken to 61 powers."""
PROBE_COST = MAX_SOLVE_COST * 2 // 5
"""Multiplications of one probe at most, if it is too dear to be solved exactly: two probes are fitted at a time."""


@dataclass(frozen=True)
class ZeroShotLogits:
    """Zero-shot logits (n, c) that are computed when rows of them are read; all at once they are gigabytes."""

    x: Tensor  # (n, d) unit features
    text: Tensor  # (c, d) class text, centred over the classes and divided by the spread of the cosines

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        return self.x[rows] @ self.text.T


@dataclass(frozen=True)
class ExpertInputs:
    """The shots as experts are fitted to them."""

    z: Tensor  # (n, d) features, centred, unit rows
    labels: Tensor  # (n,) positions among the c classes that have shots
    n_classes: int  # c
    zero_shot: Tensor | ZeroShotLogits | None  # (n, c) of unit spread, if there is class text
    inverse_temperature: float  # factor that calibrates the zero-shot logits
    gram: Tensor | None = None  # (n, n) products of the rows of z, computed once for all folds and experts
    text_weight: float = 0.0  # prior median of the weight of the zero-shot logits

    def take(self, rows: Tensor) -> ExpertInputs:
        """Some of the shots, and of the classes those that still have one."""
        labels, gram = self.labels[rows], self.gram_block(rows, rows)
        classes = labels.unique()
        zero_shot = None if self.zero_shot is None else self.zero_shot[rows][:, classes]
        labels = torch.searchsorted(classes, labels)
        return replace(self, z=self.z[rows], labels=labels, n_classes=len(classes), zero_shot=zero_shot, gram=gram)

    def gram_block(self, rows: Tensor, columns: Tensor) -> Tensor | None:
        """These rows and columns of the Gram matrix, if it is there."""
        return None if self.gram is None else self.gram.index_select(0, rows).index_select(1, columns)

    def new_gram(self) -> Tensor:
        """(n, n) Gram matrix as a new tensor, which the caller may overwrite."""
        return self.z @ self.z.T if self.gram is None else self.gram.clone()

    @property
    def cost(self) -> int:
        """Multiplications of one pass over the shots."""
        return self.z.numel() * self.n_classes

    @property
    def counts(self) -> Tensor:
        """(c,) shots of each class."""
        return torch.bincount(self.labels, minlength=self.n_classes).to(self.z.dtype)

    @property
    def row_weights(self) -> Tensor:
        """(n,) weights of the shots, of mean one, with the same sum for every class."""
        return len(self.labels) / (self.n_classes * self.counts[self.labels])

    @property
    def onehot(self) -> Tensor:
        """(n, c)."""
        return torch.nn.functional.one_hot(self.labels, self.n_classes).to(self.z.dtype)

    @property
    def has_many_logits(self) -> bool:
        """Whether an array (n, c) is too large to be held."""
        return len(self.labels) * self.n_classes > MAX_LOGITS

    def sum_by_class(self, rows: Tensor) -> Tensor:
        """(c, d) sums of rows (n, d)."""
        if self.has_many_logits:
            return rows.new_zeros(self.n_classes, rows.shape[1]).index_add_(0, self.labels, rows)
        return self.onehot.T @ rows


def out_of_fold_logits(
    inputs: ExpertInputs,
    splits: Sequence[Split],
    fits: Sequence[Callable[[ExpertInputs], Expert]],
    work: int | None = None,
) -> list[Tensor]:
    """(r, c) logits of each expert for the held-out rows of all folds in their order; see `predict_held_out`."""

    def predict(train: Tensor, rows: Tensor) -> list[Tensor]:
        part, zero_shot = inputs.take(train), None if inputs.zero_shot is None else inputs.zero_shot[rows]
        products = inputs.gram_block(rows, train)
        return [fit(part).logits(inputs.z[rows], zero_shot, products) for fit in fits]

    return predict_held_out(splits, predict, work)


@dataclass(frozen=True)
class Expert:
    """A fitted expert: ``text_weight * zero_shot + z W' + bias + k(z, support) dual``."""

    weight: Tensor  # W, (c, d)
    bias: Tensor  # (c,)
    text_weight: float = 0.0
    dual: Tensor | None = None  # (n, c) coefficients of the kernel sum
    support: Tensor | None = None  # (n, d) rows that the kernel compares with

    def logits(self, z: Tensor, zero_shot: Tensor | None, products: Tensor | None = None) -> Tensor:
        """Logits (m, c) of z (m, d); ``products`` is ``z @ support.T``, if it is computed already."""
        logits = z @ self.weight.T + self.bias
        if self.dual is not None and self.support is not None:
            logits = logits + gaussian_kernel(z @ self.support.T if products is None else products) @ self.dual
        return logits if zero_shot is None or not self.text_weight else logits + self.text_weight * zero_shot

    def centred(self) -> Expert:
        """The same expert with logits of mean zero over the classes."""
        dual = None if self.dual is None else self.dual - self.dual.mean(dim=1, keepdim=True)
        weight, bias = self.weight - self.weight.mean(dim=0), self.bias - self.bias.mean()
        return Expert(weight, bias, self.text_weight, dual, self.support)


def gaussian_kernel(products: Tensor) -> Tensor:
    """(m, n) Gaussian kernel of unit rows, ``exp(cos - 1)``, from their products."""
    return (products - 1).exp_()


def ridge_map(z: Tensor, target: Tensor, row_weights: Tensor | float = 1.0, gram: Tensor | None = None) -> Tensor:
    """Ridge regression (c, d) of targets (n, c) on rows z (n, d), in the smaller of its two forms.

    A Gram matrix that is given is overwritten.
    """
    if len(z) < z.shape[1]:
        # Dual form: a row of weight w has the ridge lambda / w.
        return (z.T @ solve_ridge(z @ z.T if gram is None else gram, target, RIDGE / row_weights)).T
    weighted = z.T * row_weights
    return solve_ridge(weighted @ z, weighted @ target, RIDGE).T


def fit_ridge(inputs: ExpertInputs) -> Expert:
    """Ridge regression on one-hot labels."""
    z, weights, bias = inputs.z, inputs.row_weights, inputs.z.new_zeros(inputs.n_classes)
    if inputs.has_many_logits and len(z) >= z.shape[1]:
        weighted = z * weights[:, None]
        sums = inputs.sum_by_class(weighted)  # (c, d)
        right = (sums - sums.sum(dim=0) / inputs.n_classes).T
        return Expert(solve_ridge(z.T @ weighted, right, RIDGE).T, bias)
    gram = inputs.new_gram() if len(z) < z.shape[1] else None
    return Expert(ridge_map(z, inputs.onehot - 1 / inputs.n_classes, weights, gram), bias)


def leave_one_out_ridge(gram: Tensor, targets: Tensor) -> Tensor:
    """(n, c) predictions of each row by ridge regression of the centred targets on all others.

    In closed form: ``y_i - (G^-1 y)_i / (G^-1)_ii`` with G = K + lambda I. The Gram matrix K is overwritten.
    """
    gram.diagonal().add_(RIDGE)
    inverse, centred = torch.linalg.inv(gram), targets - targets.mean(dim=0)
    return centred - inverse @ centred / inverse.diagonal()[:, None]


def leave_one_out_ridge_noise(inputs: ExpertInputs) -> float:
    """`noise_std` of ridge regression where every class has one shot, from fits without the shot.

    The estimate is regularised by four pseudo-observations of `DEFAULT_NOISE_STD`.
    """
    n, c = len(inputs.z), inputs.n_classes
    logits = leave_one_out_ridge(inputs.new_gram(), inputs.onehot)
    wrong_logits = centre_logits(logits[~inputs.onehot.bool()].reshape(n, c - 1))
    squares = wrong_logits.square().sum() + 4 * DEFAULT_NOISE_STD**2
    return float((squares / (n * max(c - 2, 0) + 4)).sqrt())


def fit_prototypes(inputs: ExpertInputs) -> Expert:
    """Cosine to the class means."""
    return Expert(unit(inputs.sum_by_class(inputs.z)), inputs.z.new_zeros(inputs.n_classes))


def fit_gda(inputs: ExpertInputs) -> Expert:
    """Gaussian discriminant analysis with one covariance, shrunk by its trace (Wang et al., ICLR 2024)."""
    z, (n, d) = inputs.z, inputs.z.shape
    means = inputs.sum_by_class(z) / inputs.counts[:, None]
    centred = z - means[inputs.labels]
    shrinkage = float(centred.square().sum()) / max(n - 1, 1)
    if shrinkage < 1e-6:  # one shot per class has no scatter about its mean: take the scatter about the grand mean
        shrinkage = float(z.square().sum()) / max(n - 1, 1) or 1.0
    if n < d:
        # Woodbury's identity. The Gram matrix of the centred rows follows from that of z, without a product of width d.
        mean_products, own_mean_products = means @ z.T, (means @ means.T)[:, inputs.labels]
        mean_by_centred = mean_products - own_mean_products  # (c, n)
        inner = inputs.new_gram().sub_(mean_products[inputs.labels]).sub_(mean_by_centred[inputs.labels].T)
        weight = d * (means - solve_ridge(inner, mean_by_centred.T, shrinkage).T @ centred) / shrinkage
    else:
        weight = d * solve_ridge(centred.T @ centred, means.T, shrinkage).T
    return Expert(weight, -0.5 * (weight * means).sum(dim=1))


def fit_kernel_ridge(inputs: ExpertInputs) -> Expert:
    """Ridge regression with a Gaussian kernel, for classes that are not linearly separable."""
    target = inputs.onehot - 1 / inputs.n_classes
    dual = solve_ridge(gaussian_kernel(inputs.new_gram()), target, KERNEL_RIDGE / inputs.row_weights)
    zeros = inputs.z.new_zeros(inputs.n_classes, inputs.z.shape[1])
    return Expert(zeros, zeros[:, 0], dual=dual, support=inputs.z)


def fit_logistic_regression(inputs: ExpertInputs, C: float, text_weight: float = 0.0) -> Expert:
    """Softmax regression that starts from zero-shot: it learns what the text leaves unexplained.

    The zero-shot logits are a fixed offset, and the weights are penalised towards zero. Without text, or with text
    weight 0, it is a linear probe. The log counts of the classes are another offset while training, so that the weights
    do not learn them (balanced softmax, Ren et al., NeurIPS 2020). C is the inverse strength of the penalty, as in
    scikit-learn.
    """
    zero_shot, log_counts = inputs.zero_shot if text_weight else None, inputs.counts.log()
    offset: Tensor | LinearOffset
    if isinstance(zero_shot, ZeroShotLogits):
        offset = LinearOffset(log_counts, zero_shot.x, text_weight * zero_shot.text)
    elif zero_shot is None:
        offset = LinearOffset(log_counts)
    else:
        offset = log_counts + text_weight * zero_shot
    # With text, the intercept is penalised too. One shot per class then shows which class text is too near to all
    # images, which a map of centred features can't correct.
    model = SoftmaxRegression(inputs.z, inputs.labels, offset, unit_intercept=text_weight > 0, gram=inputs.gram)
    model.solve(C, LBFGS_TOL, LBFGS_MAX_ITER, PROBE_COST)
    return Expert(*model.coefficients(inputs.n_classes), text_weight)


@dataclass(frozen=True)
class ExpertKind:
    """How `auto` fits and weights an expert."""

    fit: Callable[[ExpertInputs], Expert]
    weight: float | None = None
    """Prior median of the weight of its logits as they are; None: a part of `EXPERT_WEIGHT`, in units of its noise."""
    one_shot_weight: float = 0.0  # weight where no shot can be held out, in the same unit


EXPERTS = {
    "ridge": ExpertKind(fit_ridge, one_shot_weight=0.5),
    "prototype": ExpertKind(fit_prototypes),
    "gda": ExpertKind(fit_gda),
    "kernel-ridge": ExpertKind(fit_kernel_ridge),
    "probe": ExpertKind(
        lambda inputs: fit_logistic_regression(inputs, 200.0, inputs.inverse_temperature), 0.5, one_shot_weight=0.5
    ),
    "free-probe": ExpertKind(lambda inputs: fit_logistic_regression(inputs, 1000.0)),
}
"""The experts by name; a row that is removed is left out of the mixture. "probe" starts from zero-shot, and is
calibrated like the text; "free-probe" does not use the text. With one shot, ridge regression stands for all experts but
the probe: they hardly differ."""
