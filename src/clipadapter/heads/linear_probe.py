"""Linear probe: logistic regression on frozen image features.

Paper: Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020, section 3.2.
Differs from the papers' protocols: C is chosen on held-out shots, never on a validation set. The optimum is that of
scikit-learn's LogisticRegression; the optimiser is an L-BFGS in torch (`SoftmaxRegression`).
`LinearProbe.official` with the C that `search_c` finds is the probe of CoOp's code, which stops before the optimum
where C is large. How early depends on scikit-learn: since 1.4, of 2024, its tolerance is for the mean loss of the
shots, before it was for their sum.
With multi-label images there is one logistic regression per class, with the same C for all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clipadapter.errors import InputError, brief
from clipadapter.heads.base import POSITIVE, OneOf, SupportSet, at_least, register_head
from clipadapter.heads.losses import LogitAdjustedHead, binary_losses
from clipadapter.heads.out_of_fold import make_folds, most_classes_repeat, some_rows
from clipadapter.heads.softmax_regression import MAX_PASS_COST, OneVsRest, SoftmaxRegression, subsample
from clipadapter.heads.trained_head import find_warm_start
from clipadapter.utils.functional import ABSENT_LOGIT, unit
from clipadapter.utils.parallel import limit_threads

GRID = (0.1, 1.0, 10.0, 100.0, 1000.0)  # values of C that ``C="auto"`` chooses from
ONE_SHOT_C = 10.0  # C if no shot can be held out
SEARCH_TOL = 3e-3  # `tol` while C is chosen: the penalised log-loss is then within about 0.001 of its minimum
COARSE_GRID = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)
"""Values of C that `search_c` starts with, in the order of CoOp's code."""


def search_c(score: Callable[[float], float], steps: int = 8) -> tuple[float, ...]:
    """The search for C of CoOp's released probe, to repeat its figures.

    It starts with one decade on both sides of the best of 1e6, 1e4 ... 1e-6, and halves this interval of log C in each
    step towards its better end. Of equal scores it takes the largest C in the first stage, then the smaller end.

    Args:
        score: function of C, higher is better; in CoOp's code the accuracy on up to four validation shots per class.
        steps: how often the interval is halved.

    Returns:
        The better end at each step. The published results use the last one.

    >>> [round(C, 1) for C in search_c(lambda C: -abs(math.log(C / 30)), steps=4)]
    [10.0, 10.0, 31.6, 31.6]
    """
    cached_score = functools.cache(score)
    middle = math.log10(max(COARSE_GRID, key=cached_score))
    low, high = middle - 1, middle + 1
    better = []
    for _ in range(steps):
        middle = (low + high) / 2
        if cached_score(10**low) >= cached_score(10**high):
            better.append(10**low)
            high = middle
        else:
            better.append(10**high)
            low = middle
    return tuple(better)


