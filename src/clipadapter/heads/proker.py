"""ProKeR: zero-shot CLIP plus a kernel ridge regression of its residuals on the shots.

Paper: Bendou et al., CVPR 2025, https://arxiv.org/abs/2501.11175. With S the shots, Y their one-hot labels, T the class
text and k(x, z) = exp(-beta (1 - cos(x, z))), all of unit length:

    phi(x) = x T' + k(x, S) A,    A = (K / lambda + I)^-1 (Y - S T')

where k(x, S) A is lambda times a ridge regression with ridge lambda. So lambda sets both ridge and scale.
With a text ridge gamma the residual is also projected onto the text, as in BReg-Adapter: A T (T' T + gamma I)^-1 T' in
place of A.
Differs from the paper:
- beta and lambda, published for 1, 2, 4, 8 and 16 shots, are interpolated in between.
- Logits are text at the encoder's scale plus a regression of one fixed scale, the height.
- Many rows are solved for by the Nystroem method.
`Proker.official` is phi itself; with ``text_ridge=0.1`` it is what BReg-Adapter's code calls BiReg.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from clipadapter.heads.base import Head, SupportSet
from clipadapter.heads.cache import affinity_
from clipadapter.heads.parameters import NOT_NEGATIVE, POSITIVE, OneOf
from clipadapter.heads.registry import register_head
from clipadapter.utils.functional import unit

SHOTS = (1, 2, 4, 8, 16)
BETA = (3.0, 2.6, 1.5, 1.66, 1.7)
"""Published beta at these shots per class."""
LAM = (0.05, 0.05, 0.05, 0.07, 0.1)
"""Published lambda at these shots per class."""
MAX_EXACT_ROWS = 16384
"""Rows up to which the whole kernel matrix is factorised; it then takes a gigabyte."""
MAX_FLOAT64_ROWS = 8192
"""Rows up to which that is done in float64."""
ROWS_PER_BLOCK = 2048
"""Rows that the Nystroem method compares with the landmarks at a time."""
VIEWS = ("all", "average", "plain")


@register_head(
    "proker",
    paper="https://arxiv.org/abs/2501.11175",
    fidelity="verified: `Proker.official` gives the logits of ProKeR and of BiReg in the code of BReg-Adapter. The "
    "code of ProKeR's own authors was not used. The default scales text and regression in another way.",
)
@dataclass(eq=False, repr=False, kw_only=True)
class Proker(Head):
    """Kernel ridge regression of the zero-shot residual, in closed form.

    Args:
        beta: sharpness of the kernel; None for the published value, interpolated over log2 of the mean number of shots
            per class.
        lam: lambda; None as for ``beta``.
        height: factor of the ridge regression, in logits; None for lambda times ``text_scale``, as published, which is
            5 at one shot and 10 at sixteen with CLIP's scale. Towards 0 the head is zero-shot.
        text_scale: factor of the cosines to class text; None for the encoder's logit scale.
        text_ridge: gamma of BReg-Adapter, 0.1 in its release; None for no projection.
        views: rows to fit to: "all" views, their "average", or the "plain" one.
        landmarks: rows that span the solution where there are more than 16384 rows (Nystroem method), drawn at random
            and equally from the classes; fewer rows are solved for exactly.
        seed: of the draw of landmarks.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> X = [[1.0, 0.9, 0.0], [1.0, 1.1, 1.0]]
    >>> Proker().fit(X, ["cat", "dog"], text=text).predict([[1.0, 0.98, 1.0]])
    array(['dog'], dtype='<U3')
    """

    needs_text = True
    picture_features = ("support_",)
    temperature_prior = (1.0, 1.1, 1.2, 1.3, 1.8)
    recipes = {"official": {"height": None, "text_scale": 1.0}}
    """The released recipe: phi itself, not scaled."""

    beta: Annotated[float | None, NOT_NEGATIVE] = None
    lam: Annotated[float | None, POSITIVE] = None
    height: float | None = 10.0
    text_scale: float | None = None
    text_ridge: Annotated[float | None, POSITIVE] = None
    views: Annotated[str, OneOf(*VIEWS)] = "all"
    landmarks: Annotated[int, POSITIVE] = 2048
    seed: int = 0

    def _fit(self, shots: SupportSet) -> None:
        rows, labels, text = self._rows(shots)
        self.beta_, lam = self._values(len(shots.labels), shots.n_classes)
        if len(rows) <= MAX_EXACT_ROWS:
            support = rows.double() if len(rows) <= MAX_FLOAT64_ROWS else rows.float()
            root = torch.linalg.cholesky(_regularised_kernel(support, self.beta_, lam))
            dual = _solve(root, _residual(support, labels, text.to(support.dtype))).double()
        else:
            chosen = _draw_landmarks(labels, self.landmarks, self.seed)
            support, dual = _nystroem(rows, labels, text, rows[chosen].double(), self.beta_, lam)
        self.support_ = support.to(rows.dtype)
        self.weight_, self.scale_ = text.to(rows.dtype), self._scale(shots)
        self.dual_ = (self._height(lam, shots) * self._project(dual, text)).to(rows.dtype).contiguous()

    def _text_logits(self, X: Tensor) -> Tensor:
        return self.scale_ * unit(X) @ self.weight_.to(X.dtype).T

    def _logits(self, X: Tensor) -> Tensor:
        support, dual, weight = (t.to(X.dtype) for t in (self.support_, self.dual_, self.weight_))
        x = unit(X)
        return self.scale_ * x @ weight.T + _kernel(x, support, self.beta_) @ dual

    def _rows(self, shots: SupportSet) -> tuple[Tensor, Tensor, Tensor]:
        """Unit rows to fit to, with the views of a shot next to each other, their labels, and text in float64."""
        views = unit(shots.views)
        if self.views != "all":
            views = unit(views.mean(dim=1, keepdim=True)) if self.views == "average" else views[:, :1]
        return views.flatten(0, 1), shots.labels.repeat_interleave(views.shape[1]), shots.class_text.double()

    def _values(self, n: int, c: int) -> tuple[float, float]:
        """Beta and lambda for n shots of c classes."""
        beta, lam = (float(np.interp(np.log2(n / c), np.log2(SHOTS), table)) for table in (BETA, LAM))
        return beta if self.beta is None else self.beta, lam if self.lam is None else self.lam

    def _scale(self, shots: SupportSet) -> float:
        return shots.scale if self.text_scale is None else self.text_scale

    def _height(self, lam: float, shots: SupportSet) -> float:
        return lam * self._scale(shots) if self.height is None else self.height

    def _project(self, residual: Tensor, text: Tensor) -> Tensor:
        """(..., c) residuals R projected onto the text, R T (T' T + gamma I)^-1 T', if there is a text ridge."""
        if self.text_ridge is None:
            return residual
        gram = text @ text.T
        return residual @ torch.linalg.solve(gram + self.text_ridge * torch.eye(len(gram), dtype=gram.dtype), gram)


def _kernel(a: Tensor, b: Tensor, beta: float) -> Tensor:
    """Kernel matrix (p, q) of unit rows (p, d) and (q, d)."""
    return affinity_(a @ b.T, beta)


def _regularised_kernel(rows: Tensor, beta: float, lam: float) -> Tensor:
    """K + lambda I; (K / lambda + I)^-1 is lambda times its inverse."""
    matrix = _kernel(rows, rows, beta)
    matrix.diagonal().add_(lam)
    return matrix


def _residual(rows: Tensor, labels: Tensor, text: Tensor) -> Tensor:
    """Y - S T', (rows, c)."""
    residual = -(rows @ text.T)
    residual[torch.arange(len(rows)), labels] += 1
    return residual


def _solve(root: Tensor, right: Tensor) -> Tensor:
    """Solve with a Cholesky factor by two triangular solves, since ``cholesky_solve`` copies the factor."""
    half = torch.linalg.solve_triangular(root, right, upper=False)
    return torch.linalg.solve_triangular(root.T, half, upper=True)


def _draw_landmarks(labels: Tensor, n_landmarks: int, seed: int) -> Tensor:
    """Row numbers: a first random row of every class, then a second, and so on."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]  # class by class, random within
    counts = torch.bincount(labels)
    rank_in_class = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    return order[rank_in_class.argsort(stable=True)][:n_landmarks]


def _nystroem(
    rows: Tensor, labels: Tensor, text: Tensor, landmarks: Tensor, beta: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Ridge regression whose solution is in the span of the landmarks, from one block of rows at a time."""
    matrix = lam * _kernel(landmarks, landmarks, beta)
    right = torch.zeros(len(landmarks), len(text), dtype=torch.float64)
    for block, own in zip(rows.split(ROWS_PER_BLOCK), labels.split(ROWS_PER_BLOCK), strict=True):
        kernel = _kernel(block.double(), landmarks, beta)
        matrix.addmm_(kernel.T, kernel)
        right.addmm_(kernel.T, _residual(block.double(), own, text))
    # Equal landmarks make the matrix singular; this jitter is far below its smallest useful eigenvalue.
    matrix.diagonal().add_(1e-12 * float(matrix.diagonal().sum()))
    return landmarks, _solve(torch.linalg.cholesky(matrix), right)
