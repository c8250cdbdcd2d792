"""Gaussian models of classes.

Two models are here:

- One covariance that all classes share, as in linear discriminant analysis. `GaussianMoments` are the sums it is made
  of, `LeaveOneOutGaussians` its logits for each shot without that shot, and `gaussians_from_text` makes it for classes
  that have text and no images. The head `gda` uses these.
- `ClassGaussians`: an isotropic Gaussian for each class, whose mean is shrunk from the mean of its shots towards a
  prediction from its text. The head `afa` uses it.

Letters: n shots, v views of each, c classes, d feature width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import Self

from clipadapter.functional import unit

SHOTS_PER_BLOCK = 1024
"""Shots whose features are converted to float64 at a time."""
MIN_TRACE = 1e-12
"""Trace of a covariance below which there is no variance; the pseudo-inverse of the released code is then zero."""
TEXT_COPIES = 16
"""How many images the text of a class without images counts as, as published."""
MIN_WITHIN_VARIANCE = 0.01
"""Least W of `ClassGaussians`, in squared lengths of features of unit length."""
MIN_TEXT_VARIANCE_RATIO = 0.1
"""Least R / W of `ClassGaussians`: with few classes, all means may lie where text predicts them by chance."""
WITHIN_SHARE = 0.7
"""W / (W + R), measured under `lite` and CLIP. It is the prior for W: one shot per class shows no variance."""


@dataclass
class GaussianMoments:
    """Sums over unit features that a shared covariance is made of, in float64.

    Args:
        scatter: (d, d) about the class means.
        total: (d,) sum of all rows.
        squared_norms: sum of the squared lengths of all rows.
        means: (c, d); a class without a shot has the mean of the other classes' means.
        counts: (c,) rows of each class, views included.
    """

    scatter: Tensor
    total: Tensor
    squared_norms: float
    means: Tensor
    counts: Tensor

    @classmethod
    def from_sums(cls, products: Tensor, sums: Tensor, counts: Tensor) -> Self:
        """From the sums that `accumulate` adds to.

        Args:
            products: (d, d) sum of x' x over all rows x. The upper triangle is not read, except that the upper
                triangle of the scatter is made of it.
            sums: (c, d) of the rows of each class.
            counts: (c,) rows of each class.
        """
        present = counts > 0
        means = sums / counts.clamp_min(1)[:, None]
        scatter = products - sums.T @ means
        means[~present] = means[present].mean(dim=0)
        return cls(scatter, sums.sum(dim=0), float(products.trace()), means, counts.double())

    @classmethod
    def from_rows(cls, rows: Tensor, labels: Tensor, n_classes: int) -> Self:
        """From unit features (n, v, d) and their class positions (n,)."""
        d = rows.shape[2]
        products, sums = torch.zeros(d, d, dtype=torch.float64), torch.zeros(n_classes, d, dtype=torch.float64)
        accumulate(products, sums, rows, labels)
        return cls.from_sums(products, sums, torch.bincount(labels, minlength=n_classes) * rows.shape[1])


def accumulate(products: Tensor, sums: Tensor, rows: Tensor, labels: Tensor, sign: int = 1) -> None:
    """Add unit features to the sums, or subtract them, in place.

    Args:
        products: (d, d) sum of x' x.
        sums: (c, d) sums by class.
        rows: (n, v, d).
        labels: (n,) class positions.
        sign: 1 to add, -1 to subtract.
    """
    for block, block_labels in zip(rows.split(SHOTS_PER_BLOCK), labels.split(SHOTS_PER_BLOCK), strict=True):
        exact = block.double()
        sums.index_add_(0, block_labels, exact.sum(dim=1), alpha=sign)
        flat = exact.flatten(0, 1)
        products.addmm_(flat.T, flat, alpha=sign)


def average_class_covariance(rows: Tensor, labels: Tensor, moments: GaussianMoments) -> Tensor:
    """(d, d) mean of the unbiased covariances of the classes; classes with a single row are left out."""
    d, has_covariance = rows.shape[2], moments.counts > 1
    weights = torch.where(has_covariance, 1 / (moments.counts - 1).clamp_min(1), 0.0)
    weights = weights / has_covariance.sum().clamp_min(1)  # (c,)
    covariance = torch.zeros(d, d, dtype=torch.float64)
    for block, block_labels in zip(rows.split(SHOTS_PER_BLOCK), labels.split(SHOTS_PER_BLOCK), strict=True):
        # Subtract the mean from each row: a difference of sums would leave rounding noise where the covariance is zero.
        centred = (block.double() - moments.means[block_labels][:, None]) * weights[block_labels].sqrt()[:, None, None]
        covariance.addmm_(centred.flatten(0, 1).T, centred.flatten(0, 1))
    return covariance


Shrink = Callable[[Tensor, Tensor, float, Tensor | float, tuple[float, int]], tuple[Tensor, Tensor | float]]
"""A rule of shrinkage.