@register_head("linear-probe", version=4, paper="https://arxiv.org/abs/2103.00020")
class LinearProbe(LogitAdjustedHead):
    """Multinomial logistic regression by L-BFGS, or one-vs-rest with multi-label images; text is not used.

    A warm start keeps the C of the earlier fit if little has changed, and is then the fit with that C. It does not
    start from the earlier weights, since that saves little: most iterations are spent near the optimum.

    Args:
        C: inverse strength of the L2 penalty, as in scikit-learn. "auto" takes the value of 0.1, 1 ... 1000 with the
            lowest log-loss on held-out shots, and 10 if most classes have one shot. With many classes (above about 130
            x 16 shots x 1024-d) it is chosen on a random part of the classes: C is the prior variance of a weight,
            which does not depend on the number of classes.
        input_norm: True to fit on unit-length features, False on raw ones.
        folds: number of folds for ``C="auto"``.
        max_iter: bound on L-BFGS iterations. Above 3 * 10^10 multiplications of one pass (shots x classes x columns),
            L-BFGS is preconditioned and stops after 8 * 10^12, which may be before the optimum.
        tol: L-BFGS stops when the norm of the gradient is this share of its norm at zero weights; with solver
            "sklearn", when its largest entry is below ``tol``.
        seed: of the folds, and of the part of the classes.
        solver: "torch", or "sklearn" for scikit-learn's LogisticRegression itself, in float64; with multi-label images
            only "torch".

    >>> LinearProbe().fit([[0.0, 1.0], [1.0, 0.0]], ["up", "right"]).predict([[0.1, 2.0]])
    array(['up'], dtype='<U5')

    Fidelity: verified: `LinearProbe.official` with `search_c` gives the values of C and the predictions of CoOp's code
    for linear probes. By default C is chosen on held-out shots, and logits are adjusted for unequal shots.
    """

    multilabel = supports_warm_start = True
    temperature_prior = (0.15, 0.74, 0.67, 0.81, 1.0)
    recipes = {"official": {"input_norm": False, "solver": "sklearn", "tol": 1e-4, "logit_adjustment": 0.0}}
    """The probe of CoOp's released code: raw features, and scikit-learn's solver with its own tolerance. C was searched
    on validation shots: see `search_c`."""

    C: Annotated[float | str, POSITIVE, OneOf("auto")] = "auto"
    input_norm: bool = True
    folds: Annotated[int, at_least(2)] = 3
    max_iter: int = 1000
    tol: float = 1e-3
    seed: int = 0
    solver: Annotated[str, OneOf("torch", "sklearn")] = "torch"

    def _fit(self, shots: SupportSet) -> None:
        X, y = self._input(shots.X), shots.truth
        if shots.targets is not None and self.solver != "torch":
            raise InputError(f"with multi-label images the solver is 'torch', but is {brief(self.solver)}")
        warm_start = find_warm_start(self, shots)
        chosen = self._full_fit if warm_start is None else warm_start.head
        C = self.C if chosen is None else chosen.C_
        with limit_threads(0):
            self.C_ = self._choose_C(X, y) if C == "auto" else float(C)
        if self.solver == "sklearn" and len(shots.labels.unique()) > 1:
            self.weight_, self.bias_ = self._solve_by_sklearn(X, y, shots.n_classes)
        else:
            # In a pass of 20 ms a second thread saves little, and on a busy machine waiting for it costs much.
            with limit_threads(X.numel() * shots.n_classes // 8):
                regression = _make_regression(X, y)
                self.n_iter_ = regression.solve(self.C_, self.tol, self.max_iter)
            self.weight_, self.bias_ = regression.coefficients(shots.n_classes)
        log_prior = self._log_prior(shots.counts) if shots.targets is None else None
        if log_prior is not None:
            # The intercept is not penalised: a fit with these constants has the same weights, and this bias.
            self.bias_ = self.bias_ - torch.where(shots.counts > 0, log_prior, 0)

    def _solve_by_sklearn(self, X: Tensor, labels: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=self.C_, tol=self.tol, max_iter=self.max_iter)
        model.fit(X.double().cpu().numpy(), labels.cpu().numpy())
        self.n_iter_ = int(model.n_iter_.max())
        weight, bias = torch.as_tensor(model.coef_), torch.as_tensor(model.intercept_)
        if len(weight) == 1:  # two classes: scikit-learn has the log-odds of the second class alone
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        classes = torch.as_tensor(model.classes_)
        return (
            X.new_zeros(n_classes, X.shape[1]).index_copy(0, classes, weight.to(X.dtype)),
            X.new_full((n_classes,), ABSENT_LOGIT).index_copy(0, classes, bias.to(X.dtype)),
        )

    def _text_logits(self, X: Tensor) -> Tensor:
        return X.new_zeros(len(X), len(self.weight_))

    def _logits(self, X: Tensor) -> Tensor:
        return self._input(X) @ self.weight_.T.to(X.dtype) + self.bias_.to(X.dtype)

    def _input(self, X: Tensor) -> Tensor:
        return unit(X) if self.input_norm else X

    def _choose_C(self, X: Tensor, y: Tensor) -> float:
        """The C of the grid with the least loss on held-out shots, whose labels (n,) or targets (n, c) are y."""
        if y.ndim == 1:
            rows = subsample(y, X.shape[1], self.seed)
            X, y = X[rows], y[rows].unique(return_inverse=True)[1]
        if not most_classes_repeat(y):
            return ONE_SHOT_C
        if y.ndim == 2 and y.numel() * X.shape[1] > MAX_PASS_COST:  # as many classes, drawn by seed, as are affordable
            y = y[:, some_rows(torch.arange(y.shape[1]), max(8, MAX_PASS_COST // X.numel()), self.seed)]
        n_classes = int(y.max()) + 1 if y.ndim == 1 else y.shape[1]
        splits = make_folds(y, self.folds, self.seed)
        regressions = [_make_regression(X[train], y[train]) for train, _ in splits]
        losses: list[float] = []
        for C in GRID:
            losses.append(0.0)
            for regression, (_, held_out) in zip(regressions, splits, strict=True):
                regression.solve(C, SEARCH_TOL, self.max_iter)  # starts from the solution for the previous C
                weight, bias = regression.coefficients(n_classes)
                logits, truth = X[held_out] @ weight.T + bias, y[held_out]
                loss = (
                    cross_entropy(logits, truth, reduction="sum") if y.ndim == 1 else binary_losses(logits, truth).sum()
                )
                losses[-1] += float(loss)
            if losses[-1] > min(losses):
                break  # the loss has one minimum, and the largest C take longest
        return GRID[losses.index(min(losses))]


def _make_regression(X: Tensor, y: Tensor) -> SoftmaxRegression:
    """For labels (n,) or targets (n, c)."""
    return SoftmaxRegression(X, y) if y.ndim == 1 else OneVsRest(X, y)
