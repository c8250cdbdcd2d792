"""Gaussian models of classes: with one covariance for all (GDA), and one mean each from shots and text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import Self

from clipadapter.functional import unit

BLOCK = 1024


@dataclass
class Moments:
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

    @classmethod
    def of(cls, products: Tensor, sums: Tensor, counts: Tensor) -> Self:
        """From products of all rows x, x' x summed (d, d), sums (c, d) and counts (c,) of each class's rows.

        The upper half of the products may be anything: that of the scatter then is, too.
        """
        there = counts > 0
        means = sums / counts.clamp_min(1)[:, None]
        scatter = products - sums.T @ means
        means[~there] = means[there].mean(dim=0)
        return cls(scatter, sums.sum(dim=0), float(products.trace()), means, counts.double())


def add_up(products: Tensor, sums: Tensor, rows: Tensor, labels: Tensor, sign: int = 1) -> None:
    """Add unit features (n, v, d) to products and sums, or take them out, in place and a block at a time."""
    for block, own in zip(rows.split(BLOCK), labels.split(BLOCK), strict=True):
        exact = block.double()
        sums.index_add_(0, own, exact.sum(dim=1), alpha=sign)
        flat = exact.flatten(0, 1)
        products.addmm_(flat.T, flat, alpha=sign)


def moments_of(rows: Tensor, labels: Tensor, n_classes: int) -> Moments:
    """Of unit features (n, v, d)."""
    d = rows.shape[2]
    products, sums = torch.zeros(d, d, dtype=torch.float64), torch.zeros(n_classes, d, dtype=torch.float64)
    add_up(products, sums, rows, labels)
    return Moments.of(products, sums, torch.bincount(labels, minlength=n_classes) * rows.shape[1])


def mean_covariance(rows: Tensor, labels: Tensor, moments: Moments) -> Tensor:
    """(d, d) of the covariances of the classes, each by its own rows less one; classes with one row are left out."""
    d, spread = rows.shape[2], moments.counts > 1
    share = torch.where(spread, 1 / (moments.counts - 1).clamp_min(1), 0.0) / spread.sum().clamp_min(1)
    covariance = torch.zeros(d, d, dtype=torch.float64)
    for block, own in zip(rows.split(BLOCK), labels.split(BLOCK), strict=True):
        # About the means row by row: a difference of sums would leave noise where the covariance is zero.
        out = (block.double() - moments.means[own][:, None]) * share[own].sqrt()[:, None, None]
        covariance.addmm_(out.flatten(0, 1).T, out.flatten(0, 1))
    return covariance


Shrink = Callable[[Tensor, Tensor, float, Tensor | float, tuple[float, int]], tuple[Tensor, Tensor | float]]


class Downdates:
    """Gaussian logits of every shot under the moments of all other shots.

    Z, the v rows of a shot about the mean of its class, leave the scatter, and that mean moves by their sum over the m
    rows that stay: C - Z'(I + 11'/m)Z, in short C - U'U. In the eigenbasis of C the shrunk scatter D^-1 is diagonal
    whatever its trace, so that Woodbury's identity gives the inverse without the shot, D + D U'(I - U D U')^-1 U D.

    Args:
        shrink: of the trace of the scatter about the class means, that about the grand mean, rows, classes that have
            a shot, and (views, width) to what is added to the diagonal, and the factor of the inverse.
        rows: (n, v, e) unit features, float64, in a basis of their span.
        labels: (n,).
        n_classes: c.
        d: feature width.
    """

    def __init__(self, shrink: Shrink, rows: Tensor, labels: Tensor, n_classes: int, d: int) -> None:
        moments, views = moments_of(rows, labels, n_classes), rows.shape[1]
        values, basis = torch.linalg.eigh(moments.scatter)
        rows, means = rows @ basis, moments.means @ basis
        self.labels = labels
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
        trace, factor = shrink(within, about_mean, rows_left, present, (views, d))
        self.none, self.factor = trace <= SMALLEST, torch.as_tensor(factor).expand(len(rows))[:, None]
        self.inverse = 1.0 / (values.clamp_min(0) + torch.where(self.none, 1.0, trace)[:, None])  # (n, e), diagonal

    def scores(self) -> Tensor:
        """(n, c)."""
        blocks = [self._block(rows) for rows in torch.arange(len(self.x)).split(BLOCK)]
        return torch.cat(blocks) - math.log(len(self.means))

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


SMALLEST = 1e-12
"""Trace below which there is no variance to speak of; the pseudo-inverse of the released code is then zero."""
TEXT_COPIES = 16
"""How many pictures a text stands for, as published."""


def made_up(views: Tensor, text: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Means and shared precision of classes that are known by their text alone.

    A class's mean is that of the views nearest to its text and of copies of the text; its covariance is that of these
    views about the text. The precision is the mean of the classes' own, each shrunk as `Gda.official` does.

    Args:
        views: (r, d) unit features of pictures of other classes.
        text: (c, d) unit class text, float64.
        neighbours: k, views to take for each class; fewer if there are not so many.

    Returns:
        (c, d) and (d, d), float64.

    >>> made_up(torch.eye(2), torch.eye(2).double(), neighbours=1)[0]
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float64)
    """
    (c, d), k = text.shape, min(neighbours, len(views))
    means, precision = torch.empty_like(text), torch.zeros(d, d, dtype=text.dtype)
    for i, own in enumerate(text):
        near = views[(views @ own.to(views.dtype)).topk(k).indices].double()  # (k, d)
        means[i] = (near.sum(dim=0) + TEXT_COPIES * own) / (k + TEXT_COPIES)
        off = near - own
        trace = float(off.square().sum()) / max(k - 1, 1)
        if trace > SMALLEST:
            inner = off @ off.T  # (k, k): Woodbury's identity, as k is mostly far smaller than d
            inner.diagonal().add_(trace)
            precision += (torch.eye(d, dtype=text.dtype) - off.T @ torch.linalg.solve(inner, off)) * (d / (c * trace))
    return means, precision


MIN_VARIANCE = 0.01
"""W at least, in squared lengths of features of unit length."""
LEAST = 0.1
"""R at least, as a share of W: few classes may happen to lie where their text says."""
SHARE = 0.7
"""W as a share of W + R, as it was under `lite` and CLIP: what one shot a class, which has no spread, is taken for."""


@dataclass(frozen=True)
class ClassGaussians:
    """What is known of every class, float64.

    Args:
        counts: (c,) shots.
        sums: (c, d) of their unit features.
        centre: (d,) mean of the means of classes with shots.
        guessed: (c, d) means about the centre that text gives, for a class with shots by the other classes alone.
        spread: W.
        doubt: R.
    """

    counts: Tensor
    sums: Tensor
    centre: Tensor
    guessed: Tensor
    spread: float
    doubt: float

    @classmethod
    def of(cls, counts: Tensor, sums: Tensor, text: Tensor, ridge: float) -> ClassGaussians:
        """From sums of shots and class text.

        Args:
            counts: (c,) shots of each class; some class has one.
            sums: (c, d) of their unit features, views averaged.
            text: (c, d) unit class text.
            ridge: of the map from text to means; towards infinity only g is learned.

        >>> counts, text = torch.tensor([2, 2, 0]), torch.eye(3, dtype=torch.float64)
        >>> ClassGaussians.of(counts, 2 * text * (counts > 0)[:, None], text, ridge=1.0).centre
        tensor([0.5000, 0.5000, 0.0000], dtype=torch.float64)
        """
        learned = torch.nonzero(counts).flatten()
        n = counts[learned].double()
        means = sums[learned] / n[:, None]
        within = float(n.sum() - (n * means.square().sum(dim=1)).sum())
        centre = means.mean(dim=0)
        around, about = means - centre, unit(text - text.mean(dim=0))
        left, guess = _map(about, about[learned], around, ridge)
        wrong = float(left.square().sum(dim=1).mean())
        spread = max((max(within, 0.0) + SHARE * wrong) / (float(n.sum()) - len(n) + 1), MIN_VARIANCE)
        doubt = max(wrong - float((spread / n).mean()), LEAST * spread)
        guess[learned] = around - left
        return cls(counts, sums, centre, guess, spread, doubt)

    @property
    def trust(self) -> Tensor:
        """(c,) how far a class's mean is that of its shots, 0 to 1; the rest is what text says."""
        return self._trust(self.counts)

    def estimates(self) -> tuple[Tensor, Tensor]:
        """Mean (c, d) and variance (c,) of every class."""
        return self._estimates(self.counts, self.sums, self.guessed)

    def without(self, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (b, d), variance (b,) and trust (b,) of the class of each of some shots, had that shot not been there.

        Args:
            rows: (b, d) unit features of shots that are among the sums.
            labels: (b,) class positions.
        """
        counts = self.counts[labels] - 1
        return *self._estimates(counts, self.sums[labels] - rows, self.guessed[labels]), self._trust(counts)

    def _trust(self, counts: Tensor) -> Tensor:
        return counts * self.doubt / (counts * self.doubt + self.spread)

    def _estimates(self, counts: Tensor, sums: Tensor, guessed: Tensor) -> tuple[Tensor, Tensor]:
        trust = self._trust(counts.double())
        shots = sums / counts.clamp_min(1)[:, None]
        means = trust[:, None] * shots + (1 - trust)[:, None] * (guessed + self.centre)
        return means, self.spread + self.doubt * (1 - trust)


def linear(means: Tensor, variances: Tensor, dimensions: float) -> tuple[Tensor, Tensor]:
    """Log-densities of x of unit length under Gaussians, up to a constant, as weight (c, d) and bias (c,).

    Args:
        means: (c, d).
        variances: (c,) summed over the dimensions.
        dimensions: how many these are; features spread in fewer directions than they are wide.

    >>> import math
    >>> x, mean = torch.tensor([0.6, 0.8]), torch.tensor([[0.5, 0.5]])
    >>> weight, bias = linear(mean, torch.tensor([0.3]), dimensions=6.0)
    >>> round(float(weight @ x + bias), 4), round(-3 * (math.log(0.3) + (0.1**2 + 0.3**2) / 0.3), 4)
    (2.6119, 2.6119)
    """
    weight = dimensions * means / variances[:, None]
    return weight, -0.5 * dimensions * (variances.log() + (1 + means.square().sum(dim=1)) / variances)


def _map(text: Tensor, learned: Tensor, means: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """By how much each learned class's mean is missed by the map of the others (k, d), and the guess for all (c, d).

    Args:
        text: (c, d) of all classes.
        learned: (k, d) text of those with shots.
        means: (k, d) theirs.
        ridge: see `ClassGaussians.of`.
    """
    g = (learned * means).sum() / learned.square().sum().clamp_min(1e-12)
    rest = means - g * learned
    alike = learned @ learned.T
    inverse = torch.linalg.inv(alike + ridge * torch.eye(len(learned), dtype=alike.dtype))
    kept = alike @ inverse  # the hat matrix: leave-one-out errors are those of the fit over 1 - its diagonal
    missed = (rest - kept @ rest) / (1 - kept.diagonal())[:, None]
    return missed, g * text + text @ learned.T @ (inverse @ rest)
