"""GDA: a Gaussian a class with one shared covariance, beside zero-shot CLIP.

Paper: Wang et al., ICLR 2024, https://arxiv.org/abs/2402.04087. With means mu_k, the scatter C of the n unit features
about their class means, and S = C / (n - 1):

    P = d (C + tr(S) I)^-1,    logits = s x T' + alpha (x P mu_k - mu_k P mu_k / 2 - ln c)

Differs from the released code, where alpha was searched with labelled validation pictures (`Gda.official` is its
estimator):
- one alpha for all;
- tr(S) divides by the degrees of freedom, n less the number of classes, plus one pseudo-shot with the variance about
  the grand mean, so that one shot a class, which has no scatter at all, gives equal variances and no empty precision;
- P is multiplied by 1 + n / d, which makes it the inverse of an average of S and equal variances and keeps it from
  fading as shots become many, and by k / (k + 1) at k shots a class, since a mean of k shots is uncertain itself.
A class without a shot has the mean of the other classes' means: its text decides.

`for_classes` answers for classes of which there are no pictures at all, as the released base-to-new code does: from the
k = 64 views x of the shots that are nearest to a class's text t,

    mu = (sum x + 16 t) / (k + 16),    C = sum (x - t)' (x - t),    P = mean of d (C + tr(C) / (k - 1) I)^-1

with the mean over these classes in P. For the shots' own classes that code has another P, the pseudo-inverse of the
mean of the classes' covariances, not shrunk: `Gda.base_to_new`. Differs from it in that fewer views than 64 will do,
and that a class with a single view is left out of that mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.functional import unit
from clipadapter.heads._base import SupportSet
from clipadapter.heads._kept_rows import without
from clipadapter.heads._registry import register_head
from clipadapter.heads._streaming import Exact
from clipadapter.heads._text import TextFeatures
from clipadapter.heads._triangle import packed, unpacked
from clipadapter.heads._warm import carried
from clipadapter.heads.cache import check_not_negative
from clipadapter.heads.gaussian import SMALLEST, Downdates, Moments, add_up, made_up, mean_covariance, moments_of

ABSENT = -1e4
"""Logit of a class without shot and text: finite, so that it can be saved, and never the best."""
SHRINKAGES = ("pooled", "published", "base-to-new")


@register_head(
    "gda",
    paper="https://arxiv.org/abs/2402.04087",
    xfail={"check_fit_score_takes_y": "scikit-learn calls partial_fit, which asks for stream=True"},
    fidelity="verified: `Gda.official` and `Gda.base_to_new` give the logits of the authors' code. The default "
    "estimates the covariance in another way and has one alpha for all data sets.",
)
class Gda(Exact):
    """Gaussian discriminant analysis with a shrunk covariance, in closed form; class text is added if there is some.

    Args:
        alpha: weight of the Gaussian logits beside the text's; without text it only sets the confidence.
        shrinkage: how the covariance is estimated: "pooled" as above, as "published", or as published for
            "base-to-new", which takes two shots or views a class, and many of them to be of use.
        neighbours: views of the shots that stand for a class without pictures in `for_classes`, 64 as published. If
            above 0, all views are kept, n v d numbers; 0 keeps none and knows no other classes.
        stream: keep the sums over the shots that `partial_fit`, `unlearn` and `rearrange` go on from, d^2 / 2 + c d
            numbers in float64: 2 MB where d is 512 and 9 MB where it is 1280, with 100 classes. Not for "base-to-new",
            which looks at the shots of each class.

    >>> Gda().fit([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0]], ["up", "up", "right"]).predict([[0.1, 2.0]])
    array(['up'], dtype='<U5')
    """

    usual_temperatures = (2.7, 3.6, 3.6, 3.0, 2.4)

    products_: Tensor
    """Of the views x, x' x summed; packed (d (d + 1) / 2,), float64."""
    sums_: Tensor
    """(c, d) of the views, float64."""
    rows_: Tensor
    """(c,) views."""
    views_: Tensor | None
    weight_: Tensor

    def __init__(
        self, alpha: float = 0.06, shrinkage: str = "pooled", neighbours: int = 0, stream: bool = False
    ) -> None:
        self.alpha = alpha
        self.shrinkage = shrinkage
        self.neighbours = neighbours
        self.stream = stream

    @classmethod
    def official(cls, **changes: Any) -> Self:
        """The released estimator. Its authors search alpha over 0.0001, 0.001 ... 100; 1 is a value of that grid.

        Args:
            changes: parameters to set otherwise.
        """
        return cls(**{"alpha": 1.0, "shrinkage": "published", **changes})

    @classmethod
    def base_to_new(cls, **changes: Any) -> Self:
        """The released estimator of the base-to-new protocol: fit it to base classes, then `for_classes`.

        Args:
            changes: parameters to set otherwise. Alpha is searched as in `official`.
        """
        return cls(**{"alpha": 1.0, "shrinkage": "base-to-new", "neighbours": 64, **changes})

    @property
    def updatable(self) -> bool:
        """Whether the sums over the shots are kept."""
        return self.stream and "products_" in vars(self)

    def rearrange(self, classes: Sequence[str], origin: Sequence[int], text: TextFeatures | None = None) -> Self:
        """As `Exact.rearrange`; refused without ``stream``."""
        check_is_fitted(self)
        self._check_updatable()
        return super().rearrange(classes, origin, text)

    def _check_width(self, shots: SupportSet) -> None:
        super()._check_width(shots)
        self._check_updatable()

    def _check_updatable(self) -> None:
        if not self.updatable:
            raise InputError(
                "this Gda does not keep what it would go on from: set stream=True, with a shrinkage other than "
                "'base-to-new', and fit it again"
            )

    def _begin(self, shots: SupportSet) -> None:
        check_not_negative(neighbours=self.neighbours)
        if self.shrinkage == "base-to-new":
            if self.stream:
                raise InputError("shrinkage 'base-to-new' needs the shots of each class: leave stream at False")
            self._clear(shots)
            self._fit_base(shots)
        else:
            super()._begin(shots)
        if not self.stream:
            del self.products_, self.sums_, self.rows_

    def _clear(self, shots: SupportSet) -> None:
        c, d = shots.n_classes, shots.views.shape[2]
        self.products_ = torch.zeros(d * (d + 1) // 2, dtype=torch.float64)
        self.sums_, self.rows_ = torch.zeros(c, d, dtype=torch.float64), torch.zeros(c, dtype=torch.int64)
        self.views_ = shots.views.new_zeros(0, d) if self.neighbours else None
        self.weight_ = shots.views.new_zeros(0)

    def _gather(self, shots: SupportSet, sign: int) -> None:
        rows = unit(shots.views)
        if self.neighbours:
            self.views_ = self._kept_views(rows.flatten(0, 1), sign)
        products, sums = unpacked(self.products_), self.sums_.clone()
        add_up(products, sums, rows, shots.labels, sign)
        self.products_, self.sums_ = packed(products), sums
        counts = torch.bincount(shots.labels, minlength=len(sums))
        self.rows_ = self.rows_ + sign * rows.shape[1] * counts

    def _kept_views(self, rows: Tensor, sign: int) -> Tensor:
        assert self.views_ is not None
        if sign > 0:
            return torch.cat([self.views_, rows.to(self.views_.dtype)])
        any_class = torch.zeros(len(self.views_) + len(rows))
        stay = without(self.views_, any_class[: len(self.views_)], rows, any_class[: len(rows)])
        return self.views_[stay]

    def _arrange(self, origin: Tensor) -> None:
        self.sums_, self.rows_ = carried(self.sums_, origin), carried(self.rows_, origin)

    def _settle(self, text: Tensor | None, scale: float) -> None:
        moments = Moments.of(unpacked(self.products_), self.sums_, self.rows_)
        views = float(self.rows_.sum()) / float(self.counts_.sum())
        weight = self._shrunk_weight(moments, views)
        self._add(0.0 if text is None else scale * text, weight, moments.means, self.weight_.dtype)

    def _fit_base(self, shots: SupportSet) -> None:
        rows, text = unit(shots.views), 0.0 if shots.text is None else shots.scale * shots.text
        moments = moments_of(rows, shots.labels, shots.n_classes)
        precision = torch.linalg.pinv(mean_covariance(rows, shots.labels, moments), hermitian=True)
        self._add(text, moments.means @ precision, moments.means, rows.dtype)
        if self.neighbours:
            self.views_ = rows.flatten(0, 1)

    def _for_text(self, text: Tensor, scale: float) -> None:
        views = getattr(self, "views_", None)
        if views is None:
            raise InputError(
                "Gda knows only the classes that it was fitted to; with neighbours=64, as published, it keeps "
                "the shots to make others of"
            )
        means, precision = made_up(views, text.double(), self.neighbours)
        self._add(scale * text, means @ precision, means, views.dtype)

    def _add(self, text: Tensor | float, weight: Tensor, means: Tensor, dtype: torch.dtype) -> None:
        """One linear map of text and Gaussians, of (c, d) each."""
        bias = -0.5 * (weight * means).sum(dim=1) - math.log(len(means))
        self.weight_ = (text + self.alpha * weight).to(dtype).contiguous()
        self.text_ = text.to(dtype) if isinstance(text, Tensor) else None
        self.bias_ = (self.alpha * bias).to(dtype)

    def _text_logits(self, X: Tensor) -> Tensor | None:
        text = getattr(self, "text_", None)
        return None if text is None else unit(X) @ text.to(X.dtype).T

    def _logits(self, X: Tensor) -> Tensor:
        return unit(X) @ self.weight_.to(X.dtype).T + self.bias_.to(X.dtype)

    def _shrunk_weight(self, moments: Moments, views: float) -> Tensor:
        """P mu of each class, (c, d), at so many views a shot."""
        rows, present = float(moments.counts.sum()), float((moments.counts > 0).sum())
        about_mean = moments.square - float(moments.total.square().sum()) / rows
        exact = torch.tensor(about_mean, dtype=torch.float64)
        trace, factor = self._shrink(moments.scatter.trace(), exact, rows, present, (views, moments.means.shape[1]))
        if float(trace) <= SMALLEST:
            return torch.zeros_like(moments.means)
        shrunk = moments.scatter.clone()
        shrunk.diagonal().add_(trace)
        return factor * torch.cholesky_solve(moments.means.T, torch.linalg.cholesky(shrunk)).T

    def _shrink(
        self, within: Tensor, about_mean: Tensor, rows: float, present: Tensor | float, shape: tuple[float, int]
    ) -> tuple[Tensor, Tensor | float]:
        """tr(S), and the factor of (C + tr(S) I)^-1.

        Args:
            within: trace of the scatter about the class means.
            about_mean: of the scatter about the grand mean.
            rows: their number, views included.
            present: classes that have a shot.
            shape: views a shot, feature width.
        """
        views, d = shape
        if self.shrinkage == "published":
            return within / max(rows - 1, 1), d
        if self.shrinkage != "pooled":
            raise InputError(f"shrinkage must be one of {', '.join(SHRINKAGES)}, but is {self.shrinkage!r}")
        trace = (within + about_mean / max(rows - 1, 1)) / (rows - present + 1)
        return trace, (d + rows) / (1 + present * views / rows)

    def _leave_one_out(self, shots: SupportSet) -> Tensor | None:
        n, views, d = shots.views.shape
        if n == 1 or self.shrinkage == "base-to-new":
            return None
        rows = unit(shots.views.double())
        if n * views < d:  # all vectors lie in the span of the rows
            rows = rows @ torch.linalg.qr(rows.flatten(0, 1).T).Q
        found = self.alpha * Downdates(self._shrink, rows, shots.labels, shots.n_classes, d).scores()
        if shots.text is None:
            alone = shots.counts[shots.labels] == 1
            found[alone] += self.alpha * math.log(shots.n_classes / (shots.n_classes - 1))  # one class fewer
            found[torch.nonzero(alone).flatten(), shots.labels[alone]] = ABSENT
        else:
            found += shots.scale * unit(shots.X.double()) @ shots.text.double().T
        return found.to(shots.X.dtype)
