"""What a Gaussian a class with one shared covariance says of each shot without it, in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from clipadapter.heads._gda_moments import BLOCK, moments_of
from clipadapter.heads._gda_new_classes import SMALLEST

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
