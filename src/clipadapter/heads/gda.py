"""GDA: Gaussian discriminant analysis with one covariance for all classes, added to zero-shot CLIP.

Paper: Wang et al., ICLR 2024, https://arxiv.org/abs/2402.04087. With means mu_k, the scatter C of the n unit features x
about their class means, S = C / (n - 1), and zero-shot logits s x T':

    P = d (C + tr(S) I)^-1,    logits = s x T' + alpha (x P mu_k - mu_k P mu_k / 2 - ln c)

Differs from the released code (`Gda.official` is its estimator), where alpha is searched on labelled validation images:
- There is one alpha for all data sets.
- tr(S) divides by the degrees of freedom, n minus the number of classes, plus one pseudo-shot with the variance about
  the grand mean. One shot per class has no scatter at all: the pseudo-shot makes its variances equal instead of zero.
- P is multiplied by 1 + n / d, which makes it the inverse of an average of S and equal variances. Without this factor P
  would fade as the number of shots grows.
- P is multiplied by k / (k + 1) at k shots per class, since the mean of k shots has an error of its own.
A class without a shot has the mean of the other classes' means: its Gaussian logit is neutral, and its text decides.

`for_classes` predicts classes that have no images at all, as the released base-to-new code does. From the k = 64 views
x of the shots that are nearest to a class's text t,

    mu = (sum x + 16 t) / (k + 16),    C = sum (x - t)' (x - t),    P = mean of d (C + tr(C) / (k - 1) I)^-1

where P is a mean over the new classes. For the classes of the shots that code has another P, the pseudo-inverse of the
mean of the class covariances, not shrunk: `Gda.base_to_new`. Differs from it: fewer views than 64 are allowed, and a
class with a single view is left out of that mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor
from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.heads.base import SupportSet
from clipadapter.heads.gaussian import (
    GaussianMoments,
    accumulate,
    average_class_covariance,
    gaussian_bias,
    gaussians_from_text,
)
from clipadapter.heads.incremental import (
    ExactIncrementalHead,
    find_remaining_rows,
    pack_lower_triangle,
    unpack_lower_triangle,
)
from clipadapter.heads.parameters import NOT_NEGATIVE, OneOf
from clipadapter.heads.registry import register_head
from clipadapter.heads.warm_start import remap_rows
from clipadapter.utils.functional import unit

SHRINKAGES = ("pooled", "published", "base-to-new")


@register_head(
    "gda",
    paper="https://arxiv.org/abs/2402.04087",
    xfail={"check_fit_score_takes_y": "scikit-learn calls partial_fit, which asks for stream=True"},
    fidelity="verified: `Gda.official` and `Gda.base_to_new` give the logits of the authors' code. The default "
    "estimates the covariance in another way and has one alpha for all data sets.",
)
@dataclass(eq=False, repr=False, kw_only=True)
class Gda(ExactIncrementalHead):
    """Gaussian discriminant analysis with a shrunk covariance; zero-shot logits are added if there is class text.

    Args:
        alpha: weight of the Gaussian logits beside the zero-shot logits; without text it only sets the confidence.
        shrinkage: estimator of the covariance: "pooled" as above, "published", or "base-to-new" as published for that
            protocol. The last needs two shots or views per class, and many of them to be useful.
        neighbours: number of views of the shots that represent a class without images in `for_classes`; 64 is
            published. If above 0, all views are stored, n v d numbers. 0 stores none, and `for_classes` is refused.
        stream: keep the sums over the shots that `partial_fit`, `unlearn` and `remap_classes` update, d^2 / 2 + c d
            numbers in float64: 2 MB where d is 512 and 9 MB where it is 1280, with 100 classes. Not available for
            "base-to-new", which needs the shots of each class.

    >>> Gda().fit([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0]], ["up", "up", "right"]).predict([[0.1, 2.0]])
    array(['up'], dtype='<U5')
    """

    temperature_prior = (2.7, 4.9, 4.0, 3.0, 2.4)
    picture_features = ("views_",)  # if `neighbours` is above 0
    recipes = {"official": {"alpha": 1.0, "shrinkage": "published"}}
    """The released estimator. Its authors search alpha over 0.0001, 0.001 ... 100; 1 is a value of that grid."""
    update_needs = "set stream=True, with a shrinkage other than 'base-to-new', and fit it again"

    products_: Tensor = field(init=False)
    """Sum of x' x over the views x: the packed lower triangle (d (d + 1) / 2,), float64."""
    sums_: Tensor = field(init=False)  # (c, d) sums of the views of each class, float64
    rows_: Tensor = field(init=False)  # (c,) number of views of each class
    views_: Tensor | None = field(init=False)  # (n v, d) unit features of all views, if ``neighbours`` is above 0
    weight_: Tensor = field(init=False)  # (c, d) of the sum of zero-shot and Gaussian logits

    alpha: float = 0.06
    shrinkage: Annotated[str, OneOf(*SHRINKAGES)] = "pooled"
    neighbours: Annotated[int, NOT_NEGATIVE] = 0
    stream: bool = False

    @classmethod
    def base_to_new(cls, **changes: Any) -> Self:
        """The released estimator of the base-to-new protocol: fit it to base classes, then `for_classes`.

        Args:
            changes: parameters to override. Alpha is searched as in `official`.
        """
        return cls(**{"alpha": 1.0, "shrinkage": "base-to-new", "neighbours": 64, **changes})

    @property
    def is_updatable(self) -> bool:
        """Whether the sums over the shots are stored."""
        return self.stream and "products_" in vars(self)

    def _partial_fit_first(self, shots: SupportSet) -> None:
        if self.shrinkage == "base-to-new":
            if self.stream:
                raise InputError("shrinkage 'base-to-new' needs the shots of each class: leave stream at False")
            self._init_sums(shots)
            self._fit_base(shots)
        else:
            super()._partial_fit_first(shots)
        if not self.stream:
            del self.products_, self.sums_, self.rows_

    def _init_sums(self, shots: SupportSet) -> None:
        c, d = shots.n_classes, shots.views.shape[2]
        self.products_ = torch.zeros(d * (d + 1) // 2, dtype=torch.float64)
        self.sums_, self.rows_ = torch.zeros(c, d, dtype=torch.float64), torch.zeros(c, dtype=torch.int64)
        self.views_ = shots.views.new_zeros(0, d) if self.neighbours else None
        self.weight_ = shots.views.new_zeros(0)

    def _update_sums(self, shots: SupportSet, sign: int) -> None:
        rows = unit(shots.views)
        if self.neighbours:
            self.views_ = self._update_views(rows.flatten(0, 1), sign)
        products, sums = unpack_lower_triangle(self.products_), self.sums_.clone()
        accumulate(products, sums, rows, shots.labels, sign)
        self.products_, self.sums_ = pack_lower_triangle(products), sums
        counts = torch.bincount(shots.labels, minlength=len(sums))
        self.rows_ = self.rows_ + sign * rows.shape[1] * counts

    def _update_views(self, rows: Tensor, sign: int) -> Tensor:
        """The stored views with rows (r, d) added, or removed."""
        assert self.views_ is not None
        if sign > 0:
            return torch.cat([self.views_, rows.to(self.views_.dtype)])
        # The stored views have no labels: all count as one class when rows are looked up.
        any_class = torch.zeros(len(self.views_) + len(rows))
        remaining = find_remaining_rows(self.views_, any_class[: len(self.views_)], rows, any_class[: len(rows)])
        return self.views_[remaining]

    def _remap_sums(self, origin: Tensor) -> None:
        self.sums_, self.rows_ = remap_rows(self.sums_, origin), remap_rows(self.rows_, origin)

    def _solve_from_sums(self, text: Tensor | None, scale: float) -> None:
        moments = GaussianMoments.from_sums(unpack_lower_triangle(self.products_), self.sums_, self.rows_)
        views_per_shot = float(self.rows_.sum()) / float(self.counts_.sum())
        weight = self._shrunk_weight(moments, views_per_shot)
        self._set_linear_map(0.0 if text is None else scale * text, weight, moments.means, self.weight_.dtype)

    def _fit_base(self, shots: SupportSet) -> None:
        """The published estimator for the base classes of the base-to-new protocol."""
        rows, text = unit(shots.views), 0.0 if shots.text is None else shots.scale * shots.text
        moments = GaussianMoments.from_rows(rows, shots.labels, shots.n_classes)
        precision = torch.linalg.pinv(average_class_covariance(rows, shots.labels, moments), hermitian=True)
        self._set_linear_map(text, moments.means @ precision, moments.means, rows.dtype)
        if self.neighbours:
            self.views_ = rows.flatten(0, 1)

    def _for_text(self, text: Tensor, scale: float) -> None:
        views = getattr(self, "views_", None)
        if views is None:
            raise InputError(
                "Gda knows only the classes that it was fitted to; with neighbours=64, as published, it keeps "
                "the shots that other classes are estimated from"
            )
        means, precision = gaussians_from_text(views, text.double(), self.neighbours)
        self._set_linear_map(scale * text, means @ precision, means, views.dtype)

    def _set_linear_map(self, text: Tensor | float, weight: Tensor, means: Tensor, dtype: torch.dtype) -> None:
        """Store zero-shot and Gaussian logits as one linear map.

        Args:
            text: (c, d) class text times the logit scale, or 0 without text.
            weight: (c, d) P mu of each class.
            means: (c, d) mu.
            dtype: of the features.
        """
        self.weight_ = (text + self.alpha * weight).to(dtype).contiguous()
        self.text_ = text.to(dtype) if isinstance(text, Tensor) else None
        self.bias_ = (self.alpha * gaussian_bias(weight, means)).to(dtype)

    def _text_logits(self, X: Tensor) -> Tensor | None:
        text = getattr(self, "text_", None)
        return None if text is None else unit(X) @ text.to(X.dtype).T

    def _logits(self, X: Tensor) -> Tensor:
        return unit(X) @ self.weight_.to(X.dtype).T + self.bias_.to(X.dtype)

    def _shrunk_weight(self, moments: GaussianMoments, views: float) -> Tensor:
        """P mu of each class, (c, d), where each shot has this number of views."""
        rows, d = float(moments.counts.sum()), moments.means.shape[1]
        if self.shrinkage == "published":
            return moments.shrunk_weight(moments.published_trace, d)
        present = float((moments.counts > 0).sum())
        about_grand_mean = moments.squared_norms - float(moments.total.square().sum()) / rows
        trace = (float(moments.scatter.trace()) + about_grand_mean / max(rows - 1, 1)) / (rows - present + 1)
        # d (1 + n / d) k / (k + 1), with k = n / (classes x views) shots per class.
        return moments.shrunk_weight(trace, (d + rows) / (1 + present * views / rows))
