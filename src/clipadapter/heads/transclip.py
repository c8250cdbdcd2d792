"""TransCLIP: a Gaussian mixture over the unlabelled images, regularised by class text and by a neighbour graph.

Paper: Zanella et al., NeurIPS 2024, https://arxiv.org/abs/2406.01837. Written from its formulas, without reading the
released code. `TransClip.official` is the zero-shot mode, which uses no labels.
Differs from the paper in the few-shot mode: a shot counts as ``support_weight`` unlabelled images, whatever their
numbers, where the paper chooses that weight on a validation set. Predictions for images that were not passed to `fit`
are ours too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from scipy.sparse import csr_array
from torch import Tensor

from clipadapter.functional import unit
from clipadapter.heads.base import Head, SupportSet
from clipadapter.heads.class_frequencies import warn_if_few_classes
from clipadapter.heads.neighbour_graph import (
    adjacency,
    are_all_found,
    find_same_image,
    nearest_neighbours,
    neighbour_assignments,
)
from clipadapter.heads.parameters import NOT_NEGATIVE, at_least
from clipadapter.heads.registry import register_head
from clipadapter.heads.ss_text_u import estimate_pool_frequencies

MIN_VARIANCE_RATIO = 1e-4
"""Least variance of a coordinate relative to that of unit rows, so that a constant coordinate does not dominate."""


@register_head(
    "transclip",
    paper="https://arxiv.org/abs/2406.01837",
    fidelity="partial: The zero-shot mode, `TransClip.official`, gives the outputs of the authors' code. In the "
    "few-shot mode the weight of a shot is ours, and so are the answers for new pictures.",
)
@dataclass(eq=False, repr=False, kw_only=True)
class TransClip(Head):
    """Transductive: one Gaussian per class over the unlabelled images, with a zero-shot prior and a neighbour graph.

    The logarithm of an assignment is, up to a constant, ``prior * log zero_shot + likelihood * log density +
    smoothness * neighbours``. The last term is the mean assignment of the image's nearest neighbours and of the images
    whose nearest neighbour it is, weighted by their cosines. Assignments, centres and the variance that all classes
    share are updated in turn.

    An image that was among the unlabelled ones gets its final assignment. Any other image gets one update of its own,
    with neighbours among the unlabelled images and the shots; the mixture stays as it is.

    Args:
        prior: exponent of the zero-shot probabilities; the paper's is 0.5 with shots and 1 without.
        support_weight: number of unlabelled images that a shot counts as in centres and variance; 0 ignores the shots.
        likelihood: weight of the Gaussian log-density.
        smoothness: weight of the neighbours' assignments.
        neighbours: number of neighbours of each image.
        confident: number of images with the highest zero-shot probability from which a class without shots starts.
        updates: number of updates of centres and variance.
        inner: number of updates of the assignments between them.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.9], [0.9, 1.0]], logit_scale=10.0)
    >>> pictures = [[9.0, 1.0], [8.0, 2.0], [7.0, 6.0], [1.0, 9.0], [2.0, 8.0]]
    >>> head = TransClip().fit([[9.0, 0.0], [0.0, 9.0]], ["cat", "dog"], text=text, unlabelled=pictures)
    >>> head.predict(pictures)
    array(['cat', 'cat', 'cat', 'dog', 'dog'], dtype='<U3')
    """

    needs_text = True
    transductive = True
    picture_features = ("rows_",)
    recipes = {"official": {"prior": 1.0, "support_weight": 0.0}}
    """The zero-shot mode of the released code: the shots are not used."""

    prior: float = 0.5
    support_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    likelihood: float = 0.02
    smoothness: float = 1.0
    neighbours: Annotated[int, at_least(1)] = 3
    confident: Annotated[int, at_least(1)] = 8
    updates: Annotated[int, NOT_NEGATIVE] = 10
    inner: Annotated[int, NOT_NEGATIVE] = 5

    def _fit(self, shots: SupportSet) -> None:
        assert shots.text is not None and shots.unlabelled is not None
        warn_if_few_classes(estimate_pool_frequencies(shots), "transclip")
        used = slice(None) if self.support_weight else slice(0)
        onehot = shots.onehot[used]
        self.weight_, self.scale_, self.labels_ = shots.text, shots.scale, shots.labels[used]
        queries = unit(shots.unlabelled)  # (u, d)
        self.rows_ = torch.cat([queries, unit(shots.X[used])])
        graph = self._graph(len(queries))
        prior = self._prior(queries)
        assigned = self._zero_shot(queries).softmax(dim=1)
        self.centres_ = self._initial_centres(queries, assigned, onehot)  # (c, d)
        self.variance_ = torch.full_like(queries[0], 1 / queries.shape[1])
        for update in range(self.updates + 1):
            unary = prior + self._density(queries)
            for _ in range(max(1, self.inner)):
                from_neighbours = torch.as_tensor(graph @ torch.cat([assigned, onehot]).cpu().numpy())
                self.answers_ = from_neighbours.add_(unary)  # (u, c)
                assigned = self.answers_.softmax(dim=1)
            if update < self.updates:
                self._update_mixture(queries, assigned, onehot)

    def _logits(self, X: Tensor) -> Tensor:
        x = unit(X)
        rows, stored_logits = self.rows_.to(x.dtype), self.answers_.to(x.dtype)
        stored_rows = find_same_image(x, rows[: len(stored_logits)])
        if are_all_found(stored_rows):
            return stored_logits[stored_rows]
        from_neighbours = neighbour_assignments(x, rows, stored_logits, self.labels_, self.neighbours)
        logits = self._prior(x) + self._density(x) + self.smoothness / self.neighbours * from_neighbours
        return torch.where((stored_rows >= 0)[:, None], stored_logits[stored_rows.clamp_min(0)], logits)

    def _graph(self, u: int) -> csr_array:
        """(u, u + n) symmetric neighbour graph, the weights of other assignments in that of each unlabelled image."""
        n = len(self.rows_)
        directed = adjacency(*nearest_neighbours(self.rows_, self.rows_, self.neighbours, exclude_self=True), n)
        # Divided by the parameter, not by the number of neighbours: an image with fewer depends less on them.
        symmetric: csr_array = ((directed + directed.T).tocsr() * (self.smoothness / (2 * self.neighbours)))[:u]
        return symmetric.astype(directed.dtype)

    def _zero_shot(self, x: Tensor) -> Tensor:
        return self.scale_ * x @ self.weight_.to(x.dtype).T

    def _prior(self, x: Tensor) -> Tensor:
        """(m, c) weighted logarithm of the zero-shot probabilities."""
        return self.prior * self._zero_shot(x).log_softmax(dim=1)

    def _density(self, x: Tensor) -> Tensor:
        """(m, c) weighted log-density of the Gaussians, up to terms that are equal for all classes."""
        centres, variance = self.centres_.to(x.dtype), self.variance_.to(x.dtype)
        scaled = centres / variance
        return self.likelihood * (x @ scaled.T - 0.5 * (scaled * centres).sum(dim=1))

    def _initial_centres(self, queries: Tensor, zero_shot: Tensor, onehot: Tensor) -> Tensor:
        """(c, d): mean of the shots of a class; without shots, that of its most confident zero-shot images."""
        probabilities, indices = zero_shot.topk(min(self.confident, len(queries)), dim=0)  # (s, c)
        from_zero_shot = torch.einsum("sc,scd->cd", probabilities, queries[indices])
        from_shots = onehot.T @ self.rows_[len(queries) :]
        return unit(torch.where(onehot.sum(dim=0)[:, None] > 0, from_shots, from_zero_shot))

    def _update_mixture(self, queries: Tensor, assigned: Tensor, onehot: Tensor) -> None:
        """Set centres (c, d) and variance (d,) from assignments (u, c) and labels."""
        shots = self.rows_[len(queries) :]
        sums = assigned.T @ queries + self.support_weight * onehot.T @ shots  # (c, d)
        counts = assigned.sum(dim=0) + self.support_weight * onehot.sum(dim=0)  # (c,)
        self.centres_ = unit(sums)
        # sum of z (x - mu)^2, multiplied out, so that no (u, c, d) tensor is needed
        squares = queries.square().sum(dim=0) + self.support_weight * shots.square().sum(dim=0)
        spread = squares - 2 * (self.centres_ * sums).sum(dim=0) + counts @ self.centres_.square()
        self.variance_ = (spread / counts.sum()).clamp_min(MIN_VARIANCE_RATIO / queries.shape[1])
