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

from typing import Annotated

import torch
from torch import Tensor

from clipadapter.heads.base import NOT_NEGATIVE, OneOf, SupportSet, register_head
from clipadapter.heads.class_frequencies import estimate_frequencies
from clipadapter.heads.ss_text_u import held_out_calibration, supervised_vectors
from clipadapter.heads.transductive import MIN_VARIANCE_RATIO, MixtureHead
from clipadapter.utils.functional import unit

EQUAL_FREQUENCY_SHOTS = 4.0  # weight of equal class frequencies beside the estimated ones, in shots per class


@register_head("stata", version=2, paper="https://arxiv.org/abs/2501.03729")
class StatA(MixtureHead):
    """Transductive: one anchored Gaussian per class and a neighbour graph, for pools that may have few of the classes.

    A picture that was among the unlabelled ones gets its final assignment. Any other picture gets one update with the
    final means and variances, those of the last batch, with neighbours among the unlabelled pictures and the shots.

    Args:
        anchors: "shots" for class vectors of text and shots, or "text".
        frequencies: estimate the class frequencies of the unlabelled pictures.
        shared_variance: True for one variance for all classes.
        alpha: number of pictures of a class at which its mean is half the anchor, half the pictures.
        soft: count pictures of a class by their assignments, not by the largest one.
        likelihood: weight of the Gaussian log-density; the paper's is 0.02.
        batch_size: number of unlabelled pictures, in their order, that are assigned at a time, without knowledge of the
            others, as in a stream; 0 for all.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.9], [0.9, 1.0]], logit_scale=10.0)
    >>> pictures = [[9.0, 1.0], [8.0, 2.0], [7.0, 6.0], [1.0, 9.0], [2.0, 8.0]]
    >>> head = StatA().fit([[9.0, 0.0], [0.0, 9.0]], ["cat", "dog"], text=text, unlabelled=pictures)
    >>> head.predict(pictures)
    array(['cat', 'cat', 'cat', 'dog', 'dog'], dtype='<U3')

    Fidelity: partial: `StatA.official`, which sees no labels, gives the assignments of the authors' code for up to
    2,500 pictures. How shots are used is ours, and so are the answers for new pictures.
    """

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

    anchors: Annotated[str, OneOf("shots", "text")] = "shots"
    frequencies: bool = True
    shared_variance: bool = True
    alpha: Annotated[float, NOT_NEGATIVE] = 1.0
    soft: bool = False
    likelihood: Annotated[float, NOT_NEGATIVE] = 0.002
    batch_size: Annotated[int, NOT_NEGATIVE] = 0

    def _fit(self, shots: SupportSet) -> None:
        pictures, text, used = self._store_rows(shots)
        self.labels_, self.scale_ = used.labels, shots.scale
        self.anchors_, self.bias_, temperature = text, text.new_zeros(shots.n_classes), 1.0
        bias = self.bias_
        if self.anchors == "shots":
            self.anchors_ = unit(supervised_vectors(shots))
            _, self.bias_ = held_out_calibration(shots, use_temperature=False)
            temperature, bias = held_out_calibration(shots)
        shots_per_class = len(shots.labels) / shots.n_classes
        answers = []
        for batch in pictures.split(self.batch_size or len(pictures)):
            prior = self._prior(batch)
            if self.frequencies:
                weight = shots_per_class / (shots_per_class + EQUAL_FREQUENCY_SHOTS)
                logits = self.scale_ / temperature * batch @ self.anchors_.T
                frequencies = weight * estimate_frequencies(logits, bias) + (1 - weight) / shots.n_classes
                prior = (prior + frequencies.log()).log_softmax(dim=1)
            answers.append(self._fit_mixture(batch, prior, used))
        self.answers_ = torch.cat(answers)  # (u, c)

    def _prior(self, x: Tensor) -> Tensor:
        """(m, c) log-probabilities of unit rows by the anchors alone."""
        return (self.scale_ * x @ self.anchors_.to(x.dtype).T + self.bias_.to(x.dtype)).log_softmax(dim=1)

    def _log_density(self, x: Tensor) -> Tensor:
        means, precision = self.means_.to(x.dtype), 1 / self.variances_.to(x.dtype)
        scaled = means * precision
        constant = (scaled * means).sum(dim=1) - precision.log().sum(dim=1)
        return x @ scaled.T - 0.5 * (x.square() @ precision.T + constant)

    def _fit_mixture(self, batch: Tensor, prior: Tensor, shots: SupportSet) -> Tensor:
        """Set means and variances (c, d), and return the final assignments (b, c) of a batch (b, d) as logits."""
        anchors, tiny, squares = self.anchors_, torch.finfo(batch.dtype).tiny, batch.square()
        rows, zeros = self.rows_[len(self.rows_) - len(shots.labels) :], torch.zeros_like(anchors)
        shot_counts = self.support_weight * shots.counts
        shot_sums = self.support_weight * zeros.index_add(0, shots.labels, rows)
        shot_squares = self.support_weight * zeros.index_add(0, shots.labels, rows.square())
        start = prior.softmax(dim=1)
        # v_0 (d,): variance of the rows about the anchors, weighted by the first assignments. The squares are
        # multiplied out, so that no (b, c, d) tensor is needed.
        from_sums = -2 * (anchors * (start.T @ batch)).sum(dim=0)
        spread = squares.sum(dim=0) + from_sums + start.sum(dim=0) @ anchors.square()
        start_variance = (spread / len(batch)).clamp_min(MIN_VARIANCE_RATIO / batch.shape[1])
        self.means_, self.variances_ = anchors, start_variance.expand_as(anchors)

        def update(assigned: Tensor) -> None:
            weights = assigned.sum(dim=0)
            largest = torch.bincount(assigned.argmax(dim=1), minlength=assigned.shape[1]).to(assigned.dtype)
            counts = (weights if self.soft else largest) + shot_counts
            beta = (counts / (self.alpha + counts).clamp_min(tiny))[:, None]
            # A class without any weight has beta near 0: what its mean is does not matter, but it must be finite.
            total = (weights + shot_counts).clamp_min(tiny)[:, None]
            mean = (assigned.T @ batch + shot_sums) / total
            mean_square = (assigned.T @ squares + shot_squares) / total
            self.means_ = unit(beta * unit(mean) + (1 - beta) * anchors)
            deviation = mean_square - 2 * self.means_ * mean + self.means_.square()
            variances = beta * deviation + (1 - beta) * (start_variance + (anchors - self.means_).square())
            if self.shared_variance:
                variances = ((variances * total).sum(dim=0) / total.sum()).expand_as(variances)
            self.variances_ = variances.clamp_min(MIN_VARIANCE_RATIO / batch.shape[1])

        return self._assign(batch, shots, prior, start, update)
