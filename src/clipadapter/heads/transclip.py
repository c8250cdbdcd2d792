"""TransCLIP: a Gaussian mixture over the pictures to be classified, held by class text and by neighbours.

Paper: Zanella et al., NeurIPS 2024, https://arxiv.org/abs/2406.01837. Written from its formulas: no line of the
released code was looked at. `TransClip.official` is its zero-shot mode, which never sees a label.
Differs from the paper in the few-shot mode: a shot weighs as much as ``support_weight`` unlabelled pictures, whatever
their numbers, where the paper finds that weight on a validation set. Ours are also the answers for pictures that were
not there in `fit`.
"""

from __future__ import annotations

from typing import Any

import torch
from scipy.sparse import csr_array
from torch import Tensor
from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.functional import unit
from clipadapter.heads._base import Head, SupportSet
from clipadapter.heads._registry import register_head
from clipadapter.heads.neighbour_graph import edges, nearest, recall

SMALLEST = 1e-4
"""Least variance of a coordinate, as a share of that of unit rows: one that never changes must not decide alone."""


@register_head(
    "transclip",
    paper="https://arxiv.org/abs/2406.01837",
    fidelity="partial: The zero-shot mode, `TransClip.official`, gives the outputs of the authors' code. In the "
    "few-shot mode the weight of a shot is ours, and so are the answers for new pictures.",
)
class TransClip(Head):
    """Transductive: one Gaussian a class over the unlabelled pictures, drawn to zero-shot's answer and to neighbours.

    The logarithm of an assignment is, but for a constant, ``prior * log zero_shot + likelihood * log density +
    smoothness * neighbours``; the last is the mean assignment of those whom the picture chose as neighbours and of
    those who chose it, weighted by their cosines. Assignments, centres and the variance that all classes share are
    updated in turn.

    A picture that was among the unlabelled ones gets the assignment it ended with. Any other gets one update of its
    own, its neighbours looked up among the unlabelled pictures and the shots; the mixture stays as it is.

    Args:
        prior: exponent of zero-shot's probabilities; the paper's is 0.5 with shots and 1 without.
        support_weight: unlabelled pictures that one shot counts as in centres and variance; 0 ignores the shots.
        likelihood: weight of the Gaussian's log-density.
        smoothness: weight of the neighbours.
        neighbours: how many each picture has.
        confident: pictures with the highest zero-shot probability that a class without shots starts from.
        updates: of centres and variance.
        inner: updates of the assignments between them.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.9], [0.9, 1.0]], logit_scale=10.0)
    >>> pictures = [[9.0, 1.0], [8.0, 2.0], [7.0, 6.0], [1.0, 9.0], [2.0, 8.0]]
    >>> head = TransClip().fit([[9.0, 0.0], [0.0, 9.0]], ["cat", "dog"], text=text, unlabelled=pictures)
    >>> head.predict(pictures)
    array(['cat', 'cat', 'cat', 'dog', 'dog'], dtype='<U3')
    """

    needs_text = True
    transductive = True

    def __init__(
        self,
        prior: float = 0.5,
        support_weight: float = 1.0,
        likelihood: float = 0.02,
        smoothness: float = 1.0,
        neighbours: int = 3,
        confident: int = 8,
        updates: int = 10,
        inner: int = 5,
    ) -> None:
        self.prior = prior
        self.support_weight = support_weight
        self.likelihood = likelihood
        self.smoothness = smoothness
        self.neighbours = neighbours
        self.confident = confident
        self.updates = updates
        self.inner = inner

    @classmethod
    def official(cls, **changes: Any) -> Self:
        """The zero-shot mode of the released code: the shots are not looked at.

        Args:
            changes: parameters to set otherwise.
        """
        return cls(**{"prior": 1.0, "support_weight": 0.0, **changes})

    def _fit(self, shots: SupportSet) -> None:
        assert shots.text is not None and shots.unlabelled is not None
        if self.support_weight < 0 or self.neighbours < 1 or self.confident < 1:
            raise InputError("support_weight must not be negative, neighbours and confident must be 1 or more")
        seen = slice(None) if self.support_weight else slice(0)
        onehot = shots.onehot[seen]
        self.weight_, self.scale_, self.labels_ = shots.text, shots.scale, shots.labels[seen]
        queries = unit(shots.unlabelled)  # (u, d)
        self.rows_ = torch.cat([queries, unit(shots.X[seen])])
        graph = self._graph(len(queries))
        prior = self._prior(queries)
        assigned = self._zero_shot(queries).softmax(dim=1)
        self.centres_ = self._first_centres(queries, assigned, onehot)  # (c, d)
        self.variance_ = torch.full_like(queries[0], 1 / queries.shape[1])
        for update in range(self.updates + 1):
            fixed = prior + self._density(queries)
            for _ in range(max(1, self.inner)):
                near = torch.from_numpy(graph @ torch.cat([assigned, onehot]).numpy())
                self.answers_ = near.add_(fixed)  # (u, c)
                assigned = self.answers_.softmax(dim=1)
            if update < self.updates:
                self._update(queries, assigned, onehot)

    def _logits(self, X: Tensor) -> Tensor:
        x = unit(X)
        rows, answers = self.rows_.to(x.dtype), self.answers_.to(x.dtype)
        u, c = answers.shape
        values, places = nearest(x, rows, self.neighbours)  # (b, k)
        classes = torch.eye(c, dtype=x.dtype)
        near = x.new_zeros(x.shape[0], c)
        for value, place in zip(values.T.clamp_min(0), places.T, strict=True):
            assigned = answers[place.clamp_max(u - 1)].softmax(dim=1)
            if len(self.labels_):
                shot = classes[self.labels_[(place - u).clamp_min(0)]]
                assigned = torch.where((place < u)[:, None], assigned, shot)
            near += value[:, None] * assigned
        new = self._prior(x) + self._density(x) + self.smoothness / self.neighbours * near
        known = recall(x, rows[:u])
        return torch.where((known >= 0)[:, None], answers[known.clamp_min(0)], new)

    def _graph(self, u: int) -> csr_array:
        """(u, u + n): neighbours' share in the assignment of each unlabelled picture; an edge counts in both ways."""
        n = len(self.rows_)
        chosen = edges(*nearest(self.rows_, self.rows_, self.neighbours, own=True), n)
        # By the neighbours asked for: a picture that has fewer has less to go by.
        both: csr_array = ((chosen + chosen.T).tocsr() * (self.smoothness / (2 * self.neighbours)))[:u]
        return both.astype(chosen.dtype)

    def _zero_shot(self, x: Tensor) -> Tensor:
        return self.scale_ * x @ self.weight_.to(x.dtype).T

    def _prior(self, x: Tensor) -> Tensor:
        """(m, c) logarithm of zero-shot's probabilities, weighted."""
        return self.prior * self._zero_shot(x).log_softmax(dim=1)

    def _density(self, x: Tensor) -> Tensor:
        """(m, c) log-density of the Gaussians, weighted, without what is the same for all classes."""
        centres, variance = self.centres_.to(x.dtype), self.variance_.to(x.dtype)
        scaled = centres / variance
        return self.likelihood * (x @ scaled.T - 0.5 * (scaled * centres).sum(dim=1))

    def _first_centres(self, queries: Tensor, zero_shot: Tensor, onehot: Tensor) -> Tensor:
        """(c, d): the shots of a class; of one that has none, the pictures that zero-shot is surest of."""
        value, place = zero_shot.topk(min(self.confident, len(queries)), dim=0)  # (s, c)
        surest = torch.einsum("sc,scd->cd", value, queries[place])
        centre = onehot.T @ self.rows_[len(queries) :]
        return unit(torch.where(onehot.sum(dim=0)[:, None] > 0, centre, surest))

    def _update(self, queries: Tensor, assigned: Tensor, onehot: Tensor) -> None:
        """Centres (c, d) and variance (d,) from assignments (u, c) and labels."""
        shots = self.rows_[len(queries) :]
        sums = assigned.T @ queries + self.support_weight * onehot.T @ shots  # (c, d)
        counts = assigned.sum(dim=0) + self.support_weight * onehot.sum(dim=0)  # (c,)
        self.centres_ = unit(sums)
        # sum of z (x - mu)^2, multiplied out: no (u, c, d) array is made
        squares = queries.square().sum(dim=0) + self.support_weight * shots.square().sum(dim=0)
        spread = squares - 2 * (self.centres_ * sums).sum(dim=0) + counts @ self.centres_.square()
        self.variance_ = (spread / counts.sum()).clamp_min(SMALLEST / queries.shape[1])
