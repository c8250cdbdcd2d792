"""What the transductive heads TransCLIP, ZLaP and StatA share: stored answers, and a graph of nearest neighbours."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from clipadapter.heads.base import Head, SupportSet
from clipadapter.utils.functional import unit

MAX_SIMILARITIES = 16_000_000
"""Cosines held in memory at a time."""
SAME_IMAGE_TOLERANCE = 1e-5
"""Unit rows whose cosine is at least one minus this are the same image, maybe stored in another floating-point type."""


class TransductiveHead(Head):
    """Base of the heads that learn an answer for each picture without a label, and answer others by neighbours."""

    needs_text = True
    transductive = True
    picture_features = ("rows_",)

    support_weight: float
    rows_: Tensor
    """(u + n, d) unit rows: of the pictures without labels, then of the shots."""

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
        known = find_same_image(x, self.rows_[: self._n_pictures].to(x.dtype))
        if are_all_found(known):
            return self._stored_answers(known, x.dtype)
        stored = self._stored_answers(known.clamp_min(0), x.dtype)
        return torch.where((known >= 0)[:, None], stored, self._answer_others(x))


def nearest_neighbours(queries: Tensor, rows: Tensor, k: int, exclude_self: bool = False) -> tuple[Tensor, Tensor]:
    """The k of the unit rows (n, d) with the largest cosine to each query (m, d): cosines, descending, and row numbers.

    Both are (m, k), with fewer columns if there are fewer rows. With ``exclude_self`` the queries are the rows, and no
    row is its own neighbour.

    >>> nearest_neighbours(torch.eye(3), torch.tensor([[0.8, 0.6, 0.0], [0.0, 0.6, 0.8]]), k=1)[1].flatten()
    tensor([0, 0, 1])
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
    """The result of `nearest_neighbours` as a sparse (m, n) matrix of edge weights; negative cosines become 0.

    >>> adjacency(torch.tensor([[0.5, -0.1]]), torch.tensor([[2, 0]]), 3).toarray()
    array([[0. , 0. , 0.5]], dtype=float32)
    """
    m, k = cosines.shape
    row_starts = np.arange(m + 1) * k
    return csr_array(
        (cosines.clamp_min(0).cpu().numpy().ravel(), indices.cpu().numpy().ravel(), row_starts), shape=(m, n)
    )


def symmetric_graph(rows: Tensor, u: int, k: int, weight: float) -> csr_array:
    """The (u, n) graph of k nearest neighbours of rows (n, d): for each of the first u its neighbours' weights.

    An edge counts in both directions, and all edges of a row sum to ``weight`` times their mean cosine, nearly.
    """
    directed = adjacency(*nearest_neighbours(rows, rows, k, exclude_self=True), len(rows))
    # Divided by the parameter, not by the number of neighbours: a picture with fewer depends less on them.
    graph: csr_array = ((directed + directed.T).tocsr() * (weight / (2 * k)))[:u]
    return graph.astype(directed.dtype)


def neighbour_assignments(x: Tensor, rows: Tensor, logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Sum (m, c) of the assignments of each picture's k nearest rows, weighted by their cosines.

    Of the rows (u + n, d) the first are pictures without labels, whose assignment is the softmax of logits (u, c), the
    others are shots, possibly none, with labels (n,).

    >>> rows, logits = torch.eye(2), torch.tensor([[0.0, 0.0]])
    >>> neighbour_assignments(torch.tensor([[0.6, 0.8]]), rows, logits, torch.tensor([1]), k=2)
    tensor([[0.3000, 1.1000]])
    """
    u, c = logits.shape
    onehot = torch.eye(c, dtype=x.dtype)
    total = x.new_zeros(x.shape[0], c)
    cosines, indices = nearest_neighbours(x, rows, k)
    for cosine, index in zip(cosines.T.clamp_min(0), indices.T, strict=True):
        assigned = logits[index.clamp_max(u - 1)].softmax(dim=1)
        if len(labels):
            assigned = torch.where((index < u)[:, None], assigned, onehot[labels[(index - u).clamp_min(0)]])
        total += cosine[:, None] * assigned
    return total


def find_same_image(queries: Tensor, rows: Tensor) -> Tensor:
    """For each query (m, d) the number of the row (n, d) that is the same image, or -1: (m,).

    >>> find_same_image(torch.eye(2), torch.tensor([[0.0, 1.0], [0.6, 0.8]]))
    tensor([-1,  0])
    """
    cosine, index = nearest_neighbours(queries, rows, 1)
    return torch.where(cosine[:, 0] >= 1 - SAME_IMAGE_TOLERANCE, index[:, 0], -1)


def are_all_found(stored_rows: Tensor) -> bool:
    """Whether `find_same_image` found all queries: then the stored results are all that a prediction needs.

    False in a trace, which must not depend on the pictures that it is made with.

    >>> are_all_found(torch.tensor([0, -1])), are_all_found(torch.tensor([0, 2]))
    (False, True)
    """
    return not torch.jit.is_tracing() and bool((stored_rows >= 0).all())  # type: ignore[attr-defined]