Arguments: trace of the scatter about the class means, trace of the scatter about the grand mean, number of rows, number
of classes that have a shot, (views per shot, feature width). Returns: what is added to the diagonal of the scatter, and
the factor of the inverse.
"""


class LeaveOneOutGaussians:
    """Logits of every shot under the moments of all other shots, in closed form.

    Let Z be the v rows of a shot about the mean of its class, and m the rows of the class that remain without them. The
    scatter loses Z, and the mean moves by the sum of Z over m: C - Z'(I + 11'/m)Z, in short C - U'U. In the eigenbasis
    of C the shrunk scatter D^-1 is diagonal whatever its trace. So Woodbury's identity gives the inverse without the
    shot as D + D U'(I - U D U')^-1 U D, and no d x d matrix is factorised for each shot.

    Args:
        shrink: rule of shrinkage.
        rows: (n, v, e) unit features, float64, in a basis of their span.
        labels: (n,).
        n_classes: c.
        d: feature width.
    """

    def __init__(self, shrink: Shrink, rows: Tensor, labels: Tensor, n_classes: int, d: int) -> None:
        moments, views = GaussianMoments.from_rows(rows, labels, n_classes), rows.shape[1]
        eigenvalues, basis = torch.linalg.eigh(moments.scatter)
        rows, means = rows @ basis, moments.means @ basis
        self.labels = labels
        self.x, self.means, self.is_empty_class = rows[:, 0], means, moments.counts == 0
        remaining = moments.counts[labels] - views  # (n,) m: rows of the shot's class without the shot
        is_only_shot = remaining == 0
        deviation = rows.mean(dim=1) - means[labels]  # (n, e)
        ratio = torch.where(is_only_shot, 0.0, views / remaining.clamp_min(1))
        centred = rows - means[labels][:, None]  # Z
        # I + root 11' is the square root of I + 11'/m.
        root = torch.where(is_only_shot, 0.0, ((1 + ratio).sqrt() - 1) / views)
        self.update = centred + root[:, None, None] * centred.sum(dim=1, keepdim=True)  # U, (n, v, e)
        present = (~self.is_empty_class).sum() - is_only_shot.double()
        moved = means[labels] - ratio[:, None] * deviation
        sum_of_means = (
            means[~self.is_empty_class].sum(dim=0) - means[labels] + torch.where(is_only_shot[:, None], 0.0, moved)
        )
        self.empty_class_mean = sum_of_means / present.clamp_min(1)[:, None]  # (n, e)
        self.own_mean = torch.where(is_only_shot[:, None], self.empty_class_mean, moved)  # (n, e)
        n_rows = float(moments.counts.sum()) - views
        total = moments.total @ basis - rows.sum(dim=1)
        about_grand_mean = moments.squared_norms - rows.square().sum(dim=(1, 2)) - total.square().sum(dim=1) / n_rows
        about_class_means = moments.scatter.trace() - self.update.square().sum(dim=(1, 2))
        trace, factor = shrink(about_class_means, about_grand_mean, n_rows, present, (views, d))
        self.has_no_variance = trace <= MIN_TRACE
        self.factor = torch.as_tensor(factor).expand(len(rows))[:, None]
        added = torch.where(self.has_no_variance, 1.0, trace)[:, None]
        self.inverse = 1.0 / (eigenvalues.clamp_min(0) + added)  # D, (n, e), diagonal

    def logits(self) -> Tensor:
        """(n, c)."""
        blocks = [self._block_logits(rows) for rows in torch.arange(len(self.x)).split(SHOTS_PER_BLOCK)]
        return torch.cat(blocks) - math.log(len(self.means))

    def _block_logits(self, rows: Tensor) -> Tensor:
        """Logits of shots (b,) up to the log prior."""
        inverse, update, x = self.inverse[rows], self.update[rows], self.x[rows]
        core = torch.eye(update.shape[1], dtype=update.dtype) - (update * inverse[:, None]) @ update.transpose(1, 2)
        root = torch.linalg.cholesky(core)
        # With L L' = I - U D U' and V = L^-1 U D, the inverse is P = D + V'V.
        correction = torch.linalg.solve_triangular(root, update * inverse[:, None], upper=False)  # V, (b, v, e)
        corrected_x = torch.einsum("bue,be->bu", correction, x)

        def discriminant(x_D_mean: Tensor, mean_D_mean: Tensor, corrected_mean: Tensor) -> Tensor:
            """Gives x P mu - mu P mu / 2 from x D mu and mu D mu, both (b, k), and V mu, (b, v, k)."""
            cross = torch.einsum("bu,buk->bk", corrected_x, corrected_mean)
            return x_D_mean + cross - 0.5 * (mean_D_mean + corrected_mean.square().sum(dim=1))

        def discriminant_of_row_means(mean: Tensor) -> Tensor:
            """The same for one mean per row, (b, e)."""
            D_mean = inverse * mean
            return discriminant((x * D_mean).sum(1, True), (mean * D_mean).sum(1, True), correction @ mean[:, :, None])[
                :, 0
            ]

        logits = discriminant((x * inverse) @ self.means.T, inverse @ self.means.T.square(), correction @ self.means.T)
        logits[:, self.is_empty_class] = discriminant_of_row_means(self.empty_class_mean[rows])[:, None]
        logits[torch.arange(len(rows)), self.labels[rows]] = discriminant_of_row_means(self.own_mean[rows])
        return torch.where(self.has_no_variance[rows][:, None], 0.0, self.factor[rows] * logits)


def gaussians_from_text(views: Tensor, text: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Means and shared precision of classes that have text and no images (GDA's base-to-new mode).

    The mean of a class is that of the views nearest to its text and of copies of the text. Its covariance is that of
    these views about the text. The precision is the mean of the classes' precisions, each shrunk as by `Gda.official`.

    Args:
        views: (r, d) unit features of images of other classes.
        text: (c, d) unit class text, float64.
        neighbours: k, views to take for each class; all views if there are fewer.

    Returns:
        Means (c, d) and precision (d, d), float64.

    >>> gaussians_from_text(torch.eye(2), torch.eye(2).double(), neighbours=1)[0]
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float64)
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


@dataclass(frozen=True)
class ClassGaussians:
    """An isotropic Gaussian for each class, from its shots and its text, or from its text alone; float64.

    With x of unit length, mu_k the mean of class k and t_k its text, both about their means over the classes:

        mu_k ~ N(t_k A, R / d I),    x | k ~ N(mu_k, W / d I)

    A is one linear map for all classes, g I + D: g is the scale that fits best, D a ridge regression of the residual.
    The mean of class k given its n_k shots is their mean, weighted by n_k R / (n_k R + W), and the prediction t_k A,
    weighted by the rest. W + R is the expected squared distance of an image from t_k A where the class has no shots.

    Args:
        counts: (c,) shots.
        sums: (c, d) of their unit features.
        centre: (d,) mean of the means of classes with shots.
        text_means: (c, d) t_k A, means about the centre that text predicts. That of a class with shots is predicted by
            a map which the other classes were fitted to.
        within_variance: W.
        text_variance: R.
    """

    counts: Tensor
    sums: Tensor
    centre: Tensor
    text_means: Tensor
    within_variance: float
    text_variance: float

    @classmethod
    def fit(cls, counts: Tensor, sums: Tensor, text: Tensor, ridge: float) -> ClassGaussians:
        """From sums of shots and class text.

        Args:
            counts: (c,) shots of each class; at least one class has a shot.
            sums: (c, d) of their unit features, views averaged.
            text: (c, d) unit class text.
            ridge: of the map from text to means; towards infinity only g is fitted.

        >>> counts, text = torch.tensor([2, 2, 0]), torch.eye(3, dtype=torch.float64)
        >>> ClassGaussians.fit(counts, 2 * text * (counts > 0)[:, None], text, ridge=1.0).centre
        tensor([0.5000, 0.5000, 0.0000], dtype=torch.float64)
        """
        with_shots = torch.nonzero(counts).flatten()
        n = counts[with_shots].double()
        means = sums[with_shots] / n[:, None]
        within_scatter = float(n.sum() - (n * means.square().sum(dim=1)).sum())
        centre = means.mean(dim=0)
        centred_means, centred_text = means - centre, unit(text - text.mean(dim=0))
        residuals, text_means = _predict_means(centred_text, centred_text[with_shots], centred_means, ridge)
        error = float(residuals.square().sum(dim=1).mean())
        degrees = float(n.sum()) - len(n) + 1
        within_variance = max((max(within_scatter, 0.0) + WITHIN_SHARE * error) / degrees, MIN_WITHIN_VARIANCE)
        # The error of a predicted mean is R, plus the W / n_k by which the mean of n_k shots itself is off.
        text_variance = max(error - float((within_variance / n).mean()), MIN_TEXT_VARIANCE_RATIO * within_variance)
        text_means[with_shots] = centred_means - residuals
        return cls(counts, sums, centre, text_means, within_variance, text_variance)

    @property
    def shot_weights(self) -> Tensor:
        """(c,) weight of the mean of the shots in a class's mean, 0 to 1; text has the rest."""
        return self._shot_weights(self.counts)

    def estimates(self) -> tuple[Tensor, Tensor]:
        """Mean (c, d) and variance (c,) of every class."""
        return self._estimates(self.counts, self.sums, self.text_means)

    def leave_one_out(self, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (b, d), variance (b,) and weight of the shots (b,) of each shot's class without that shot.

        Args:
            rows: (b, d) unit features of shots that are among the sums.
            labels: (b,) class positions.
        """
        counts = self.counts[labels] - 1
        return *self._estimates(counts, self.sums[labels] - rows, self.text_means[labels]), self._shot_weights(counts)

    def _shot_weights(self, counts: Tensor) -> Tensor:
        return counts * self.text_variance / (counts * self.text_variance + self.within_variance)

    def _estimates(self, counts: Tensor, sums: Tensor, text_means: Tensor) -> tuple[Tensor, Tensor]:
        weights = self._shot_weights(counts.double())
        shot_means = sums / counts.clamp_min(1)[:, None]
        means = weights[:, None] * shot_means + (1 - weights)[:, None] * (text_means + self.centre)
        return means, self.within_variance + self.text_variance * (1 - weights)


def linear_log_density(means: Tensor, variances: Tensor, dimensions: float) -> tuple[Tensor, Tensor]:
    """Log-densities of x of unit length under isotropic Gaussians, as a linear map, up to a constant.

    Args:
        means: (c, d).
        variances: (c,) summed over the dimensions.
        dimensions: effective number of dimensions; features vary in fewer directions than they are wide.

    Returns:
        Weight (c, d) and bias (c,).

    >>> import math
    >>> x, mean = torch.tensor([0.6, 0.8]), torch.tensor([[0.5, 0.5]])
    >>> weight, bias = linear_log_density(mean, torch.tensor([0.3]), dimensions=6.0)
    >>> round(float(weight @ x + bias), 4), round(-3 * (math.log(0.3) + (0.1**2 + 0.3**2) / 0.3), 4)
    (2.6119, 2.6119)
    """
    weight = dimensions * means / variances[:, None]
    return weight, -0.5 * dimensions * (variances.log() + (1 + means.square().sum(dim=1)) / variances)


def _predict_means(text: Tensor, text_with_shots: Tensor, means: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Fit the map A from text to class means.

    Args:
        text: (c, d) of all classes.
        text_with_shots: (k, d) text of the classes with shots.
        means: (k, d) their means.
        ridge: see `ClassGaussians.fit`.

    Returns:
        (k, d) leave-one-class-out residuals, and (c, d) predictions of the map that all k classes were fitted to.
    """
    g = (text_with_shots * means).sum() / text_with_shots.square().sum().clamp_min(1e-12)
    target = means - g * text_with_shots
    gram = text_with_shots @ text_with_shots.T
    inverse = torch.linalg.inv(gram + ridge * torch.eye(len(text_with_shots), dtype=gram.dtype))
    hat = gram @ inverse  # the hat matrix: leave-one-out residuals are those of the fit over 1 - its diagonal
    residuals = (target - hat @ target) / (1 - hat.diagonal())[:, None]
    return residuals, g * text + text @ text_with_shots.T @ (inverse @ target)
