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

import math
from dataclasses import field
from typing import Annotated, Any

import torch
from torch import Tensor
from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.heads.base import NOT_NEGATIVE, OneOf, SupportSet, register_head
from clipadapter.heads.incremental import (
    ExactIncrementalHead,
    find_remaining_rows,
    pack_lower_triangle,
    unpack_lower_triangle,
)
from clipadapter.utils.functional import solve_ridge, unit

SHOTS_PER_BLOCK = 1024  # shots whose features are converted to float64 at a time
MIN_TRACE = 1e-12
"""Trace of a covariance below which there is no variance; the pseudo-inverse of the released code is then zero."""
TEXT_COPIES = 16  # how many images the text of a class without images counts as, as published


def class_moments(products: Tensor, sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Scatter C (d, d) about the class means, and these (c, d); without a row, the mean of the other classes' means.

    From the sums that `accumulate` adds to, and the number (c,) of rows of each class, views included. Of the products
    only the lower triangle need be valid: then so is that of the scatter.
    """
    present = counts > 0
    means = sums / counts.clamp_min(1)[:, None]
    scatter = products - sums.T @ means
    means[~present] = means[present].mean(dim=0)
    return scatter, means


def shrunk_weight(scatter: Tensor, means: Tensor, factor: float, trace: float) -> Tensor:
    """(c, d) factor (C + trace I)^-1 mu of each class; zeros without variance. Overwrites the scatter C."""
    return torch.zeros_like(means) if trace <= MIN_TRACE else factor * solve_ridge(scatter, means.T, trace).T


def sample_trace(scatter: Tensor, n: float) -> float:
    """Trace of the covariance C / (n - 1), as in the released code."""
    return float(scatter.trace()) / max(n - 1, 1)


def gaussian_bias(weight: Tensor, means: Tensor) -> Tensor:
    """(c,) bias beside weights P mu (c, d) of equally frequent classes with means mu (c, d)."""
    return -0.5 * (weight * means).sum(dim=1) - math.log(len(means))


def accumulate(products: Tensor, sums: Tensor, rows: Tensor, labels: Tensor, sign: int = 1) -> None:
    """Add unit features (n, v, d) to products x' x (d, d) and sums by class (c, d) in place; sign -1 subtracts them."""
    for block, block_labels in zip(rows.split(SHOTS_PER_BLOCK), labels.split(SHOTS_PER_BLOCK), strict=True):
        exact = block.double()
        sums.index_add_(0, block_labels, exact.sum(dim=1), alpha=sign)
        flat = exact.flatten(0, 1)
        products.addmm_(flat.T, flat, alpha=sign)


def average_class_covariance(rows: Tensor, labels: Tensor, means: Tensor, counts: Tensor) -> Tensor:
    """(d, d) mean of the unbiased covariances of the classes; classes with a single row are left out."""
    d, has_covariance = rows.shape[2], counts > 1
    weights = torch.where(has_covariance, 1 / (counts - 1).clamp_min(1), 0.0)
    weights = weights / has_covariance.sum().clamp_min(1)  # (c,)
    covariance = torch.zeros(d, d, dtype=torch.float64)
    for block, block_labels in zip(rows.split(SHOTS_PER_BLOCK), labels.split(SHOTS_PER_BLOCK), strict=True):
        # Subtract the mean from each row: a difference of sums would leave rounding noise where the covariance is zero.
        centred = (block.double() - means[block_labels][:, None]) * weights[block_labels].sqrt()[:, None, None]
        covariance.addmm_(centred.flatten(0, 1).T, centred.flatten(0, 1))
    return covariance


def gaussians_from_text(views: Tensor, text: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Means and shared precision of classes that have text and no images (GDA's base-to-new mode).

    The mean of a class is that of the views (r, d) nearest to its text (c, d), at most ``neighbours`` of them, and of
    copies of the text. Its covariance is that of these views about the text. The precision is the mean of the classes'
    precisions, each shrunk as by `Gda.official`.
    """
    (c, d), k = text.shape, min(neighbours, len(views))
    means, precision = torch.empty_like(text), torch.zeros(d, d, dtype=text.dtype)
    for i, class_text in enumerate(text):
        nearest = views[(views @ class_text.to(views.dtype)).topk(k).indices].double()  # (k, d)
        means[i] = (nearest.sum(dim=0) + TEXT_COPIES * class_text) / (k + TEXT_COPIES)
        centred = nearest - class_text
        trace = float(centred.square().sum()) / max(k - 1, 1)
        if trace > MIN_TRACE:
            # Woodbury's identity: k is usually far smaller than d, so the (k, k) form is cheaper.
            inner = centred @ centred.T
            inner.diagonal().add_(trace)
            correction = centred.T @ torch.linalg.solve(inner, centred)
            precision += (torch.eye(d, dtype=text.dtype) - correction) * (d / (c * trace))
    return means, precision


@register_head(
    "gda",
    paper="https://arxiv.org/abs/2402.04087",
    xfail={"check_fit_score_takes_y": "scikit-learn calls partial_fit, which asks for stream=True"},
)
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

    Fidelity: verified: `Gda.official` and `Gda.base_to_new` give the logits of the authors' code. The default estimates
    the covariance in another way and has one alpha for all data sets.
    """

    temperature_prior = (2.7, 4.9, 4.0, 3.0, 2.4)
    picture_features = ("views_",)  # if `neighbours` is above 0
    recipes = {"official": {"alpha": 1.0, "shrinkage": "published"}}
    """The released estimator. Its authors search alpha over 0.0001, 0.001 ... 100; 1 is a value of that grid."""
    class_sums = ("sums_", "rows_")
    update_needs = "set stream=True, with a shrinkage other than 'base-to-new', and fit it again"

    products_: Tensor = field(init=False)
    """Sum of x' x over the views x: the packed lower triangle (d (d + 1) / 2,), float64."""
    sums_: Tensor = field(init=False)  # (c, d) sums of the views of each class, float64
    rows_: Tensor = field(init=False)  # (c,) number of views of each class
    views_: Tensor | None = field(init=False, default=None)
    """(n v, d) unit features of all views, if ``neighbours`` is above 0."""
    text_: Tensor | None = field(init=False, default=None)  # (c, d) class text times the logit scale
    weight_: Tensor = field(init=False)  # (c, d) of the sum of zero-shot and Gaussian logits

    alpha: float = 0.06
    shrinkage: Annotated[str, OneOf("pooled", "published", "base-to-new")] = "pooled"
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

    def check_parameters(self) -> None:
        """See `Head.check_parameters`."""
        super().check_parameters()
        if self.shrinkage == "base-to-new" and self.stream:
            raise InputError("shrinkage 'base-to-new' needs the shots of each class: leave stream at False")

    def _add_shots(self, shots: SupportSet) -> None:
        if self.shrinkage != "base-to-new":
            super()._add_shots(shots)
        else:
            self._update_sums(shots, 1)
            _, means = class_moments(unpack_lower_triangle(self.products_), self.sums_, self.rows_)
            covariance = average_class_covariance(unit(shots.views), shots.labels, means, self.rows_.double())
            weight = means @ torch.linalg.pinv(covariance, hermitian=True)
            text = 0.0 if shots.text is None else shots.scale * shots.text
            self._set_linear_map(text, weight, means, self.weight_.dtype)
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
        if self.views_ is not None and sign > 0:
            self.views_ = torch.cat([self.views_, rows.flatten(0, 1).to(self.views_.dtype)])
        elif self.views_ is not None:
            # The stored views have no labels: all count as one class when rows are looked up.
            labels, removed = torch.zeros(len(self.views_)), rows.flatten(0, 1)
            remaining = find_remaining_rows(self.views_, labels, removed, torch.zeros(len(removed)))
            self.views_ = self.views_[remaining]
        products, sums = unpack_lower_triangle(self.products_), self.sums_.clone()
        accumulate(products, sums, rows, shots.labels, sign)
        self.products_, self.sums_ = pack_lower_triangle(products), sums
        counts = torch.bincount(shots.labels, minlength=len(sums))
        self.rows_ = self.rows_ + sign * rows.shape[1] * counts

    def _solve_from_sums(self, text: Tensor | None, scale: float) -> None:
        products, n_views, d = unpack_lower_triangle(self.products_), float(self.rows_.sum()), self.sums_.shape[1]
        scatter, means = class_moments(products, self.sums_, self.rows_)
        if self.shrinkage == "published":
            weight = shrunk_weight(scatter, means, d, sample_trace(scatter, n_views))
        else:
            present = float((self.rows_ > 0).sum())
            about_grand_mean = float(products.trace()) - float(self.sums_.sum(dim=0).square().sum()) / n_views
            pseudo_shot = about_grand_mean / max(n_views - 1, 1)
            trace = (float(scatter.trace()) + pseudo_shot) / (n_views - present + 1)
            # d (1 + n / d) k / (k + 1), with k = n / (classes x views) shots per class.
            views_per_shot = n_views / float(self.counts_.sum())
            factor = (d + n_views) / (1 + present * views_per_shot / n_views)
            weight = shrunk_weight(scatter, means, factor, trace)
        self._set_linear_map(0.0 if text is None else scale * text, weight, means, self.weight_.dtype)

    def _for_text(self, text: Tensor, scale: float) -> None:
        if self.views_ is None:
            raise InputError(
                "Gda knows only the classes that it was fitted to; with neighbours=64, as published, it keeps "
                "the shots that other classes are estimated from"
            )
        means, precision = gaussians_from_text(self.views_, text.double(), self.neighbours)
        self._set_linear_map(scale * text, means @ precision, means, self.views_.dtype)

    def _set_linear_map(self, text: Tensor | float, weight: Tensor, means: Tensor, dtype: torch.dtype) -> None:
        """Store zero-shot and Gaussian logits as one linear map.

        Of class text (c, d) times the logit scale, 0 without text, and P mu (c, d) and mu (c, d) of each class.
        """
        self.weight_ = (text + self.alpha * weight).to(dtype).contiguous()
        self.text_ = text.to(dtype) if isinstance(text, Tensor) else None
        self.bias_ = (self.alpha * gaussian_bias(weight, means)).to(dtype)

    def _text_logits(self, X: Tensor) -> Tensor | None:
        return None if self.text_ is None else unit(X) @ self.text_.to(X.dtype).T

    def _logits(self, X: Tensor) -> Tensor:
        return unit(X) @ self.weight_.to(X.dtype).T + self.bias_.to(X.dtype)
