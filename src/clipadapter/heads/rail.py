"""RAIL: ridge regression on frozen random features, exact however shots come, beside zero-shot CLIP.

Paper: Xu et al., NeurIPS 2024, https://arxiv.org/abs/2406.18868. With phi the features, Phi those of the shots and Y
their one-hot labels,

    primal   phi(x) = ReLU(R x),  r(x) = phi(x) (Phi' Phi + lambda I)^-1 Phi' Y
    dual     r(x) = k(x, S) (K + lambda I)^-1 Y,   k(x, z) = exp(-gamma |x - z|^2)

for x of unit length and a frozen random R. Classes without a shot have zeros in r. With p the zero-shot probabilities
of all classes, the answer is (1 - w) p + w r where the best class of p has shots, else p: what was not learned is left
to zero-shot.

Differs from the paper:
- primal keeps the shots' features as long as they are fewer than phi has numbers, and solves by the smaller Phi Phi'.
  From there on it keeps the sums Phi' Phi and Phi' Y alone, and no longer grows. The paper's recursion of the inverse
  gives the same; sums also let shots go, and rounding does not add up in them.
- by default phi are the features themselves. 15000 random ones, as published, were within 0.6 points of them either
  way: 74.8 81.4 86.4 89.1 % without and 75.4 81.4 86.7 89.4 with them, at 1, 2, 4 and 8 shots of 100 classes of
  Caltech-101's training part under ``lite``; 84.5 89.2 92.4 93.5 and 84.8 89.6 92.8 93.1 of 30 classes; alike on
  Food-101 with 1 to 64 shots. They take ten times the memory and sixty times the time; 2048 and 4096 were not better.
- views of a shot are averaged.
- logits are the logarithm of the answer, continued as a line below 0.1, since r can be negative: classes keep their
  order. Of 0.0003 to 0.3 and a linear logit, 0.1 was best by log-loss at the best temperature.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.functional import cosine_logits, unit
from clipadapter.heads._base import SupportSet
from clipadapter.heads._inputs import Array
from clipadapter.heads._kept_rows import without
from clipadapter.heads._registry import register_head
from clipadapter.heads._streaming import Exact
from clipadapter.heads._triangle import packed, unpacked
from clipadapter.heads._warm import carried
from clipadapter.heads.cache import check_not_negative

RIDGE = {"primal": 0.1, "dual": 0.001}
LOWEST = 0.1
BLOCK = 1024


@register_head(
    "rail",
    paper="https://arxiv.org/abs/2406.18868",
    compare=False,
    fidelity="verified: The regression and the answers are those of the authors' code after each task. By default "
    "there is no random expansion of the features.",
)
class Rail(Exact):
    """Recursive ridge regression, in closed form, that leaves classes without shots to zero-shot.

    Args:
        form: "primal", whose memory is bounded, or "dual", which keeps all shots and compares with them.
        hidden: random features of the primal form, 15000 as published; 0 for the features themselves.
        ridge: lambda; None for 0.1 in the primal and 0.001 in the dual form, as published.
        gamma: sharpness of the dual form's kernel.
        weight: w of the regression beside zero-shot, 0 to 1.
        seed: of the random features.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> head = Rail().fit([[1.0, 0.9, 0.0]], ["cat"], text=text)
    >>> head.partial_fit([[1.0, 1.1, 1.0]], ["dog"], text=text).predict([[1.0, 0.98, 1.0]])
    array(['dog'], dtype='<U3')
    """

    needs_text = True
    usual_temperatures = (0.26, 0.27, 0.29, 0.32, 0.39)

    kept_: Tensor
    """(n, d) unit features of the shots, while there are few."""
    labels_: Tensor
    """(n,) their classes."""
    products_: Tensor
    """Phi Phi' of random features while there are few shots, then Phi' Phi; packed, float64."""
    sums_: Tensor
    """(width, c) Phi' Y, once shots are many."""
    weight_: Tensor
    """(width, c) primal; (n, c) dual."""

    def __init__(
        self,
        form: str = "primal",
        hidden: int = 0,
        ridge: float | None = None,
        gamma: float = 0.1,
        weight: float = 0.8,
        seed: int = 0,
    ) -> None:
        self.form = form
        self.hidden = hidden
        self.ridge = ridge
        self.gamma = gamma
        self.weight = weight
        self.seed = seed

    @classmethod
    def official(cls, **changes: Any) -> Self:
        """The published values; 15000 random features. Beyond as many shots it takes gigabytes, and minutes a change.

        Args:
            changes: parameters to set otherwise.
        """
        return cls(**{"hidden": 15000, **changes})

    def regressed(self, X: ArrayLike) -> Array:
        """What the regression says, r (m, c), for X (m, d) raw features."""
        return self._by_block(X, lambda found: found, self._regressed)

    def fused(self, X: ArrayLike) -> Array:
        """The paper's answer, (m, c), for X (m, d) raw features: zero-shot probabilities and r, weighed."""
        return self._by_block(X, lambda found: found, self._fused)

    def _logits(self, X: Tensor) -> Tensor:
        fused = self._fused(X)
        below = math.log(LOWEST) + (fused - LOWEST) / LOWEST
        return torch.where(fused > LOWEST, fused.clamp_min(LOWEST).log(), below)

    def _fused(self, X: Tensor) -> Tensor:
        zero_shot = cosine_logits(X, self.text_.to(X.dtype), self.scale_).softmax(dim=1)
        learned = (self.counts_ > 0)[zero_shot.argmax(dim=1)]
        both = (1 - self.weight) * zero_shot + self.weight * self._regressed(X)
        return torch.where(learned[:, None], both, zero_shot)

    def _regressed(self, X: Tensor) -> Tensor:
        if self.form == "primal":
            return self._phi(unit(X)) @ self.weight_.to(X.dtype)
        # What is added up is hundreds of times as large as the sum, so float32 would leave three digits of it.
        return (self._kernel(unit(X.double()), self.kept_.double()) @ self.weight_).to(X.dtype)

    def _numbers_per_row(self) -> int:
        shots = len(self.weight_) if self.form == "dual" else 0
        return self.n_features_in_ + len(self.classes_) + self.hidden + shots

    def _clear(self, shots: SupportSet) -> None:
        self._check()
        for name in ("products_", "sums_"):
            self.__dict__.pop(name, None)
        self.kept_, self.labels_ = shots.views.new_zeros(0, shots.views.shape[2]), shots.labels[:0]
        if self._random:
            self.products_ = torch.zeros(0, dtype=torch.float64)
        self.weight_ = shots.views.new_zeros(0, shots.n_classes)

    def _gather(self, shots: SupportSet, sign: int) -> None:
        rows, labels = unit(unit(shots.views).mean(dim=1)), shots.labels
        phi = products = None
        if not self._keeps:
            products = self._sum(rows, labels, sign)
        elif sign < 0:
            self._let_go(rows, labels)
        elif self.form == "primal" and len(self.kept_) + len(rows) > self._width:
            self._keep_sums(shots.n_classes)
            products = self._sum(rows, labels, 1)
        else:
            phi = self._take(rows.to(self.kept_.dtype), labels)
        self._solve(shots.n_classes, phi, products)

    def _arrange(self, origin: Tensor) -> None:
        if not self._keeps:
            self.sums_ = carried(self.sums_.T, origin).T
        else:
            place = torch.full((self.weight_.shape[1],), -1)
            place[origin[origin >= 0]] = torch.nonzero(origin >= 0).flatten()
            self.labels_ = place[self.labels_]
        self.weight_ = carried(self.weight_.T, origin).T.contiguous()

    def _settle(self, text: Tensor | None, scale: float) -> None:
        assert text is not None
        self.text_, self.scale_ = text, scale

    def _keep_sums(self, c: int) -> None:
        """Sums in place of the shots that are kept."""
        rows, labels = self.kept_, self.labels_
        del self.kept_, self.labels_
        self.products_ = torch.zeros(self._width * (self._width + 1) // 2, dtype=torch.float64)
        self.sums_ = torch.zeros(self._width, c, dtype=torch.float64)
        self._sum(rows, labels, 1)

    def _sum(self, rows: Tensor, labels: Tensor, sign: int) -> Tensor:
        """Add rows (n, d) to Phi' Phi and Phi' Y, or take them out; gives Phi' Phi, of which the lower half counts."""
        products, sums = unpacked(self.products_), self.sums_.clone()
        for block, own in zip(rows.split(BLOCK), labels.split(BLOCK), strict=True):
            phi = self._phi(block).double()
            products.addmm_(phi.T, phi, alpha=sign)
            sums.index_add_(1, own, phi.T, alpha=sign)
        self.products_, self.sums_ = packed(products), sums
        return products

    def _take(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Keep more rows (n, d); gives phi of all that are kept then."""
        self.kept_, self.labels_ = torch.cat([self.kept_, rows]), torch.cat([self.labels_, labels])
        phi = self._phi(self.kept_)
        if self._random:
            below = torch.ones(len(rows), len(phi), dtype=torch.bool).tril_(len(phi) - len(rows))
            self.products_ = torch.cat([self.products_, _product(phi[-len(rows) :], phi)[below]])
        return phi

    def _let_go(self, rows: Tensor, labels: Tensor) -> None:
        """Keep fewer rows, those (n, d) no more."""
        stay = without(self.kept_, self.labels_, rows, labels)
        self.kept_, self.labels_ = self.kept_[stay], self.labels_[stay]
        if self._random:
            self.products_ = packed(unpacked(self.products_)[stay][:, stay])

    def _solve(self, c: int, phi: Tensor | None, products: Tensor | None) -> None:
        """The weight of c classes, from what is kept; phi of the shots, or Phi' Phi, if it is there already."""
        if products is not None:
            self.weight_ = self._divided(products, self.sums_).to(self.weight_.dtype)
            return
        if self._random:
            kernel = unpacked(self.products_)
        elif self.form == "primal":
            kernel = _product(self.kept_, self.kept_)
        else:
            kernel = self._kernel(self.kept_.double(), self.kept_.double())
        dual = self._divided(kernel, torch.nn.functional.one_hot(self.labels_, c).double())
        if self.form == "dual":
            self.weight_ = dual
        else:
            phi = self._phi(self.kept_) if phi is None else phi
            self.weight_ = _product(phi.T, dual.T).to(self.weight_.dtype)

    def _divided(self, matrix: Tensor, right: Tensor) -> Tensor:
        """(matrix + lambda I)^-1 right; only the lower half of the matrix is read."""
        matrix.diagonal().add_(RIDGE[self.form] if self.ridge is None else self.ridge)
        return torch.cholesky_solve(right, torch.linalg.cholesky(matrix))

    def _phi(self, rows: Tensor) -> Tensor:
        """(n, width) features of unit rows."""
        return (rows @ self._map().to(rows.dtype).T).relu_() if self._random else rows

    def _map(self) -> Tensor:
        """R, (hidden, d)."""
        return random_map(self.hidden, self.n_features_in_, self.seed)

    def _kernel(self, a: Tensor, b: Tensor) -> Tensor:
        """(p, d) and (q, d) unit rows to (p, q)."""
        return (-2 * self.gamma * (1 - a @ b.T)).exp()

    @property
    def _keeps(self) -> bool:
        """Whether the shots are kept, and no sums."""
        return "kept_" in vars(self)

    @property
    def _random(self) -> bool:
        return self.form == "primal" and self.hidden > 0

    @property
    def _width(self) -> int:
        return self.hidden if self._random else self.n_features_in_

    def _check(self) -> None:
        if self.form not in RIDGE:
            raise InputError(f"form must be one of {', '.join(RIDGE)}, but is {self.form!r}")
        if self.ridge is not None and not self.ridge > 0:
            raise InputError(f"ridge must be positive, but is {self.ridge}")
        if not 0 <= self.weight <= 1:
            raise InputError(f"weight must be 0 to 1, but is {self.weight!r}")
        check_not_negative(hidden=self.hidden, gamma=self.gamma)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """(p, w) and (q, w) to a b' in float64, of a block of columns at a time: doubles of all would be large."""
    found = torch.zeros(len(a), len(b), dtype=torch.float64)
    for left, right in zip(a.split(BLOCK, dim=1), b.split(BLOCK, dim=1), strict=True):
        found.addmm_(left.double(), right.double().T)
    return found


@lru_cache(maxsize=2)
def random_map(hidden: int, d: int, seed: int) -> Tensor:
    """A random linear map, uniform between plus and minus one over the root of the width.

    Made of the raw stream of numpy's PCG64, which is promised to stay as it is; streams of drawn numbers are not.

    Args:
        hidden: rows.
        d: width of what is mapped.
        seed: of the stream.

    Returns:
        (hidden, d) float32, shared: not to be changed.

    >>> random_map(2, 3, seed=0)
    tensor([[ 0.1581, -0.2658, -0.5300],
            [-0.5583,  0.3617,  0.4766]])
    """
    raw = np.random.PCG64(seed).random_raw(hidden * d).reshape(hidden, d)
    raw >>= np.uint64(40)  # 24 bits are exact in float32
    between = raw.astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    return torch.from_numpy(between * np.float32(d**-0.5))
