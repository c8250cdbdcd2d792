"""The simple classifiers that `auto` stacks. Each is a linear map of centred features, or a kernel sum.

An expert is fitted to the classes that have shots. Its logits have mean zero over these, so that a class without shots
keeps its zero-shot logit. No expert learns class frequencies from unequal numbers of shots: how many images a person
has of a class says little about its frequency in use. So the rows are weighted, or the log counts are an offset.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clipadapter.heads.auto.stacking import DEFAULT_NOISE_STD, centre_logits
from clipadapter.heads.softmax_regression import MAX_LOGITS, MAX_SOLVE_COST, LinearOffset, SoftmaxRegression
from clipadapter.utils.functional import unit

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

    def take(self, rows: Tensor) -> ExpertInputs:
        """Some of the shots; every class must keep one."""
        zero_shot = None if self.zero_shot is None else self.zero_shot[rows]
        gram = self.gram_block(rows, rows)
        return ExpertInputs(self.z[rows], self.labels[rows], self.n_classes, zero_shot, self.inverse_temperature, gram)

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


def take_with_classes(inputs: ExpertInputs, rows: Tensor) -> ExpertInputs:
    """Some of the shots, and of the classes only those that still have one."""
    part = inputs.take(rows)
    classes = part.labels.unique()
    labels = torch.searchsorted(classes, part.labels)
    zero_shot = part.zero_shot[:, classes] if isinstance(part.zero_shot, Tensor) else None
    return ExpertInputs(part.z, labels, len(classes), zero_shot, part.inverse_temperature, part.gram)


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


def solve_ridge(matrix: Tensor, right: Tensor, ridge: Tensor | float) -> Tensor:
    """``(matrix + diag(ridge))^-1 right`` of a positive semi-definite matrix, which is overwritten."""
    matrix.diagonal().add_(ridge)
    return torch.cholesky_solve(right, torch.linalg.cholesky(matrix))


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
