"""RAIL: recursive ridge regression on frozen random features, added to zero-shot CLIP.

Paper: Xu et al., NeurIPS 2024, https://arxiv.org/abs/2406.18868. With phi the features, Phi those of the shots and Y
their one-hot labels,

    primal   phi(x) = ReLU(R x),  r(x) = phi(x) (Phi' Phi + lambda I)^-1 Phi' Y
    dual     r(x) = k(x, S) (K + lambda I)^-1 Y,   k(x, z) = exp(-gamma |x - z|^2)

for x of unit length and a frozen random R. Classes without a shot have zeros in r. With p the zero-shot probabilities
of all classes, the fused score is (1 - w) p + w r where the best class of p has shots, else p. So images of classes
without shots are left to zero-shot.

Differs from the paper:
- The primal form keeps the shots as long as they are fewer than the numbers in phi, and solves the smaller system with
  Phi Phi'. From there on it keeps the sums Phi' Phi and Phi' Y, whose size is fixed. The paper's
  recursion of the inverse gives the same result. Sums also allow shots to be removed, and do not accumulate rounding.
- By default phi are the features themselves. 15000 random ones, as published, were within 0.6 points of them: 74.8 81.4
  86.4 89.1 % without and 75.4 81.4 86.7 89.4 with them, at 1, 2, 4 and 8 shots of 100 classes of Caltech-101's training
  part under ``lite``; 84.5 89.2 92.4 93.5 and 84.8 89.6 92.8 93.1 of 30 classes; equal on Food-101 with 1 to 64 shots.
  They take ten times the memory and sixty times the time; 2048 and 4096 were not better.
- Views of a shot are averaged.
- Logits are the logarithm of the fused score. Below 0.1 the logarithm is continued as a line, since r can be negative;
  the order of the classes stays. Of 0.0003 to 0.3 and a linear logit, 0.1 had the lowest log-loss at the best
  temperature.
"""

from __future__ import annotations

import math
from dataclasses import field
from functools import lru_cache
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from clipadapter.heads.base import NOT_NEGATIVE, POSITIVE, OneOf, SupportSet, Within, register_head
from clipadapter.heads.incremental import (
    ExactIncrementalHead,
    find_remaining_rows,
    pack_lower_triangle,
    unpack_lower_triangle,
)
from clipadapter.heads.support import remap_labels, remap_rows
from clipadapter.utils.functional import cosine_logits, solve_ridge, unit

RIDGE = {"primal": 0.1, "dual": 0.001}  # published lambda of each form
MIN_LOG_SCORE = 0.1  # fused score below which the logarithm is continued as a line
BLOCK = 1024  # rows, or columns, converted to float64 at a time


