"""What the transductive heads TransCLIP, ZLaP and StatA share: stored answers, and a graph of nearest neighbours.

TransCLIP and StatA are Gaussian mixtures beside it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from clipadapter.heads.base import Head, SupportSet
from clipadapter.heads.parameters import NOT_NEGATIVE, at_least
from clipadapter.utils.functional import unit

MAX_SIMILARITIES = 16_000_000  # cosines held in memory at a time
MIN_VARIANCE_RATIO = 1e-4
"""Least variance of a coordinate relative to that of unit rows, so that a constant coordinate does not dominate."""
SAME_IMAGE_TOLERANCE = 1e-5
"""Unit rows whose cosine is at least one minus this are the same image, maybe stored in another floating-point type."""


class TransductiveHead(Head):
    """Base of the heads that learn an answer for each picture without a label, and answer others by neighbours."""

    needs_text = transductive = True
    picture_features = ("rows_",)

    support_weight: float
    rows_: Tensor  # (u + n, d) unit rows: of the pictures without labels, then of the shots

    @abstractmethod
    def _stored_answers(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Logits (m, c) of pictures without labels, by their numbers (m,)."""

    @abstractmethod
    def _answer_others(self, x: Tensor) -> Tensor:
        """Logits (m, c) of the unit rows (m, d) of any other pictures."""

    @property
    @abstractmethod
    def _n_pictures(self) -> int:
        """U."""

    def _store_rows(self, shots: SupportSet) -> tuple[Tensor, Tensor, SupportSet]:
        """Store ``rows_``; returns the pictures (u, d), the class text (c, d) and the shots, none if without weight."""
        assert shots.unlabelled is not None
        used = shots if self.support_weight else shots.take(torch.arange(0))
        pictures = unit(shots.unlabelled)
        self.rows_ = torch.cat([pictures, unit(used.X)])
        return pictures, shots.class_text, used

    def _logits(self, X: Tensor) -> Tensor:
        x = unit(X)
        cosine, index = nearest_neighbours(x, self.rows_[: self._n_pictures].to(x.dtype), 1)
        is_known, stored = cosine >= 1 - SAME_IMAGE_TOLERANCE, self._stored_answers(index[:, 0], x.dtype)
        # Then no other answer is needed; but a trace must not depend on the pictures that it is made with.
        if not torch.jit.is_tracing() and bool(is_known.all()):  # type: ignore[attr-defined]
            return stored
        return torch.where(is_known, stored, self._answer_others(x))


