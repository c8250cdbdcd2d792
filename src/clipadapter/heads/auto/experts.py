"""The simple classifiers that the automatic head mixes; each is one linear map, or one kernel sum, on centred features.

All of them see the classes that have shots, and say zero on average over these, so that a class without shots is left
to its text. None takes from unequal shots that some classes are rarer: how many pictures a person has of a class says
little about how often it will be asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clipadapter.functional import unit
from clipadapter.heads.softmax_regression import Regression

RIDGE = 0.1
KERNEL_RIDGE = 0.03
MOST_SHOTS = 4000
"""The kernel expert keeps every shot; with more shots it is left out."""
TOL = 1e-3
MAX_ITER = 100


@dataclass(frozen=True)
class Seen:
    """Shots as experts see them.

    Args:
        z: (n, d) features, centred, unit rows.
        labels: (n,) positions among the c classes that have shots.
        n_classes: c.
        zero_shot: (n, c) zero-shot logits of unit spread, or None without class text.
        trust: what zero-shot's logits are multiplied by to be calibrated.
        gram: (n, n) products of the rows of z, from which parts of the shots take theirs; None to leave that out.
    """

    z: Tensor
    labels: Tensor
    n_classes: int
    zero_shot: Tensor | None
    trust: float
    gram: Tensor | None = None

    def take(self, rows: Tensor) -> Seen:
        """Some of the shots; every class must keep one."""
        zero_shot = None if self.zero_shot is None else self.zero_shot[rows]
        return Seen(self.z[rows], self.labels[rows], self.n_classes, zero_shot, self.trust, self.products(rows, rows))

    def products(self, rows: Tensor, others: Tensor) -> Tensor | None:
        """What the Gram matrix has of these rows and columns."""
        return None if self.gram is None else self.gram.index_select(0, rows).index_select(1, others)

    def gram_matrix(self) -> Tensor:
        """(n, n), a new tensor."""
        return self.z @ self.z.T if self.gram is None else self.gram.clone()

    @property
    def work(self) -> int:
        """Multiplications of one pass over the shots."""
        return self.z.numel() * self.n_classes

    @property
    def counts(self) -> Tensor:
        """(c,) shots of each class."""
        return torch.bincount(self.labels, minlength=self.n_classes).to(self.z.dtype)

    @property
    def shares(self) -> Tensor:
        """(n,) weights of the shots that give every class the same, of mean one."""
        return len(self.labels) / (self.n_classes * self.counts[self.labels])

    @property
    def onehot(self) -> Tensor:
        """(n, c)."""
        return torch.nn.functional.one_hot(self.labels, self.n_classes).to(self.z.dtype)


@dataclass(frozen=True)
class Expert:
    """A fitted expert: ``text * zero_shot + z W' + bias + k(z, shots) dual``.

    Args:
        weight: W, (c, d).
        bias: (c,).
        text: weight of the zero-shot logits in it.
        dual: (n, c) coefficients of the kernel sum, or None.
        shots: (n, d) what the kernel compares with, or None.
    """

    weight: Tensor
    bias: Tensor
    text: float = 0.0
    dual: Tensor | None = None
    shots: Tensor | None = None

    def logits(self, z: Tensor, zero_shot: Tensor | None, products: Tensor | None = None) -> Tensor:
        """(m, c); products (m, n) of z and the shots are made if not given."""
        found = z @ self.weight.T + self.bias
        if self.dual is not None and self.shots is not None:
            found = found + kernel(z @ self.shots.T if products is None else products) @ self.dual
        return found if zero_shot is None or not self.text else found + self.text * zero_shot

    def centred(self) -> Expert:
        """The same, saying zero on average over the classes."""
        dual = None if self.dual is None else self.dual - self.dual.mean(dim=1, keepdim=True)
        return Expert(self.weight - self.weight.mean(dim=0), self.bias - self.bias.mean(), self.text, dual, self.shots)


def kernel(products: Tensor) -> Tensor:
    """(m, n) Gaussian kernel of unit rows, ``exp(cos - 1)``, from their products."""
    return (products - 1).exp_()


def solve(matrix: Tensor, right: Tensor, ridge: Tensor | float) -> Tensor:
    """``(matrix + diag(ridge))^-1 right`` of a symmetric matrix with no negative eigenvalue, which is used up."""
    matrix.diagonal().add_(ridge)
    return torch.cholesky_solve(right, torch.linalg.cholesky(matrix))


def ridge(seen: Seen) -> Expert:
    """Ridge regression onto the one-hot labels, in the smaller of its two forms."""
    z, target, shares = seen.z, seen.onehot - 1 / seen.n_classes, seen.shares
    if len(z) < z.shape[1]:
        weight = z.T @ solve(seen.gram_matrix(), target, RIDGE / shares)
    else:
        heavy = z.T * shares
        weight = solve(heavy @ z, heavy @ target, RIDGE)
    return Expert(weight.T, z.new_zeros(seen.n_classes))


def prototype(seen: Seen) -> Expert:
    """Cosine to the class means."""
    return Expert(unit(seen.onehot.T @ seen.z), seen.z.new_zeros(seen.n_classes))


def gda(seen: Seen) -> Expert:
    """Gaussian discriminant analysis with one covariance, shrunk by its trace (Wang et al., ICLR 2024)."""
    z, (n, d) = seen.z, seen.z.shape
    means = seen.onehot.T @ z / seen.counts[:, None]
    rest = z - means[seen.labels]
    shrinkage = float(rest.square().sum()) / max(n - 1, 1)
    if shrinkage < 1e-6:  # one shot a class: no spread is to be seen
        shrinkage = float(z.square().sum()) / max(n - 1, 1) or 1.0
    if n < d:
        # The products of what is left without the means, from those of the shots.
        across, among = means @ z.T, (means @ means.T)[:, seen.labels]
        inner = seen.gram_matrix().sub_(across[seen.labels]).sub_((across - among)[seen.labels].T)
        weight = d * (means - solve(inner, (across - among).T, shrinkage).T @ rest) / shrinkage
    else:
        weight = d * solve(rest.T @ rest, means.T, shrinkage).T
    return Expert(weight, -0.5 * (weight * means).sum(dim=1))


def kernel_ridge(seen: Seen) -> Expert:
    """Ridge regression with a Gaussian kernel, for classes that no plane separates."""
    target = seen.onehot - 1 / seen.n_classes
    dual = solve(kernel(seen.gram_matrix()), target, KERNEL_RIDGE / seen.shares)
    nothing = seen.z.new_zeros(seen.n_classes, seen.z.shape[1])
    return Expert(nothing, nothing[:, 0], dual=dual, shots=seen.z)


def regression(seen: Seen, C: float, text: float = 0.0) -> Expert:
    """Logistic regression of what the text leaves unexplained; without text, a linear probe.

    The logarithm of the counts is added while training, so that it need not be learned (balanced softmax, Ren et al.,
    NeurIPS 2020).
    """
    offset = seen.counts.log().expand(len(seen.z), -1)
    if seen.zero_shot is not None and text:
        offset = offset + text * seen.zero_shot
    model = Regression(seen.z, seen.labels, offset, unit_intercept=text > 0, gram=seen.gram)
    model.solve(C, TOL, MAX_ITER)
    return Expert(*model.answer(seen.n_classes), text)


EXPERTS: dict[str, Callable[[Seen], Expert]] = {
    "ridge": ridge,
    "prototype": prototype,
    "gda": gda,
    "kernel-ridge": kernel_ridge,
    "probe": lambda seen: regression(seen, 200.0, seen.trust),
    "free-probe": lambda seen: regression(seen, 1000.0),
}
"""By name, in the order of the mixing weights."""
