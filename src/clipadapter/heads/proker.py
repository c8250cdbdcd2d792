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
`Proker.official` is phi itself; with ``text_ridge=0.1`` it is what BReg-Adapter's code calls BiReg.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from clipadapter.errors import InputError
from clipadapter.heads.base import NOT_NEGATIVE, POSITIVE, Head, OneOf, SupportSet, register_head
from clipadapter.heads.cache import affinity_
from clipadapter.utils.functional import unit

SHOTS = (1, 2, 4, 8, 16)
BETA = (3.0, 2.6, 1.5, 1.66, 1.7)  # published beta at these shots per class
LAM = (0.05, 0.05, 0.05, 0.07, 0.1)  # published lambda at these shots per class
MAX_ROWS = 16384  # rows up to which the kernel matrix is factorised; it then takes a gigabyte
MAX_FLOAT64_ROWS = 8192  # rows up to which that is done in float64


@register_head("proker", paper="https://arxiv.org/abs/2501.11175")
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

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> X = [[1.0, 0.9, 0.0], [1.0, 1.1, 1.0]]
    >>> Proker().fit(X, ["cat", "dog"], text=text).predict([[1.0, 0.98, 1.0]])
    array(['dog'], dtype='<U3')

    Fidelity: verified: `Proker.official` gives the logits of ProKeR and of BiReg in the code of BReg-Adapter. The code
    of ProKeR's own authors was not used. The default scales text and regression in another way.
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
    views: Annotated[str, OneOf("all", "average", "plain")] = "all"

    def _fit(self, shots: SupportSet) -> None:
        views, text = unit(shots.views), shots.class_text.double()
        if self.views != "all":
            views = unit(views.mean(dim=1, keepdim=True)) if self.views == "average" else views[:, :1]
        rows, labels = views.flatten(0, 1), shots.labels.repeat_interleave(views.shape[1])
        if len(rows) > MAX_ROWS:
            raise InputError(
                f"proker factorises a matrix of all rows, at most {MAX_ROWS}, but {len(shots.labels)} shots with their "
                f"views are {len(rows)} rows: give fewer views or shots, or set views='average'"
            )
        log_shots = np.log2(len(shots.labels) / shots.n_classes)
        beta, lam = (float(np.interp(log_shots, np.log2(SHOTS), table)) for table in (BETA, LAM))
        self.beta_, lam = beta if self.beta is None else self.beta, lam if self.lam is None else self.lam
        self.scale_ = shots.scale if self.text_scale is None else self.text_scale
        support = rows.double() if len(rows) <= MAX_FLOAT64_ROWS else rows.float()
        residual = -(support @ text.to(support.dtype).T)  # Y - S T'
        residual[torch.arange(len(rows)), labels] += 1
        kernel = affinity_(support @ support.T, self.beta_)
        kernel.diagonal().add_(lam)  # (K / lambda + I)^-1 is lambda times the inverse of this
        # Two triangular solves, since ``cholesky_solve`` copies the factor.
        root = torch.linalg.cholesky(kernel)
        half = torch.linalg.solve_triangular(root, residual, upper=False)
        dual = torch.linalg.solve_triangular(root.T, half, upper=True).double()
        if self.text_ridge is not None:  # projected onto the text: R T (T' T + gamma I)^-1 T'
            gram = text @ text.T
            dual = dual @ torch.linalg.solve(gram + self.text_ridge * torch.eye(len(gram), dtype=gram.dtype), gram)
        height = lam * self.scale_ if self.height is None else self.height
        self.support_, self.weight_ = support.to(rows.dtype), text.to(rows.dtype)
        self.dual_ = (height * dual).to(rows.dtype).contiguous()

    def _text_logits(self, X: Tensor) -> Tensor:
        return self.scale_ * unit(X) @ self.weight_.to(X.dtype).T

    def _logits(self, X: Tensor) -> Tensor:
        votes = affinity_(unit(X) @ self.support_.to(X.dtype).T, self.beta_) @ self.dual_.to(X.dtype)
        return self._text_logits(X) + votes
