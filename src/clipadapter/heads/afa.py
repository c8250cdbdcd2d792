"""AFA: against forward and backward forgetting, by one adapter for all tasks and one for each.

Paper: Dong et al., 2025, https://arxiv.org/abs/2505.07690. Only its abstract is known to us, and no code. On frozen
CLIP, one module learns what the tasks have in common, so that future classes are recognised better than by zero-shot.
Another module learns each task from few shots and does not forget earlier tasks. HOW THAT IS DONE HERE IS OURS: results
of this head are not the paper's.

- forward: A, one linear map for all tasks, predicts the mean of a class from its text. It is a ridge regression on the
  means of the classes that have shots, shrunk towards a multiple of the identity, which predicts as zero-shot does. A
  class without a shot gets a wider Gaussian around its predicted mean, and its zero-shot logit is added.
- routing: all classes of all tasks are compared by their densities (`ClassGaussians`), those without shots too. So no
  task identity is needed, and a picture far from all learned classes is assigned to a class without shots.
- backward: of earlier tasks, sums over shots are stored, which later tasks do not change. Each task trains a residual
  adapter B of the logits of its classes. B stays fixed until there are further shots of these classes. In training each
  shot gets the logits that the sums without it give (leave-one-out). On pseudo-features of all other classes the logits
  are distilled from the model before the task (in the first task, from the model without B). A pseudo-feature is the
  mean of a class, or the mean that A predicts if it has no shot, plus the deviation of a shot of the task from the mean
  of its class.

    logit_k(x) = log N(x; mean_k, variance_k) + v (1 - s_k) z_k(x) + B_k (x - centre)       class with shots
    logit_u(x) = log N(x; centre + t_u A, W + R) + max(v, w) z_u(x) + prior                 class without

with z the zero-shot logits less their mean over the classes, s_k the weight of the shots in the mean, and v the odds
that zero-shot is right, from the mean probability that it gave the shots' own classes; 2 at most. All of it is linear
in x of unit length, so that a prediction takes one product.

On development streams (Caltech-101's training part in five tasks, then fabrics, `lite`; 4 and 12 shots; zero-shot's
Transfer is 43.8 and 43.4) it has a Transfer of 46.5 and 45.1 and a Last of 83.2 and 85.1. Without the tasks' adapters
these are 46.8, 45.6 and 81.9, 84.8; with the identity alone for A 45.5, 44.6 and 83.4, 85.2. Distillation makes no
difference there, since at this penalty an adapter hardly changes other classes; with a small penalty it prevents
forgetting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from clipadapter.heads.base import NOT_NEGATIVE, POSITIVE, SupportSet, register_head
from clipadapter.heads.incremental import IncrementalHead
from clipadapter.heads.softmax_regression import descend
from clipadapter.utils.functional import unit
from clipadapter.utils.parallel import limit_threads

MAX_TEXT_WEIGHT = 2.0  # largest v, the weight of the zero-shot logits
PSEUDO_FEATURES_PER_CLASS, MAX_PSEUDO_FEATURES = 4, 4000  # pseudo-features of a class, and of all
MAX_ITERATIONS, GRADIENT_TOLERANCE = 50, 1e-3
"""Of the training of an adapter, which stops when the gradient norm has fallen to this share of its initial value."""

MIN_WITHIN_VARIANCE = 0.01  # least W of `ClassGaussians`, in squared lengths of features of unit length
MIN_TEXT_VARIANCE_RATIO = 0.1
"""Least R / W of `ClassGaussians`: with few classes, all means may lie where text predicts them by chance."""
WITHIN_SHARE = 0.7
"""W / (W + R), measured under `lite` and CLIP. It is the prior for W: one shot per class shows no variance."""


@register_head("afa", paper="https://arxiv.org/abs/2505.07690", compare=False)
class Afa(IncrementalHead):
    """A shared adapter for future classes and one adapter per task; after AFA's abstract, the rest is ours.

    Only the abstract of the paper is known; the docstring of the module says what is done here.
    `fit` gets the first task, and each `partial_fit` the next one. Give the text of all classes from the first task on:
    classes without a shot are then predicted too. Further shots of known classes refine their means, and continue the
    training of their adapter. Memory grows with the classes, not with the pictures.

    Args:
        ridge: penalty of the shared adapter; the larger, the nearer it is to zero-shot.
        dimensions: assumed number of dimensions of the Gaussians; a larger number gives more confident predictions.
        text: w, the least weight of the zero-shot logits of classes without shots.
        prior: log-odds of a class without shots relative to one with shots. Below 0, classes with shots are preferred.
        penalty: L2 on the tasks' adapters, for each shot; None to train none.
        seed: of the pseudo-features.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["ant", "cat", "dog"], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> head = Afa().fit([[1.0, 0.9, 0.1], [1.1, 0.8, 0.1]], ["cat", "cat"], text=text)
    >>> head.partial_fit([[1.0, 0.1, 0.9]], ["dog"], text=text).predict([[1.0, 0.0, 0.8], [1.0, 0.8, 0.0]])
    array(['dog', 'cat'], dtype='<U3')

    Fidelity: inspired: Only the abstract of the paper is known to us, and no code. How its two modules work here is
    ours.
    """

    needs_text = True
    temperature_prior = (2.0, 1.5, 1.7, 1.8, 1.7)
    class_sums = ("sums_", "residual_", "offset_", "weight_", "bias_")

    sums_: Tensor = field(init=False)  # (c, d) of unit features, float64
    residual_: Tensor = field(init=False)  # (c, d) the tasks' adapters, below each other
    offset_: Tensor = field(init=False)  # (c,) b, which keeps a task's adapter the same function when the centre moves
    agreed_: float = field(init=False)  # sum over all shots so far of the probability that zero-shot gives their class
    weight_: Tensor = field(init=False)  # (c, d) weights of the logits, with ``bias_`` (c,)
    bias_: Tensor = field(init=False)

    ridge: Annotated[float, POSITIVE] = 3.0
    dimensions: Annotated[float, POSITIVE] = 40.0
    text: Annotated[float, NOT_NEGATIVE] = 0.7
    prior: float = -1.0
    penalty: Annotated[float | None, NOT_NEGATIVE] = 1.0
    seed: int = 0

    def _init_sums(self, shots: SupportSet) -> None:
        c, d = shots.n_classes, shots.views.shape[2]
        self.sums_, self.residual_ = (torch.zeros(c, d, dtype=torch.float64) for _ in range(2))
        self.offset_, self.agreed_ = torch.zeros(c, dtype=torch.float64), 0.0

    def _remap_sums(self, origin: Tensor) -> None:
        super()._remap_sums(origin)
        self.bias_[origin < 0] = -math.inf  # the model before a task did not have its new classes

    def _logits(self, X: Tensor) -> Tensor:
        return unit(X) @ self.weight_.to(X.dtype).T + self.bias_.to(X.dtype)

    def _add_shots(self, shots: SupportSet) -> None:
        counts, x, labels = self.counts_, unit(shots.X.double()), shots.labels
        # None in the first task, before which there were no shots.
        previous = None if int(counts.sum()) == len(x) else (self.weight_.double(), self.bias_.double())
        rows, text = unit(shots.views.double()).mean(dim=1), unit(shots.class_text.double())
        self.sums_ = self.sums_.index_add(0, labels, rows)
        gaussians = ClassGaussians.fit(counts, self.sums_, text, self.ridge)
        zero_shot = shots.scale * (text - text.mean(dim=0))
        self.agreed_ += float((shots.scale * x @ text.T).softmax(dim=1)[torch.arange(len(x)), labels].sum())
        wrong = 1 - self.agreed_ / float(counts.sum())
        v = min(1 / wrong - 1, MAX_TEXT_WEIGHT) if wrong > 0 else MAX_TEXT_WEIGHT
        text_weight = torch.where(counts > 0, v, max(self.text, v))
        prior = torch.where(counts > 0, 0.0, self.prior)
        weight, bias = linear_log_density(*gaussians.estimates(), self.dimensions)
        # Logits (n, c) of the shots without their text part, and 1 - s_k (n, c); each shot is left out of its class.
        others, shot_weights = counts[labels] - 1, gaussians.shot_weights(counts)
        left_out = gaussians.estimates_of(others, self.sums_[labels] - rows, gaussians.text_means[labels])
        own_weight, own_bias = linear_log_density(*left_out, self.dimensions)
        own_class = torch.arange(len(x)), labels
        log_densities = x @ (weight + self.residual_).T + bias + self.offset_
        log_densities[own_class] += ((own_weight - weight[labels]) * x).sum(dim=1) + own_bias - bias[labels]
        left_out_share = 1 - gaussians.shot_weights(others)
        text_share = (1 - shot_weights).expand_as(log_densities).index_put(own_class, left_out_share)
        weight, bias = weight + (text_weight * (1 - shot_weights))[:, None] * zero_shot, bias + prior
        if self.penalty is not None:
            with limit_threads(len(x) * text.numel()):
                logits = log_densities + text_weight * text_share * (x @ zero_shot.T) + prior
                self._train_task_adapter(gaussians, x, labels, logits, (weight, bias), previous)
        dtype = shots.views.dtype
        self.weight_, self.bias_ = (weight + self.residual_).to(dtype), (bias + self.offset_).to(dtype)

    def _train_task_adapter(
        self,
        gaussians: ClassGaussians,
        x: Tensor,
        labels: Tensor,
        shot_logits: Tensor,
        current: tuple[Tensor, Tensor],
        previous: tuple[Tensor, Tensor] | None,
    ) -> None:
        """Train B of the classes that the task has shots x (n, d) of.

        ``shot_logits`` (n, c) are leave-one-out logits of these shots without the new adapter, ``current`` has weight
        (c, d) and bias (c,) of the logits without any adapter, ``previous`` those of the previous model; None in the
        first task.
        """
        assert self.penalty is not None
        pseudo = self._pseudo_features(gaussians, x, labels)
        pseudo_logits = pseudo @ (current[0] + self.residual_).T + current[1] + self.offset_
        teacher_logits = pseudo_logits if previous is None else pseudo @ previous[0].T + previous[1]
        n, m, c = len(x), len(pseudo), shot_logits.shape[1]
        logits = torch.cat([shot_logits, pseudo_logits])
        targets = torch.cat([torch.nn.functional.one_hot(labels, c).to(x.dtype), teacher_logits.softmax(dim=1)])
        row_weight = torch.cat([x.new_full((n,), 1 / n), x.new_full((m,), 1 / max(m, 1))])
        z, classes, penalty = torch.cat([x, pseudo]) - gaussians.centre, labels.unique(), self.penalty / n

        def evaluate(point: Tensor) -> tuple[float, Tensor]:
            logs = logits.index_add(1, classes, z @ point[0].T).log_softmax(dim=1)
            loss = -(row_weight * (targets * logs).sum(dim=1)).sum() + penalty / 2 * point.square().sum()
            error = row_weight[:, None] * (logs.exp() - targets)[:, classes]
            return float(loss), (error.T @ z + penalty * point[0])[None]

        start = x.new_zeros(1, len(classes), x.shape[1])
        first = evaluate(start)
        length = float(first[1].norm())
        if length > 0:
            point, _ = descend(evaluate, start, first, 1.0, GRADIENT_TOLERANCE * length, MAX_ITERATIONS)
            added = point.view_as(start)[0]
            self.residual_ = self.residual_.index_add(0, classes, added)
            self.offset_ = self.offset_.index_add(0, classes, -added @ gaussians.centre)

    def _pseudo_features(self, gaussians: ClassGaussians, x: Tensor, labels: Tensor) -> Tensor:
        """(m, d) pseudo-features of the classes that have no shot among these."""
        missing = torch.ones(len(gaussians.counts), dtype=torch.bool)
        missing[labels] = False
        classes = torch.nonzero(missing).flatten()
        classes = classes.repeat(max(1, min(PSEUDO_FEATURES_PER_CLASS, MAX_PSEUDO_FEATURES // max(1, len(classes)))))
        generator = torch.Generator().manual_seed(self.seed + int(gaussians.counts.sum()))
        n = gaussians.counts[labels].double()
        deviations = (x - gaussians.sums[labels] / n[:, None])[n > 1] * (n / (n - 1).clamp_min(1)).sqrt()[n > 1, None]
        if len(deviations):
            noise = deviations[torch.randint(len(deviations), (len(classes),), generator=generator)]
        else:
            noise = torch.randn(len(classes), x.shape[1], generator=generator, dtype=x.dtype)
            noise *= math.sqrt(gaussians.within_variance / x.shape[1])
        return unit(gaussians.estimates()[0][classes] + noise)


@dataclass(frozen=True)
class ClassGaussians:
    """An isotropic Gaussian for each class, from its shots and its text, or from its text alone; float64.

    With x of unit length, mu_k the mean of class k and t_k its text, both about their means over the classes:

        mu_k ~ N(t_k A, R / d I),    x | k ~ N(mu_k, W / d I)

    A is one linear map for all classes, g I + D: g is the scale that fits best, D a ridge regression of the residual.
    The mean of class k given its n_k shots is their mean, weighted by n_k R / (n_k R + W), and the prediction t_k A,
    weighted by the rest. W + R is the expected squared distance of an image from t_k A where the class has no shots.
    """

    counts: Tensor  # (c,) shots
    sums: Tensor  # (c, d) of their unit features
    centre: Tensor  # (d,) mean of the means of classes with shots
    text_means: Tensor
    """(c, d) t_k A, means about the centre that text predicts. That of a class with shots is predicted by a map which
    the other classes were fitted to."""
    within_variance: float  # W
    text_variance: float  # R

    @classmethod
    def fit(cls, counts: Tensor, sums: Tensor, text: Tensor, ridge: float) -> ClassGaussians:
        """From sums of shots and unit class text (c, d); at least one class has a shot.

        With a ridge of the map from text to means towards infinity, only g is fitted.
        """
        with_shots = torch.nonzero(counts).flatten()
        n = counts[with_shots].double()
        means = sums[with_shots] / n[:, None]
        within_scatter = float(n.sum() - (n * means.square().sum(dim=1)).sum())
        centre = means.mean(dim=0)
        centred_means, centred_text = means - centre, unit(text - text.mean(dim=0))
        residuals, text_means = _predict_means(centred_text, centred_text[with_shots], centred_means, ridge)
        error = float(residuals.square().sum(dim=1).mean())
        degrees = float(n.sum()) - len(n) + 1
        within_variance = max((max(within_scatter, 0.0) + WITHIN_SHARE * error) / degrees, MIN_WITHIN_VARIANCE)
        # The error of a predicted mean is R, plus the W / n_k by which the mean of n_k shots itself is off.
        text_variance = max(error - float((within_variance / n).mean()), MIN_TEXT_VARIANCE_RATIO * within_variance)
        text_means[with_shots] = centred_means - residuals
        return cls(counts, sums, centre, text_means, within_variance, text_variance)

    def estimates(self) -> tuple[Tensor, Tensor]:
        """Mean (c, d) and variance (c,) of every class."""
        return self.estimates_of(self.counts, self.sums, self.text_means)

    def shot_weights(self, counts: Tensor) -> Tensor:
        """(c,) weight of the mean of so many shots in a class's mean, 0 to 1; text has the rest."""
        return counts * self.text_variance / (counts * self.text_variance + self.within_variance)

    def estimates_of(self, counts: Tensor, sums: Tensor, text_means: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (k, d) and variance (k,) of classes with these sums of so many shots, and means that text predicts."""
        weights = self.shot_weights(counts.double())
        shot_means = sums / counts.clamp_min(1)[:, None]
        means = weights[:, None] * shot_means + (1 - weights)[:, None] * (text_means + self.centre)
        return means, self.within_variance + self.text_variance * (1 - weights)


def linear_log_density(means: Tensor, variances: Tensor, dimensions: float) -> tuple[Tensor, Tensor]:
    """Weight (c, d) and bias (c,) of log-densities of x of unit length under isotropic Gaussians, up to a constant.

    Variances (c,) are summed over the dimensions. Features vary in fewer directions than they are wide: `dimensions`
    is the effective number.
    """
    weight = dimensions * means / variances[:, None]
    return weight, -0.5 * dimensions * (variances.log() + (1 + means.square().sum(dim=1)) / variances)


def _predict_means(text: Tensor, text_with_shots: Tensor, means: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Fit the map A from text to class means (k, d).

    Returns leave-one-class-out residuals (k, d), and predictions (c, d) of the map that all k classes were fitted to.
    """
    g = (text_with_shots * means).sum() / text_with_shots.square().sum().clamp_min(1e-12)
    target = means - g * text_with_shots
    gram = text_with_shots @ text_with_shots.T
    inverse = torch.linalg.inv(gram + ridge * torch.eye(len(text_with_shots), dtype=gram.dtype))
    hat = gram @ inverse  # the hat matrix: leave-one-out residuals are those of the fit over 1 - its diagonal
    residuals = (target - hat @ target) / (1 - hat.diagonal())[:, None]
    return residuals, g * text + text @ text_with_shots.T @ (inverse @ target)
