"""Nearest rows by cosine, in blocks: what the transductive heads build their graphs from."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

BLOCK = 16_000_000
"""Similarities held at a time."""
SAME = 1e-5
"""Two unit rows whose cosine is this close to one are the same picture, written in another number type perhaps."""


def nearest(queries: Tensor, rows: Tensor, k: int, own: bool = False) -> tuple[Tensor, Tensor]:
    """The k rows with the largest cosine to each query.

    Args:
        queries: (m, d) unit rows.
        rows: (n, d) unit rows.
        k: how many; all there are, if fewer.
        own: the queries are the rows, and none is its own neighbour.

    Returns:
        Cosines (m, k), falling, and row numbers (m, k).

    >>> nearest(torch.eye(3), torch.tensor([[0.8, 0.6, 0.0], [0.0, 0.6, 0.8]]), k=1)[1].flatten()
    tensor([0, 0, 1])
    """
    k = min(k, len(rows) - own)
    step = max(1, BLOCK // max(1, len(rows)))
    values, places = [queries.new_empty(0, k)], [torch.empty(0, k, dtype=torch.long)]
    for start in range(0, len(queries), step):
        # A graph can follow where nothing is cut.
        part = queries if len(queries) <= step else queries[start : start + step]
        similarity = part @ rows.T  # (b, n)
        if own:
            similarity[torch.arange(len(similarity)), torch.arange(start, start + len(similarity))] = -torch.inf
        found = similarity.topk(k, dim=1)
        values.append(found.values)
        places.append(found.indices)
    return torch.cat(values), torch.cat(places)


def edges(values: Tensor, places: Tensor, n: int) -> csr_array:
    """What `nearest` gives as a sparse (m, n) matrix; a negative cosine makes no edge.

    >>> edges(torch.tensor([[0.5, -0.1]]), torch.tensor([[2, 0]]), 3).toarray()
    array([[0. , 0. , 0.5]], dtype=float32)
    """
    m, k = values.shape
    start = np.arange(m + 1) * k
    return csr_array((values.clamp_min(0).numpy().ravel(), places.numpy().ravel(), start), shape=(m, n))


def recall(queries: Tensor, rows: Tensor) -> Tensor:
    """For each query (m, d) the number of the unit row that is the same picture, or -1: (m,).

    >>> recall(torch.eye(2), torch.tensor([[0.0, 1.0], [0.6, 0.8]]))
    tensor([-1,  0])
    """
    value, place = nearest(queries, rows, 1)
    return torch.where(value[:, 0] >= 1 - SAME, place[:, 0], -1)
