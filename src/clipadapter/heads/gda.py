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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.functional import unit
from clipadapter.heads._base import Head, Shots
from clipadapter.heads._gda_new_classes import SMALLEST, made_up
from clipadapter.heads._registry import register_head
from clipadapter.heads._shot_cache import check_not_negative

ABSENT = -1e4
"""Logit of a class without shot and text: finite, so that it can be saved, and never the best."""
SHRINKAGES = ("pooled", "published", "base-to-new")
BLOCK = 1024


@dataclass
class _Moments:
    """Float64 sums over unit features.

    Args:
        scatter: (d, d) about the class means.
        total: (d,) sum of all rows.
        square: summed squared length of all rows.
        means: (c, d), those of classes without a shot the mean of the others.
        counts: (c,) rows, views included.
    """

    scatter: Tensor
    total: Tensor
    square: float
    means: Tensor
    counts: Tensor


@register_head("gda", paper="https://arxiv.org/abs/2402.04087")
class Gda(Head):
    """Gaussian discriminant analysis with a shrunk covariance, in closed form; class text is added if there is some.

    Args:
        alpha: weight of the Gaussian logits beside the text's; without text it only sets the confidence.
        shrinkage: how the covariance is estimated: "pooled" as above, as "published", or as published for
            "base-to-new", which takes two shots or views a class, and many of them to be of use.
        neighbours: views of the shots that stand for a class without pictures in `for_classes`, 64 as published. If
            above 0, all views are kept, n v d numbers; 0 keeps none and knows no other classes.

    >>> Gda().fit([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0]], ["up", "up", "right"]).predict([[0.1, 2.0]])
    array(['up'], dtype='<U5')
    """

    usual_temperatures = (2.7, 3.6, 3.6, 3.0, 2.4)

    def __init__(self, alpha: float = 0.06, shrinkage: str = "pooled", neighbours: int = 0) -> None:
        self.alpha = alpha
        self.shrinkage = shrinkage
        self.neighbours = neighbours

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

    def _fit(self, shots: Shots) -> None:
        check_not_negative(neighbours=self.neighbours)
        rows, text = unit(shots.views), 0.0 if shots.text is None else shots.scale * shots.text
        moments = _moments(rows, shots.labels, shots.n_classes)
        if self.shrinkage == "base-to-new":
            precision = torch.linalg.pinv(_mean_covariance(rows, shots.labels, moments), hermitian=True)
            weight = moments.means @ precision
        else:
            weight = self._shrunk_weight(moments, shots.views.shape[1:])
        self._add(text, weight, moments.means, rows.dtype)
        self.views_ = rows.flatten(0, 1) if self.neighbours else None

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

    def _shrunk_weight(self, moments: _Moments, shape: Sequence[int]) -> Tensor:
        """P mu of each class, (c, d); shape as in `_shrink`."""
        rows, present = float(moments.counts.sum()), float((moments.counts > 0).sum())
        about_mean = moments.square - float(moments.total.square().sum()) / rows
        exact = torch.tensor(about_mean, dtype=torch.float64)
        trace, factor = self._shrink(moments.scatter.trace(), exact, rows, present, shape)
        if float(trace) <= SMALLEST:
            return torch.zeros_like(moments.means)
        shrunk = moments.scatter.clone()
        shrunk.diagonal().add_(trace)
        return factor * torch.cholesky_solve(moments.means.T, torch.linalg.cholesky(shrunk)).T

    def _shrink(
        self, within: Tensor, about_mean: Tensor, rows: float, present: Tensor | float, shape: Sequence[int]
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

    def _leave_one_out(self, shots: Shots) -> Tensor | None:
        n, views, d = shots.views.shape
        if n == 1 or self.shrinkage == "base-to-new":
            return None
        rows = unit(shots.views.double())
        if n * views < d:  # all vectors lie in the span of the rows
            rows = rows @ torch.linalg.qr(rows.flatten(0, 1).T).Q
        found = _Downdates(self, rows, shots.labels, shots.n_classes, d).scores()
        if shots.text is None:
            alone = shots.counts[shots.labels] == 1
            found[alone] += self.alpha * math.log(shots.n_classes / (shots.n_classes - 1))  # one class fewer
            found[torch.nonzero(alone).flatten(), shots.labels[alone]] = ABSENT
        else:
            found += shots.scale * unit(shots.X.double()) @ shots.text.double().T
        return found.to(shots.X.dtype)


class _Downdates:
    """Gaussian logits of every shot under the moments of all other shots.

    Z, the v rows of a shot about the mean of its class, leave the scatter, and that mean moves by their sum over the m
    rows that stay: C - Z'(I + 11'/m)Z, in short C - U'U. In the eigenbasis of C the shrunk scatter D^-1 is diagonal
    whatever its trace, so that Woodbury's identity gives the inverse without the shot, D + D U'(I - U D U')^-1 U D.

    Args:
        head: says how the covariance is shrunk.
        rows: (n, v, e) unit features, float64, in a basis of their span.
        labels: (n,).
        n_classes: c.
        d: feature width.
    """

    def __init__(self, head: Gda, rows: Tensor, labels: Tensor, n_classes: int, d: int) -> None:
        moments, views = _moments(rows, labels, n_classes), rows.shape[1]
        values, basis = torch.linalg.eigh(moments.scatter)
        rows, means = rows @ basis, moments.means @ basis
        self.head, self.labels = head, labels
        self.x, self.means, self.absent = rows[:, 0], means, moments.counts == 0
        left = moments.counts[labels] - views  # (n,) rows that stay in the class
        self.alone = left == 0
        off = rows.mean(dim=1) - means[labels]  # (n, e)
        ratio = torch.where(self.alone, 0.0, views / left.clamp_min(1))
        out = rows - means[labels][:, None]
        root = torch.where(self.alone, 0.0, ((1 + ratio).sqrt() - 1) / views)  # I + root 11' squares to I + 11'/m
        self.out = out + root[:, None, None] * out.sum(dim=1, keepdim=True)  # U, (n, v, e)
        present = (~self.absent).sum() - self.alone.double()
        moved = means[labels] - ratio[:, None] * off
        others = means[~self.absent].sum(dim=0) - means[labels] + torch.where(self.alone[:, None], 0.0, moved)
        self.grand = others / present.clamp_min(1)[:, None]  # (n, e), mean of the means that are left
        self.own = torch.where(self.alone[:, None], self.grand, moved)
        rows_left = float(moments.counts.sum()) - views
        total = moments.total @ basis - rows.sum(dim=1)
        about_mean = moments.square - rows.square().sum(dim=(1, 2)) - total.square().sum(dim=1) / rows_left
        within = moments.scatter.trace() - self.out.square().sum(dim=(1, 2))
        trace, factor = head._shrink(within, about_mean, rows_left, present, (views, d))
        self.none, self.factor = trace <= SMALLEST, torch.as_tensor(factor).expand(len(rows))[:, None]
        self.inverse = 1.0 / (values.clamp_min(0) + torch.where(self.none, 1.0, trace)[:, None])  # (n, e), diagonal

    def scores(self) -> Tensor:
        """(n, c) times alpha."""
        blocks = [self._block(rows) for rows in torch.arange(len(self.x)).split(BLOCK)]
        return self.head.alpha * (torch.cat(blocks) - math.log(len(self.means)))

    def _block(self, rows: Tensor) -> Tensor:
        inverse, out, x = self.inverse[rows], self.out[rows], self.x[rows]
        core = torch.eye(out.shape[1], dtype=out.dtype) - (out * inverse[:, None]) @ out.transpose(1, 2)
        root = torch.linalg.cholesky(core)  # (I - U D U')^-1 is the square of its inverse
        weighed = torch.linalg.solve_triangular(root, out * inverse[:, None], upper=False)  # (b, v, e)
        beside = torch.einsum("bue,be->bu", weighed, x)

        def score(plain: Tensor, square: Tensor, reach: Tensor) -> Tensor:
            """Of x D mu and mu D mu, both (b, k), and weighed mu (b, v, k): x P mu - mu P mu / 2."""
            return plain + torch.einsum("bu,buk->bk", beside, reach) - 0.5 * (square + reach.square().sum(dim=1))

        def single(mean: Tensor) -> Tensor:
            """The same for a mean of each row's own (b, e)."""
            at = inverse * mean
            return score((x * at).sum(1, True), (mean * at).sum(1, True), weighed @ mean[:, :, None])[:, 0]

        found = score((x * inverse) @ self.means.T, inverse @ self.means.T.square(), weighed @ self.means.T)
        found[:, self.absent] = single(self.grand[rows])[:, None]
        found[torch.arange(len(rows)), self.labels[rows]] = single(self.own[rows])
        return torch.where(self.none[rows][:, None], 0.0, self.factor[rows] * found)


def _moments(rows: Tensor, labels: Tensor, n_classes: int) -> _Moments:
    """Of unit features (n, v, d), a block at a time."""
    d = rows.shape[2]
    sums, scatter = torch.zeros(n_classes, d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    square = 0.0
    for block, own in zip(rows.split(BLOCK), labels.split(BLOCK), strict=True):
        exact = block.double()
        sums.index_add_(0, own, exact.sum(dim=1))
        flat = exact.flatten(0, 1)
        scatter.addmm_(flat.T, flat)
        square += float(flat.square().sum())
    counts = torch.bincount(labels, minlength=n_classes).double() * rows.shape[1]
    means = sums / counts.clamp_min(1)[:, None]
    scatter -= sums.T @ means
    means[counts == 0] = means[counts > 0].mean(dim=0)
    return _Moments(scatter, sums.sum(dim=0), square, means, counts)


def _mean_covariance(rows: Tensor, labels: Tensor, moments: _Moments) -> Tensor:
    """(d, d) of the covariances of the classes, each by its own rows less one; classes with one row are left out."""
    d, spread = rows.shape[2], moments.counts > 1
    share = torch.where(spread, 1 / (moments.counts - 1).clamp_min(1), 0.0) / spread.sum().clamp_min(1)
    covariance = torch.zeros(d, d, dtype=torch.float64)
    for block, own in zip(rows.split(BLOCK), labels.split(BLOCK), strict=True):
        # About the means row by row: a difference of sums would leave noise where the covariance is zero.
        out = (block.double() - moments.means[own][:, None]) * share[own].sqrt()[:, None, None]
        covariance.addmm_(out.flatten(0, 1).T, out.flatten(0, 1))
    return covariance
