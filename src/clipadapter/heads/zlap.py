"""ZLaP: labels that spread from class text over a graph of the pictures to be classified.

Paper: Stojnic, Kalantidis, Tolias, CVPR 2024, https://arxiv.org/abs/2404.04072.
Differs from the paper, which has no labelled pictures: here the shots are pictures of the graph, and labels spread from
them too. `Zlap.official` is the paper's method, without them.
Differs from the released code where cosines are stretched: an edge of a new picture that is weaker than all edges of
the graph has no weight, where that code gives it a negative one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import block_array, csr_array, diags_array
from torch import Tensor
from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.functional import unit
from clipadapter.heads._base import Head, SupportSet
from clipadapter.heads._registry import register_head
from clipadapter.heads.neighbour_graph import edges, nearest, recall

COLUMNS = 64
"""Classes that are solved for at a time."""
STEPS = 1000
NOTHING = 1e-12
"""Score of a class that no path leads to: its logarithm must be finite."""


@register_head(
    "zlap",
    paper="https://arxiv.org/abs/2404.04072",
    fidelity="partial: `Zlap.official`, which sees no labelled picture, gives the scores of the authors' code. That "
    "labels also spread from the shots is ours.",
)
class Zlap(Head):
    """Transductive label propagation: pictures are linked to pictures alike and to classes whose text is near.

    Logits are the logarithms of the scores, so that probabilities are the classes' shares in a picture's score. A
    picture that was among the unlabelled ones gets its score in the graph. Any other gets the inductive score: its own
    edges, times what spreads to their ends.

    An unlabelled picture takes in some score straight from the class nodes. A shot takes in ``support_weight`` times
    the mean of that, for its own class alone.

    Args:
        neighbours: k, pictures that each picture chooses, itself among them, and classes that it chooses.
        power: exponent of the cosines between pictures and text.
        alpha: share of the score that is passed on along the edges, 0 to 1.
        support_weight: what a shot knows of its label, beside what a picture knows by class text; 0 ignores the shots.
        tolerance: relative residual at which the solver stops.
        stretch: move the cosines so that the least of the graph's edges becomes 0 and 1 stays 1, as the released code
            does where class vectors are not text but proxies made of pictures (InMaP).

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.9], [0.9, 1.0]])
    >>> pictures = [[9.0, 1.0], [8.0, 2.0], [7.0, 6.0], [1.0, 9.0], [2.0, 8.0]]
    >>> head = Zlap(neighbours=2).fit([[9.0, 0.0], [0.0, 9.0]], ["cat", "dog"], text=text, unlabelled=pictures)
    >>> head.predict(pictures)
    array(['cat', 'cat', 'cat', 'dog', 'dog'], dtype='<U3')
    """

    needs_text = True
    transductive = True

    def __init__(
        self,
        neighbours: int = 5,
        power: float = 5.0,
        alpha: float = 0.3,
        support_weight: float = 10.0,
        tolerance: float = 1e-6,
        stretch: bool = False,
    ) -> None:
        self.neighbours = neighbours
        self.power = power
        self.alpha = alpha
        self.support_weight = support_weight
        self.tolerance = tolerance
        self.stretch = stretch

    @classmethod
    def official(cls, **changes: Any) -> Self:
        """What the released code computes: the shots are not looked at.

        Args:
            changes: parameters to set otherwise.
        """
        return cls(**{"support_weight": 0.0, **changes})

    def _fit(self, shots: SupportSet) -> None:
        assert shots.text is not None and shots.unlabelled is not None
        if not 0 <= self.alpha < 1 or self.neighbours < 2 or self.support_weight < 0:
            raise InputError("alpha must be 0 to below 1, neighbours 2 or more, support_weight not negative")
        seen = slice(None) if self.support_weight else slice(0)
        u, c = len(shots.unlabelled), shots.n_classes
        self.weight_ = shots.text
        self.rows_ = unit(torch.cat([shots.unlabelled, shots.X[seen]]))
        n = len(self.rows_)
        pictures = nearest(self.rows_, self.rows_, self.neighbours - 1, own=True)
        classes = nearest(self.rows_, self.weight_, self.neighbours)
        if self.stretch:
            self.least_ = float(torch.cat([pictures[0].flatten(), classes[0].flatten()]).min())
        graph = _graph(self._picture_edges(*pictures, n), self._text_edges(*classes))
        seeds = np.zeros((n + c, c), dtype=np.float64)
        seeds[n:] = np.eye(c)
        taken_in = float(graph[:u, n:].sum()) / u
        seeds[np.arange(u, n), shots.labels[seen].numpy()] = self.support_weight * self.alpha * taken_in
        # Not negative but for what the solver leaves over.
        scores = np.maximum(_spread(graph, seeds, self.alpha, self.tolerance), 0)
        self.scores_ = torch.from_numpy(scores).to(self.rows_.dtype)  # (n + c, c)
        self.n_unlabelled_ = u

    def _logits(self, X: Tensor) -> Tensor:
        x = unit(X)
        rows, scores = self.rows_.to(x.dtype), self.scores_.to(x.dtype)
        n, u = len(rows), self.n_unlabelled_
        cosines, places = nearest(x, rows, self.neighbours)
        near = _reached(self._stretched(cosines), places, scores[:n])
        cosines, places = nearest(x, self.weight_.to(x.dtype), self.neighbours)
        near = near + _reached(self._to_text(cosines), places, scores[n:])
        known = recall(x, rows[:u])
        score = torch.where((known >= 0)[:, None], scores[known.clamp_min(0)], near)  # (b, c)
        share = score / score.sum(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        return share.clamp_min(NOTHING).log()

    def _picture_edges(self, cosines: Tensor, places: Tensor, n: int) -> csr_array:
        """(m, n): from each picture to those that are nearest."""
        return edges(self._stretched(cosines), places, n)

    def _text_edges(self, cosines: Tensor, places: Tensor) -> csr_array:
        """(m, c): from each picture to the classes whose text is nearest."""
        return edges(self._to_text(cosines), places, len(self.weight_))

    def _to_text(self, cosines: Tensor) -> Tensor:
        """Cosines to class text as weights of edges."""
        return self._stretched(cosines).clamp_min(0).pow(self.power)

    def _stretched(self, cosines: Tensor) -> Tensor:
        """The least of the graph's to 0, and 1 to 1, if so asked."""
        return (cosines - self.least_) / max(1 - self.least_, 1e-12) if self.stretch else cosines


