"""A Gaussian for every class: where its pictures lie, by its shots and its text, and by its text alone without shots.

With x of unit length, mu_k the mean of class k's n_k shots and t_k its text, both about the means over classes:

    mu_k ~ N(t_k A, R / d I),    x | k ~ N(mu_k, W / d I)

A is one linear map for all classes, g I + D: the scaled identity that fits best, and a D by ridge regression of what is
left. So W + R is the squared distance that a picture is to be expected at where its class has no shots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clipadapter.functional import unit

SMALLEST = 0.01
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
        spread = max((max(within, 0.0) + SHARE * wrong) / (float(n.sum()) - len(n) + 1), SMALLEST)
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
