"""StatA: a Gaussian mixture over pictures without labels; each class is anchored, so that absent classes stay in place.

Paper: Zanella et al., CVPR 2025, https://arxiv.org/abs/2501.03729. Written from its formulas, without reading the
released code. With unit features f_i, unit anchors t_k, zero-shot probabilities y, and a neighbour graph W, each round
updates assignments z, means mu and variances v, where c_k is the number of pictures whose largest z is that of class k:

    log z_i = log y_i + (log density_i + w (W' z + W z)_i) / 50 + constant,  five times
    beta_k  = c_k / (alpha + c_k)
    mu_k    = unit(beta_k unit(mean of f, weighted by z) + (1 - beta_k) t_k)
    v_k     = beta_k (mean of (f - mu_k)^2, weighted by z) + (1 - beta_k) (v_0 + (t_k - mu_k)^2)

`StatA.official` is this method. It uses no shots: anchors are text. Its released code divides v_0, the variance about
the anchors, several times if there are more than 2,500 pictures; here it is the variance.
Ours are, by default:

- Anchors and y come from SS-Text's class vectors of text and shots, with a bias that balances the classes of held-out
  shots. Shots are rows of the graph and of the weighted means.
- y has class frequencies of the pictures: a mean of the estimated ones (`class_frequencies`, at the temperature of
  held-out shots), with weight k / (k + 4) at k shots per class, and of equal ones: few shots give a poor estimate.
- All classes share one variance, and the density has a lower weight: a class of few pictures has no variance of its own
  that can be estimated.
- A picture that was not in the pool gets one update with the final means and variances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from clipadapter.functional import unit
from clipadapter.heads.base import Head, SupportSet
from clipadapter.heads.class_frequencies import estimate_frequencies
from clipadapter.heads.neighbour_graph import (
    adjacency,
    are_all_found,
    find_same_image,
    nearest_neighbours,
    neighbour_assignments,
)
from clipadapter.heads.parameters import NOT_NEGATIVE, OneOf, at_least
from clipadapter.heads.registry import register_head
from clipadapter.heads.ss_text_u import held_out_bias, held_out_calibration, supervised_vectors

ANCHORS = ("shots", "text")
EQUAL_FREQUENCY_SHOTS = 4.0
"""Weight of equal class frequencies beside the estimated ones, in shots per class."""
MIN_VARIANCE_RATIO = 1e-4
"""Least variance of a coordinate relative to that of unit rows, so that a constant coordinate does not dominate."""


@dataclass(frozen=True)
class Mixture:
    """One Gaussian per class with a diagonal covariance.

    Args:
        means: (c, d), unit rows.
        variances: (c, d).
    """

    means: Tensor
    variances: Tensor

    def log_density(self, x: Tensor) -> Tensor:
        """(m, d) unit rows to log-densities (m, c), up to a constant that is equal for all classes."""
        means, precision = self.means.to(x.dtype), 1 / self.variances.to(x.dtype)
        scaled = means * precision
        constant = (scaled * means).sum(dim=1) - precision.log().sum(dim=1)
        return x @ scaled.T - 0.5 * (x.square() @ precision.T + constant)


@dataclass(frozen=True)
class Moments:
    """Weighted sums over the shots of each class.

    Args:
        counts: (c,) sums of the weights.
        sums: (c, d) sums of rows.
        squares: (c, d) sums of their squares.
    """

    counts: Tensor
    sums: Tensor
    squares: Tensor

    @classmethod
    def of_shots(cls, rows: Tensor, labels: Tensor, n_classes: int, weight: float) -> Moments:
        """The moments of rows (n, d), each with the same weight."""
        zeros = rows.new_zeros(n_classes, rows.shape[1])
        counts = torch.bincount(labels, minlength=n_classes).to(rows.dtype)
        sums, squares = zeros.index_add(0, labels, rows), zeros.index_add(0, labels, rows.square())
        return cls(weight * counts, weight * sums, weight * squares)


@register_head(
    "stata",
    version=2,
    paper="https://arxiv.org/abs/2501.03729",
    fidelity="partial: `StatA.official`, which sees no labels, gives the assignments of the authors' code for up to "
    "2,500 pictures. How shots are used is ours, and so are the answers for new pictures.",
)
@dataclass(eq=False, repr=False, kw_only=True)
class StatA(Head):
    """Transductive: one anchored Gaussian per class and a neighbour graph, for pools that may have few of the classes.

    A picture that was among the unlabelled ones gets its final assignment. Any other picture gets one update with the
    final means and variances, those of the last batch, with neighbours among the unlabelled pictures and the shots.

    Args:
        anchors: "shots" for class vectors of text and shots, or "text".
        support_weight: number of unlabelled pictures that a shot counts as in means and variances; 0 leaves the shots
            out of these and of the graph.
        frequencies: estimate the class frequencies of the unlabelled pictures.
        shared_variance: True for one variance for all classes.
        alpha: number of pictures of a class at which its mean is half the anchor, half the pictures.
        soft: count pictures of a class by their assignments, not by the largest one.
        likelihood: weight of the Gaussian log-density; the paper's is 0.02.
        smoothness: weight of the neighbours' assignments.
        neighbours: number of neighbours of each picture.
        updates: number of updates of means and variances.
        inner: number of updates of the assignments between them.
        batch_size: number of unlabelled pictures, in their order, that are assigned at a time, without knowledge of the
            others, as in a stream; 0 for all.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.9], [0.9, 1.0]], logit_scale=10.0)
    >>> pictures = [[9.0, 1.0], [8.0, 2.0], [7.0, 6.0], [1.0, 9.0], [2.0, 8.0]]
    >>> head = StatA().fit([[9.0, 0.0], [0.0, 9.0]], ["cat", "dog"], text=text, unlabelled=pictures)
    >>> head.predict(pictures)
    array(['cat', 'cat', 'cat', 'dog', 'dog'], dtype='<U3')
    """

    needs_text = True
    transductive = True
    picture_features = ("rows_",)
    temperature_prior = (2.4, 1.5, 1.3, 1.1, 1.1)
    recipes = {
        "official": {
            "anchors": "text",
            "support_weight": 0.0,
            "frequencies": False,
            "shared_variance": False,
            "likelihood": 0.02,
        }
    }
    """The paper's method, which uses no shots."""

    anchors: Annotated[str, OneOf(*ANCHORS)] = "shots"
    support_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    frequencies: bool = True
    shared_variance: bool = True
    alpha: Annotated[float, NOT_NEGATIVE] = 1.0
    soft: bool = False
    likelihood: Annotated[float, NOT_NEGATIVE] = 0.002
    smoothness: Annotated[float, NOT_NEGATIVE] = 1.0
    neighbours: Annotated[int, at_least(1)] = 3
    updates: Annotated[int, NOT_NEGATIVE] = 10
    inner: Annotated[int, at_least(1)] = 5
    batch_size: Annotated[int, NOT_NEGATIVE] = 0

    def _fit(self, shots: SupportSet) -> None:
        assert shots.text is not None and shots.unlabelled is not None
        pictures = unit(shots.unlabelled)  # (u, d)
        used = slice(None) if self.support_weight else slice(0)
        support = unit(shots.X[used])
        self.labels_, self.scale_ = shots.labels[used], shots.scale
        with_shots = self.anchors == "shots"
        self.anchors_ = unit(supervised_vectors(shots)) if with_shots else shots.text
        self.bias_ = held_out_bias(shots) if with_shots else shots.text.new_zeros(shots.n_classes)
        temperature, bias = held_out_calibration(shots) if with_shots else (1.0, self.bias_)
        shots_per_class = len(shots.labels) / shots.n_classes
        self.rows_ = torch.cat([pictures, support])
        answers = []
        for batch in pictures.split(self.batch_size or len(pictures)):
            prior = self._prior(batch)
            if self.frequencies:
                weight = shots_per_class / (shots_per_class + EQUAL_FREQUENCY_SHOTS)
                logits = self.scale_ / temperature * batch @ self.anchors_.T
                frequencies = weight * estimate_frequencies(logits, bias) + (1 - weight) / shots.n_classes
                prior = (prior + frequencies.log()).log_softmax(dim=1)
            logits, mixture = self._assign(batch, prior, self.anchors_, support, self.labels_)
            answers.append(logits)
        self.answers_ = torch.cat(answers)  # (u, c)
        self.means_, self.variances_ = mixture.means, mixture.variances

    def _logits(self, X: Tensor) -> Tensor:
        x = unit(X)
        rows, answers = self.rows_.to(x.dtype), self.answers_.to(x.dtype)
        known = find_same_image(x, rows[: len(answers)])
        if are_all_found(known):
            return answers[known]
        from_neighbours = neighbour_assignments(x, rows, answers, self.labels_, self.neighbours)
        density = self.likelihood * Mixture(self.means_, self.variances_).log_density(x)
        logits = self._prior(x) + density + self.smoothness / self.neighbours * from_neighbours
        return torch.where((known >= 0)[:, None], answers[known.clamp_min(0)], logits)

    def _prior(self, x: Tensor) -> Tensor:
        """(m, c) log-probabilities of unit rows by the anchors alone."""
        return (self.scale_ * x @ self.anchors_.to(x.dtype).T + self.bias_.to(x.dtype)).log_softmax(dim=1)

    def _assign(
        self, batch: Tensor, prior: Tensor, anchors: Tensor, support: Tensor, labels: Tensor
    ) -> tuple[Tensor, Mixture]:
        """Final assignments (b, c) of a batch of unit rows as logits, and the mixture."""
        graph, from_shots = self._graph(batch, support, labels, len(anchors))
        labelled = Moments.of_shots(support, labels, len(anchors), self.support_weight)
        assigned = logits = prior.softmax(dim=1)
        start = initial_variance(batch, assigned, anchors)
        mixture = Mixture(anchors, start.expand_as(anchors))
        squares = batch.square()
        for update in range(self.updates + 1):
            unary = prior + self.likelihood * mixture.log_density(batch) + from_shots
            for _ in range(self.inner):
                logits = torch.as_tensor(graph @ assigned.cpu().numpy()).add_(unary)
                assigned = logits.softmax(dim=1)
            if update < self.updates:
                mixture = self._update_mixture(batch, squares, assigned, labelled, anchors, start)
        return logits, mixture

    def _graph(self, batch: Tensor, support: Tensor, labels: Tensor, n_classes: int) -> tuple[csr_array, Tensor]:
        """Symmetric neighbour graph (b, b) of a batch, and what its pictures get from labelled neighbours (b, c)."""
        rows, b = torch.cat([batch, support]), len(batch)
        directed = adjacency(*nearest_neighbours(rows, rows, self.neighbours, exclude_self=True), len(rows))
        # Divided by the parameter, not by the number of neighbours: a picture with fewer depends less on them.
        weight = self.smoothness / (2 * self.neighbours)
        graph = ((directed + directed.T).tocsr() * weight)[:b].astype(directed.dtype)
        ones = np.ones(len(labels), dtype=directed.dtype)
        onehot = csr_array((ones, labels.cpu().numpy(), np.arange(len(labels) + 1)), shape=(len(labels), n_classes))
        return graph[:, :b], torch.as_tensor((graph[:, b:] @ onehot).toarray())

    def _update_mixture(
        self, batch: Tensor, squares: Tensor, assigned: Tensor, labelled: Moments, anchors: Tensor, start: Tensor
    ) -> Mixture:
        """Means and variances by assignments (b, c) of pictures (b, d), their squares, and the moments of shots."""
        largest = torch.bincount(assigned.argmax(dim=1), minlength=assigned.shape[1]).to(assigned.dtype)
        weights = assigned.sum(dim=0)
        counts = (weights if self.soft else largest) + labelled.counts
        beta = (counts / (self.alpha + counts).clamp_min(torch.finfo(batch.dtype).tiny))[:, None]
        # A class without any weight has beta near 0: what its mean is does not matter, but it must be finite.
        total = (weights + labelled.counts).clamp_min(torch.finfo(batch.dtype).tiny)[:, None]
        mean = (assigned.T @ batch + labelled.sums) / total
        mean_square = (assigned.T @ squares + labelled.squares) / total
        means = unit(beta * unit(mean) + (1 - beta) * anchors)
        deviation = mean_square - 2 * means * mean + means.square()
        variances = beta * deviation + (1 - beta) * (start + (anchors - means).square())
        if self.shared_variance:
            variances = ((variances * total).sum(dim=0) / total.sum()).expand_as(variances)
        return Mixture(means, variances.clamp_min(MIN_VARIANCE_RATIO / batch.shape[1]))


def initial_variance(batch: Tensor, assigned: Tensor, anchors: Tensor) -> Tensor:
    """v_0 (d,): variance of rows (b, d) about anchors (c, d), weighted by assignments (b, c).

    >>> initial_variance(torch.eye(2), torch.eye(2), torch.eye(2).flip(0))
    tensor([1., 1.])
    """
    # Squares are multiplied out, so that no (b, c, d) tensor is needed.
    from_sums = -2 * (anchors * (assigned.T @ batch)).sum(dim=0)
    spread = batch.square().sum(dim=0) + from_sums + assigned.sum(dim=0) @ anchors.square()
    return (spread / len(batch)).clamp_min(MIN_VARIANCE_RATIO / batch.shape[1])