def _reached(weights: Tensor, places: Tensor, scores: Tensor) -> Tensor:
    """What edges (b, k) lead to: the sum of the scores (n, c) of their ends, each by its weight; (b, c)."""
    found = weights[:, :1].clamp_min(0) * scores[places[:, 0]]
    for i in range(1, weights.shape[1]):
        found = found + weights[:, i : i + 1].clamp_min(0) * scores[places[:, i]]
    return found


def _graph(to_pictures: csr_array, to_text: csr_array) -> csr_array:
    """Edges among n pictures and c classes, both ways, divided by the roots of both ends' degrees: (n + c, n + c)."""
    n, c = to_text.shape
    chosen = block_array([[to_pictures, to_text], [None, csr_array((c, c))]])
    both = (chosen + chosen.T).astype(np.float64)
    degree = both.sum(axis=1)
    root = diags_array(1 / np.sqrt(np.where(degree > 0, degree, 1)))
    graph: csr_array = (root @ both @ root).tocsr()
    return graph


def _spread(graph: csr_array, seeds: NDArray[np.float64], alpha: float, tolerance: float) -> NDArray[np.float64]:
    """Solve ``(I - alpha * graph) scores = seeds`` by conjugate gradients, many columns at once.

    Args:
        graph: (N, N), symmetric, eigenvalues -1 to 1.
        seeds: (N, c); becomes the result, so that no second one is held.
        alpha: 0 to below 1.
        tolerance: relative residual of each column.

    Returns:
        (N, c).
    """
    for start in range(0, seeds.shape[1], COLUMNS):
        target = seeds[:, start : start + COLUMNS]
        found = np.zeros_like(target)
        residual = target.copy()
        direction = residual.copy()
        size = (residual**2).sum(axis=0)
        enough = tolerance**2 * size
        for _ in range(STEPS):
            if (size <= enough).all():
                break
            image = direction - alpha * (graph @ direction)
            step = size / np.maximum((direction * image).sum(axis=0), np.finfo(np.float64).tiny)
            found += step * direction
            residual -= step * image
            before, size = size, (residual**2).sum(axis=0)
            direction = residual + size / np.maximum(before, np.finfo(np.float64).tiny) * direction
        target[:] = found
    return seeds