@register_head("rail", paper="https://arxiv.org/abs/2406.18868", compare=False)
class Rail(ExactIncrementalHead):
    """Recursive ridge regression in closed form; classes without shots are left to zero-shot.

    Args:
        form: "primal", whose memory is bounded, or "dual", a kernel regression that keeps all shots.
        hidden: number of random features of the primal form, 15000 as published; 0 for the features themselves.
        ridge: lambda; None for 0.1 in the primal and 0.001 in the dual form, as published.
        gamma: sharpness of the dual form's kernel.
        weight: w of the regression, 0 (zero-shot) to 1.
        seed: of the random features.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> head = Rail().fit([[1.0, 0.9, 0.0]], ["cat"], text=text)
    >>> head.partial_fit([[1.0, 1.1, 1.0]], ["dog"], text=text).predict([[1.0, 0.98, 1.0]])
    array(['dog'], dtype='<U3')

    Fidelity: verified: The regression and the answers are those of the authors' code after each task. By default there
    is no random expansion of the features.
    """

    needs_text = True
    picture_features = ("kept_",)
    temperature_prior = (0.26, 0.27, 0.29, 0.32, 0.39)
    recipes = {"official": {"hidden": 15000}}
    """The published random features. With more shots they take gigabytes, and minutes per update."""

    kept_: Tensor = field(init=False)
    """(n, d) unit features of the shots, in the dual form, and in the primal form while there are few."""
    labels_: Tensor = field(init=False)  # (n,) their class positions
    products_: Tensor = field(init=False)  # Phi' Phi once there are many shots: packed lower triangle, float64
    sums_: Tensor = field(init=False)  # (width, c) Phi' Y, once there are many shots
    weight_: Tensor = field(init=False)  # (width, c) primal; (n, c) dual

    form: Annotated[str, OneOf(*RIDGE)] = "primal"
    hidden: Annotated[int, NOT_NEGATIVE] = 0
    ridge: Annotated[float | None, POSITIVE] = None
    gamma: Annotated[float, NOT_NEGATIVE] = 0.1
    weight: Annotated[float, Within(0, 1)] = 0.8
    seed: int = 0

    def _logits(self, X: Tensor) -> Tensor:
        fused = self._fused(X)
        below = math.log(MIN_LOG_SCORE) + (fused - MIN_LOG_SCORE) / MIN_LOG_SCORE
        return torch.where(fused > MIN_LOG_SCORE, fused.clamp_min(MIN_LOG_SCORE).log(), below)

    def _fused(self, X: Tensor) -> Tensor:
        """The paper's fused score (m, c): weighted zero-shot probabilities and r."""
        zero_shot = cosine_logits(X, self.text_.to(X.dtype), self.scale_).softmax(dim=1)
        learned = (self.counts_ > 0)[zero_shot.argmax(dim=1)]
        fused = (1 - self.weight) * zero_shot + self.weight * self._regressed(X)
        return torch.where(learned[:, None], fused, zero_shot)

    def _regressed(self, X: Tensor) -> Tensor:
        if self.form == "primal":
            return self._phi(unit(X)) @ self.weight_.to(X.dtype)
        # The terms are hundreds of times as large as their sum: float32 would leave three digits of it.
        return (self._kernel(unit(X.double()), self.kept_.double()) @ self.weight_).to(X.dtype)

    def _numbers_per_row(self) -> int:
        shots = len(self.weight_) if self.form == "dual" else 0
        return self.read_width + len(self.classes_) + self.hidden + shots

    def _init_sums(self, shots: SupportSet) -> None:
        for name in ("products_", "sums_"):
            self.__dict__.pop(name, None)
        self.kept_, self.labels_ = shots.views.new_zeros(0, shots.views.shape[2]), shots.labels[:0]
        self.weight_ = shots.views.new_zeros(0, shots.n_classes)

    def _update_sums(self, shots: SupportSet, sign: int) -> None:
        rows, labels = unit(unit(shots.views).mean(dim=1)), shots.labels
        if self._stores_shots and sign < 0:
            remaining = find_remaining_rows(self.kept_, self.labels_, rows, labels)
            self.kept_, self.labels_ = self.kept_[remaining], self.labels_[remaining]
        elif self._stores_shots:
            self.kept_ = torch.cat([self.kept_, rows.to(self.kept_.dtype)])
            self.labels_ = torch.cat([self.labels_, labels])
        else:
            self._add_to_sums(rows, labels, sign)
        width = self._n_random or self.read_width
        if self._stores_shots and self.form == "primal" and len(self.kept_) > width:
            rows, labels = self.kept_, self.labels_  # from here on the sums are kept, and no shots
            del self.kept_, self.labels_
            self.products_ = torch.zeros(width * (width + 1) // 2, dtype=torch.float64)
            self.sums_ = torch.zeros(width, shots.n_classes, dtype=torch.float64)
            self._add_to_sums(rows, labels, 1)
        self._set_weight(shots.n_classes)

    def _remap_sums(self, origin: Tensor) -> None:
        if not self._stores_shots:
            self.sums_ = remap_rows(self.sums_.T, origin).T
        else:
            self.labels_ = remap_labels(self.labels_, origin)
        self.weight_ = remap_rows(self.weight_.T, origin).T.contiguous()

    def _solve_from_sums(self, text: Tensor | None, scale: float) -> None:
        assert text is not None
        self.text_, self.scale_ = text, scale

    def _add_to_sums(self, rows: Tensor, labels: Tensor, sign: int) -> None:
        """Add rows (n, d) to Phi' Phi and Phi' Y, or subtract them."""
        products, sums = unpack_lower_triangle(self.products_), self.sums_.clone()
        for block, own in zip(rows.split(BLOCK), labels.split(BLOCK), strict=True):
            phi = self._phi(block).double()
            products.addmm_(phi.T, phi, alpha=sign)
            sums.index_add_(1, own, phi.T, alpha=sign)
        self.products_, self.sums_ = pack_lower_triangle(products), sums

    def _set_weight(self, c: int) -> None:
        """Solve for the weight of c classes."""
        dtype, ridge = self.weight_.dtype, RIDGE[self.form] if self.ridge is None else self.ridge
        if not self._stores_shots:
            self.weight_ = solve_ridge(unpack_lower_triangle(self.products_), self.sums_, ridge).to(dtype).contiguous()
            return
        targets = torch.nn.functional.one_hot(self.labels_, c).double()
        if self.form == "dual":
            kept = self.kept_.double()
            self.weight_ = solve_ridge(self._kernel(kept, kept), targets, ridge).contiguous()
        else:
            phi = self._phi(self.kept_)
            self.weight_ = _product(phi.T, solve_ridge(_product(phi, phi), targets, ridge).T).to(dtype)

    def _phi(self, rows: Tensor) -> Tensor:
        """(n, width) features of unit rows."""
        if not self._n_random:
            return rows
        return (rows @ random_map(self.hidden, self.read_width, self.seed).to(rows.dtype).T).relu_()

    def _kernel(self, a: Tensor, b: Tensor) -> Tensor:
        """(p, d) and (q, d) unit rows to (p, q)."""
        return (-2 * self.gamma * (1 - a @ b.T)).exp()

    @property
    def _stores_shots(self) -> bool:
        """Whether the shots are stored instead of the sums."""
        return "kept_" in vars(self)

    @property
    def _n_random(self) -> int:
        """Number of random features; 0 for the features themselves."""
        return self.hidden if self.form == "primal" else 0


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Product a b' of (p, w) and (q, w) in float64, a block of columns at a time to save memory."""
    product = torch.zeros(len(a), len(b), dtype=torch.float64)
    for left, right in zip(a.split(BLOCK, dim=1), b.split(BLOCK, dim=1), strict=True):
        product.addmm_(left.double(), right.double().T)
    return product


@lru_cache(maxsize=2)
def random_map(hidden: int, d: int, seed: int) -> Tensor:
    """A random linear map (hidden, d), uniform between plus and minus one over the root of d; it must not be changed.

    It is the same on every machine and with every version, so that it is not saved with the model. numpy guarantees the
    raw stream of PCG64 to stay the same, but not the streams of its distributions.

    >>> random_map(2, 3, seed=0)
    tensor([[ 0.1581, -0.2658, -0.5300],
            [-0.5583,  0.3617,  0.4766]])
    """
    raw = np.random.PCG64(seed).random_raw(hidden * d).reshape(hidden, d)
    raw >>= np.uint64(40)  # 24 bits are exact in float32
    uniform = raw.astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    return torch.as_tensor(uniform * np.float32(d**-0.5))
