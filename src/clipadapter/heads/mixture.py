"""Gaussian mixtures over pictures without labels, with a graph of neighbours: shared by TransCLIP and StatA."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from clipadapter.heads.base import SupportSet
from clipadapter.heads.parameters import NOT_NEGATIVE, at_least
from clipadapter.heads.transductive import TransductiveHead, neighbour_assignments, symmetric_graph

MIN_VARIANCE_RATIO = 1e-4
"""Least variance of a coordinate relative to that of unit rows, so that a constant coordinate does not dominate."""


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

    answers_: Tensor = field(init=False)
    """(u, c) final assignments of the pictures without labels, as logits."""
    labels_: Tensor = field(init=False)
    """(n,) classes of the shots."""

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
        b, support = len(pictures), self.rows_[len(self.rows_) - len(shots.labels) :]
        graph = symmetric_graph(torch.cat([pictures, support]), b, self.neighbours, self.smoothness)
        n, c = len(shots.labels), shots.n_classes
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
        rows, answers = self.rows_.to(x.dtype), self.answers_.to(x.dtype)
        from_neighbours = neighbour_assignments(x, rows, answers, self.labels_, self.neighbours)
        density = self.likelihood * self._log_density(x)
        return self._prior(x) + density + self.smoothness / self.neighbours * from_neighbours
