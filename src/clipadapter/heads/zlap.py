"""ZLaP: label propagation from class text over a neighbour graph of the unlabelled images.

Paper: Stojnic, Kalantidis, Tolias, CVPR 2024, https://arxiv.org/abs/2404.04072. With the symmetric normalised adjacency
matrix A of images and classes and seeds Y, the scores solve (I - alpha A) Z = Y.
Differs from the paper, which has no labelled images: here the shots are nodes of the graph and seeds too.
`Zlap.official` is the paper's method, without them.
Differs from the released code where cosines are stretched: an edge of a new image that is weaker than all edges of the
graph has weight 0, where that code gives it a negative weight.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import block_array, csr_array, diags_array
from torch import Tensor

from clipadapter.heads.base import NOT_NEGATIVE, SupportSet, Within, at_least, register_head
from clipadapter.heads.ss_text_u import warn_if_few_classes
from clipadapter.heads.transductive import TransductiveHead, adjacency, nearest_neighbours, sum_of_neighbours

CLASSES_PER_BLOCK = 64  # classes that conjugate gradients solves for at a time
MAX_STEPS = 1000  # bound on the steps of conjugate gradients
MIN_SCORE = 1e-12
"""Least share of a class in the scores: the logarithm of a class without a path to the image must be finite."""


@register_head("zlap", paper="https://arxiv.org/abs/2404.04072")
class Zlap(TransductiveHead):
    """Transductive label propagation: images are linked to similar images and to classes with similar text.

    Logits are the logarithms of the scores, so that probabilities are the classes' shares in an image's score. An image
    that was among the unlabelled ones gets its score in the graph. Any other image gets the inductive score: the scores
    of its neighbours, weighted by its edges.

    An unlabelled image receives a part of its score directly from the class nodes. A shot is a seed of its own class,
    whose size is ``support_weight`` times the mean of that part.

    Args:
        neighbours: k, number of neighbours of each image, itself included, and number of classes that it is linked to.
        power: exponent of the cosines between images and text.
        alpha: share of the score that is propagated along the edges, 0 to 1.
        support_weight: size of a shot's seed, relative to what an image receives from class text; 0 ignores the shots.
        tolerance: relative residual at which the solver stops.
        stretch: rescale the cosines so that the least edge of the graph becomes 0 and 1 stays 1, as the released code
            does where class vectors are not text but proxies made of images (InMaP).

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.9], [0.9, 1.0]])
    >>> pictures = [[9.0, 1.0], [8.0, 2.0], [7.0, 6.0], [1.0, 9.0], [2.0, 8.0]]
    >>> head = Zlap(neighbours=2).fit([[9.0, 0.0], [0.0, 9.0]], ["cat", "dog"], text=text, unlabelled=pictures)
    >>> head.predict(pictures)
    array(['cat', 'cat', 'cat', 'dog', 'dog'], dtype='<U3')

    Fidelity: partial: `Zlap.official`, which sees no labelled picture, gives the scores of the authors' code. That
    labels also spread from the shots is ours.
    """

    recipes = {"official": {"support_weight": 0.0}}
    """The method of the released code: the shots are not used."""

    neighbours: Annotated[int, at_least(2)] = 5
    power: float = 5.0
    alpha: Annotated[float, Within(0, 1, closed="left")] = 0.3
    support_weight: Annotated[float, NOT_NEGATIVE] = 10.0
    tolerance: float = 1e-6
    stretch: bool = False

    def _fit(self, shots: SupportSet) -> None:
        warn_if_few_classes(shots, "zlap")
        pictures, self.weight_, used = self._store_rows(shots)
        u, n, c = len(pictures), len(self.rows_), shots.n_classes
        images = nearest_neighbours(self.rows_, self.rows_, self.neighbours - 1, exclude_self=True)
        classes = nearest_neighbours(self.rows_, self.weight_, self.neighbours)
        if self.stretch:
            self.least_ = float(torch.cat([images[0].flatten(), classes[0].flatten()]).min())
        text_edges = adjacency(self._text_edge_weights(classes[0]), classes[1], c)
        graph = _graph(adjacency(self._stretched(images[0]), images[1], n), text_edges)
        seeds = np.zeros((n + c, c), dtype=np.float64)
        seeds[n:] = np.eye(c)
        mean_text_edges = float(graph[:u, n:].sum()) / u
        seeds[np.arange(u, n), used.labels.numpy()] = self.support_weight * self.alpha * mean_text_edges
        # The exact solution is not negative; the solver's residual may be.
        scores = np.maximum(_propagate(graph, seeds, self.alpha, self.tolerance), 0)
        self.scores_ = torch.as_tensor(scores).to(self.rows_.dtype)  # (n + c, c)
        self.n_unlabelled_ = u

    @property
    def _n_pictures(self) -> int:
        return self.n_unlabelled_

    def _stored_answers(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        return self._log_shares(self.scores_[rows].to(dtype))

    def _answer_others(self, x: Tensor) -> Tensor:
        rows, scores = self.rows_.to(x.dtype), self.scores_.to(x.dtype)
        cosines, indices = nearest_neighbours(x, rows, self.neighbours)
        inductive = sum_of_neighbours(self._stretched(cosines), indices, scores[: len(rows)])
        cosines, indices = nearest_neighbours(x, self.weight_.to(x.dtype), self.neighbours)
        from_text = sum_of_neighbours(self._text_edge_weights(cosines), indices, scores[len(rows) :])
        return self._log_shares(inductive + from_text)

    @staticmethod
    def _log_shares(scores: Tensor) -> Tensor:
        """(b, c) logarithms of each class's share of the scores of a picture."""
        shares = scores / scores.sum(dim=1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
        return shares.clamp_min(MIN_SCORE).log()

    def _text_edge_weights(self, cosines: Tensor) -> Tensor:
        """Weights of the edges between images and class text."""
        return self._stretched(cosines).clamp_min(0).pow(self.power)

    def _stretched(self, cosines: Tensor) -> Tensor:
        """Cosines, rescaled if ``stretch``: the least edge of the graph to 0, and 1 to 1."""
        return (cosines - self.least_) / max(1 - self.least_, 1e-12) if self.stretch else cosines


def _graph(image_edges: csr_array, text_edges: csr_array) -> csr_array:
    """Symmetric normalised adjacency D^-1/2 (A + A') D^-1/2 of n images and c classes: (n + c, n + c)."""
    n, c = text_edges.shape
    directed = block_array([[image_edges, text_edges], [None, csr_array((c, c))]])
    symmetric = (directed + directed.T).astype(np.float64)
    degree = symmetric.sum(axis=1)
    root = diags_array(1 / np.sqrt(np.where(degree > 0, degree, 1)))
    graph: csr_array = (root @ symmetric @ root).tocsr()
    return graph


def _propagate(graph: csr_array, seeds: NDArray[np.float64], alpha: float, tolerance: float) -> NDArray[np.float64]:
    """Solve ``(I - alpha * graph) scores = seeds`` by conjugate gradients, a block of columns at a time.

    The graph (N, N) is symmetric, with eigenvalues from -1 to 1. The seeds (N, c) are overwritten by the result, to
    save memory. The tolerance is the relative residual of each column.
    """
    for start in range(0, seeds.shape[1], CLASSES_PER_BLOCK):
        target = seeds[:, start : start + CLASSES_PER_BLOCK]
        scores = np.zeros_like(target)
        residual = target.copy()
        direction = residual.copy()
        squared_norm = (residual**2).sum(axis=0)
        goal = tolerance**2 * squared_norm
        for _ in range(MAX_STEPS):
            if (squared_norm <= goal).all():
                break
            image = direction - alpha * (graph @ direction)
            step = squared_norm / np.maximum((direction * image).sum(axis=0), np.finfo(np.float64).tiny)
            scores += step * direction
            residual -= step * image
            previous, squared_norm = squared_norm, (residual**2).sum(axis=0)
            direction = residual + squared_norm / np.maximum(previous, np.finfo(np.float64).tiny) * direction
        target[:] = scores
    return seeds
