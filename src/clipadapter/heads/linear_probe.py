"""Linear probe: logistic regression on frozen picture features.

Paper: Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020, section 3.2.
Differs from the papers' protocols: C is chosen on held-out shots, never on a validation set.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from clipadapter.functional import unit
from clipadapter.heads._base import Head, Shots
from clipadapter.heads._folds import held_out_folds
from clipadapter.heads._registry import register_head

GRID = (0.1, 1.0, 10.0, 100.0, 1000.0)
ONE_SHOT = 10.0
ABSENT = -1e4
"""Logit of a class without a shot: finite, so that it can be saved, and never the best."""


@register_head("linear-probe", paper="https://arxiv.org/abs/2103.00020")
class LinearProbe(Head):
    """Multinomial logistic regression by L-BFGS; class text is not used.

    Args:
        C: inverse strength of the L2 penalty, as in scikit-learn; "auto" takes the value of 0.1, 1 ... 1000 with the
            lowest log-loss on held-out shots, and 10 if no class has two.
        input_norm: True to fit on unit-length features, False on raw ones.
        folds: number of folds for ``C="auto"``.
        max_iter: bound on L-BFGS iterations.
        seed: of the folds.

    >>> LinearProbe().fit([[0.0, 1.0], [1.0, 0.0]], ["up", "right"]).predict([[0.1, 2.0]])
    array(['up'], dtype='<U5')
    """

    def __init__(
        self,
        C: float | str = "auto",
        input_norm: bool = True,
        folds: int = 3,
        max_iter: int = 1000,
        seed: int = 0,
    ) -> None:
        self.C = C
        self.input_norm = input_norm
        self.folds = folds
        self.max_iter = max_iter
        self.seed = seed

    def _fit(self, shots: Shots) -> None:
        X = self._input(shots.X).double()
        # With fewer shots than features the solution lies in the span of the shots: rotating into it changes nothing.
        basis = torch.linalg.qr(X.T).Q if len(X) < X.shape[1] else torch.eye(X.shape[1], dtype=X.dtype)
        rows, labels = (X @ basis).numpy(), shots.labels
        self.C_ = self._choose(rows, labels) if self.C == "auto" else float(self.C)
        weight, bias, self.n_iter_ = self._regress(rows, labels.numpy(), self.C_, shots.n_classes)
        self.weight_ = (torch.from_numpy(weight) @ basis.T).to(shots.X.dtype)
        self.bias_ = torch.from_numpy(bias).to(shots.X.dtype)

    def _logits(self, X: Tensor) -> Tensor:
        return self._input(X) @ self.weight_.T.to(X.dtype) + self.bias_.to(X.dtype)

    def _input(self, X: Tensor) -> Tensor:
        return unit(X) if self.input_norm else X

    def _choose(self, X: NDArray[np.float64], labels: Tensor) -> float:
        splits = held_out_folds(labels, self.folds, self.seed)
        if not splits:
            return ONE_SHOT
        c = int(labels.max()) + 1
        losses = np.zeros(len(GRID))
        for train, held in splits:
            target = labels[held]
            for i, C in enumerate(GRID):
                weight, bias, _ = self._regress(X[train.numpy()], labels[train].numpy(), C, c)
                logits = torch.from_numpy(X[held.numpy()] @ weight.T + bias)
                losses[i] += float(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))
        return GRID[int(losses.argmin())]

    def _regress(
        self, X: NDArray[np.float64], labels: NDArray[np.int64], C: float, n_classes: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
        """Weight (c, d), bias (c,) and iterations; float64, since L-BFGS works in the precision it is given."""
        model = LogisticRegression(C=C, max_iter=self.max_iter)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.simplefilter("ignore", UserWarning)  # one shot a class looks like regression to scikit-learn
            model.fit(X, labels)
        coef, intercept, seen = model.coef_, model.intercept_, model.classes_
        if len(seen) == 2:  # scikit-learn stores one row for two classes: the difference of their logits
            coef, intercept = np.vstack([-coef / 2, coef / 2]), np.hstack([-intercept / 2, intercept / 2])
        weight, bias = np.zeros((n_classes, X.shape[1])), np.full(n_classes, ABSENT)
        weight[seen], bias[seen] = coef, intercept
        return weight, bias, int(max(model.n_iter_))
