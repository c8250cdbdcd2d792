"""Linear probe: logistic regression on frozen picture features.

Paper: Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020, section 3.2.
Differs from the papers' protocols: C is chosen on held-out shots, never on a validation set. The optimum is that of
scikit-learn's LogisticRegression, on the way to it are torch's L-BFGS and a better start.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipadapter.functional import unit
from clipadapter.heads._base import Head, Shots
from clipadapter.heads._folds import held_out_folds, most_can_be_held_out
from clipadapter.heads._registry import register_head
from clipadapter.heads._regression import Regression, affordable
from clipadapter.heads._training import few_threads

GRID = (0.1, 1.0, 10.0, 100.0, 1000.0)
ONE_SHOT = 10.0
ROUGH = 3e-3
"""`tol` while C is chosen: the penalised log-loss is then within about 0.001 of its end."""


@register_head("linear-probe", paper="https://arxiv.org/abs/2103.00020")
class LinearProbe(Head):
    """Multinomial logistic regression by L-BFGS; class text is not used.

    Args:
        C: inverse strength of the L2 penalty, as in scikit-learn; "auto" takes the value of 0.1, 1 ... 1000 with the
            lowest log-loss on held-out shots, and 10 if most classes have one. With many classes (above about 130 x 16
            shots x 1024-d) it is chosen on some of the classes, drawn by ``seed``: as the variance that the penalty
            allows a weight, it does not depend on how many there are.
        input_norm: True to fit on unit-length features, False on raw ones.
        folds: number of folds for ``C="auto"``.
        max_iter: bound on L-BFGS iterations.
        tol: L-BFGS stops when the norm of the gradient has fallen to this share of that at zero weights.
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
        tol: float = 1e-3,
        seed: int = 0,
    ) -> None:
        self.C = C
        self.input_norm = input_norm
        self.folds = folds
        self.max_iter = max_iter
        self.tol = tol
        self.seed = seed

    def _fit(self, shots: Shots) -> None:
        X, labels = self._input(shots.X), shots.labels
        # With fewer shots than features the solution lies in the span of the shots: rotating into it changes nothing.
        basis = torch.linalg.qr(X.T).Q if len(X) < X.shape[1] else None
        rows = X if basis is None else X @ basis
        with few_threads(0):
            self.C_ = self._choose(rows, labels) if self.C == "auto" else float(self.C)
        # A second thread saves little in a pass of 20 ms, and waiting for it beside other programs costs much.
        with few_threads(rows.numel() * shots.n_classes // 8):
            regression = Regression(rows, labels)
            self.n_iter_ = regression.solve(self.C_, self.tol, self.max_iter)
        weight, bias = regression.answer(shots.n_classes)
        self.weight_, self.bias_ = weight if basis is None else weight @ basis.T, bias

    def _logits(self, X: Tensor) -> Tensor:
        return self._input(X) @ self.weight_.T.to(X.dtype) + self.bias_.to(X.dtype)

    def _input(self, X: Tensor) -> Tensor:
        return unit(X) if self.input_norm else X

    def _choose(self, X: Tensor, labels: Tensor) -> float:
        kept = affordable(labels, X.shape[1], self.seed)
        X, labels = X[kept], labels[kept].unique(return_inverse=True)[1]
        splits = held_out_folds(labels, self.folds, self.seed)
        if not most_can_be_held_out(labels):
            return ONE_SHOT
        regressions = [Regression(X[train], labels[train]) for train, _ in splits]
        losses: list[float] = []
        for C in GRID:
            losses.append(0.0)
            for regression, (_, held) in zip(regressions, splits, strict=True):
                regression.solve(C, ROUGH, self.max_iter)  # starts where the C before ended
                weight, bias = regression.answer(int(labels.max()) + 1)
                logits = X[held] @ weight.T + bias
                losses[-1] += float(torch.nn.functional.cross_entropy(logits, labels[held], reduction="sum"))
            if losses[-1] > min(losses):
                break  # the loss has one valley, and the largest C take longest
        return GRID[losses.index(min(losses))]