@dataclass(eq=False, repr=False, kw_only=True)
class MixtureHead(TransductiveHead):
    """Base of the heads that assign pictures to one Gaussian per class, and to the classes of their neighbours.

    The logarithm of an assignment is, up to a constant, a prior, plus the weighted log-density, plus ``smoothness``
    times the mean assignment of the neighbours. Assignments and Gaussians are updated in turn.

    Args:
        support_weight: number of unlabelled pictures that a shot counts as in the Gaussians; 0 leaves the shots
            out of these and of the graph.
        likelihood: weight of the Gaussian log-density.
        smoothness: weight of the neighbours' assignments.
        neighbours: number of neighbours of each picture.
        updates: number of updates of the Gaussians.
        inner: number of updates of the assignments between them.
    """

    answers_: Tensor = field(init=False)  # (u, c) final assignments of the pictures without labels, as logits
    labels_: Tensor = field(init=False)  # (n,) classes of the shots

    support_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    likelihood: Annotated[float, NOT_NEGATIVE] = 0.02
    smoothness: Annotated[float, NOT_NEGATIVE] = 1.0
    neighbours: Annotated[int, at_least(1)] = 3
    updates: Annotated[int, NOT_NEGATIVE] = 10
    inner: Annotated[int, at_least(1)] = 5

    @abstractmethod
    def _prior(self, x: Tensor) -> Tensor:
        """(m, c) log-prior of unit rows (m, d)."""

    @abstractmethod
    def _log_density(self, x: Tensor) -> Tensor:
        """(m, c) log-density of unit rows (m, d), up to a constant that is equal for all classes."""

    def _assign(
        self, pictures: Tensor, shots: SupportSet, prior: Tensor, start: Tensor, update: Callable[[Tensor], None]
    ) -> Tensor:
        """Final assignments of pictures, unit rows (b, d), as logits, from log-priors and first assignments (b, c).

        The unit rows of the shots are the last of ``rows_``; ``update`` sets the Gaussians from assignments (b, c).
        """
        b, n, c = len(pictures), len(shots.labels), shots.n_classes
        rows = torch.cat([pictures, self.rows_[len(self.rows_) - n :]])
        directed = adjacency(*nearest_neighbours(rows, rows, self.neighbours, exclude_self=True), len(rows))
        # Divided by the parameter, not by the number of neighbours: a picture with fewer depends less on them. An edge
        # counts in both directions.
        graph = ((directed + directed.T).tocsr() * (self.smoothness / (2 * self.neighbours)))[:b].astype(directed.dtype)
        onehot = csr_array((np.ones(n, graph.dtype), shots.labels.numpy(), np.arange(n + 1)), shape=(n, c))
        from_shots = torch.as_tensor((graph[:, b:] @ onehot).toarray())
        graph, assigned, logits = graph[:, :b], start, start
        for i in range(self.updates + 1):
            unary = prior + self.likelihood * self._log_density(pictures) + from_shots
            for _ in range(self.inner):
                logits = torch.as_tensor(graph @ assigned.numpy()).add_(unary)
                assigned = logits.softmax(dim=1)
            if i < self.updates:
                update(assigned)
        return logits

    @property
    def _n_pictures(self) -> int:
        return len(self.answers_)

    def _stored_answers(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        return self.answers_[rows].to(dtype)

    def _answer_others(self, x: Tensor) -> Tensor:
        """One update of their own; the Gaussians stay as they are."""
        cosines, indices = nearest_neighbours(x, self.rows_.to(x.dtype), self.neighbours)
        of_shots = torch.nn.functional.one_hot(self.labels_, self.answers_.shape[1]).to(x.dtype)
        assigned = torch.cat([self.answers_.to(x.dtype).softmax(dim=1), of_shots])
        from_neighbours = sum_of_neighbours(cosines, indices, assigned)
        density = self.likelihood * self._log_density(x)
        return self._prior(x) + density + self.smoothness / self.neighbours * from_neighbours


def nearest_neighbours(queries: Tensor, rows: Tensor, k: int, exclude_self: bool = False) -> tuple[Tensor, Tensor]:
    """The k of the unit rows (n, d) with the largest cosine to each query (m, d): cosines, descending, and row numbers.

    Both are (m, k), with fewer columns if there are fewer rows. With ``exclude_self`` the queries are the rows, and no
    row is its own neighbour.
    """
    k = min(k, len(rows) - exclude_self)
    step = max(1, MAX_SIMILARITIES // max(1, len(rows)))
    cosines, indices = [queries.new_empty(0, k)], [torch.empty(0, k, dtype=torch.long)]
    for start in range(0, len(queries), step):
        # Without a slice, so that the function can be traced if one block suffices.
        part = queries if len(queries) <= step else queries[start : start + step]
        similarity = part @ rows.T  # (b, n)
        if exclude_self:
            similarity[torch.arange(len(similarity)), torch.arange(start, start + len(similarity))] = -torch.inf
        top = similarity.topk(k, dim=1)
        cosines.append(top.values)
        indices.append(top.indices)
    return torch.cat(cosines), torch.cat(indices)


def adjacency(cosines: Tensor, indices: Tensor, n: int) -> csr_array:
    """The result of `nearest_neighbours` as a sparse (m, n) matrix of edge weights; negative cosines become 0."""
    m, k = cosines.shape
    weights = cosines.clamp_min(0).numpy().ravel()
    return csr_array((weights, indices.numpy().ravel(), np.arange(m + 1) * k), shape=(m, n))


def sum_of_neighbours(weights: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    """Sum (m, c) of the values (n, c) of the neighbours (m, k), by weights (m, k) that count from 0; one at a time."""
    total = weights[:, :1].clamp_min(0) * values[indices[:, 0]]
    for i in range(1, weights.shape[1]):
        total = total + weights[:, i : i + 1].clamp_min(0) * values[indices[:, i]]
    return total
