"""LP++: a linear probe whose class weights are blended with class text by trained weights, in Lipschitz-bounded steps.

Paper: Huang et al., CVPR 2024, https://arxiv.org/abs/2404.02285.
Differs from the paper and its code, which keep the epoch that is best on validation shots: there is no validation here,
all epochs are run. Differs from the code, which never clears the gradient of the text weights, unless ``literal``.
Ours: a class without a shot is not trained; it gets its text and the average of the other classes' weights. The number
of epochs is bounded on large problems. Augmented views are not used.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor

from clipadapter.heads.base import NOT_NEGATIVE, SupportSet, register_head
from clipadapter.heads.losses import LogitAdjustedHead
from clipadapter.heads.trained_head import STEPS_SHARE, draw_linear, find_warm_start
from clipadapter.heads.training import MOMENTUM, training_bar
from clipadapter.utils.functional import unit
from clipadapter.utils.parallel import limit_threads

EPOCHS = 300  # full-batch steps of the released code
MIN_EPOCHS = 50  # fewest full-batch steps on large problems
MAX_TRAINING_MULTIPLICATIONS = 1e12
"""Multiplications after which ``epochs=None`` stops: a quarter of a minute on two cores."""
EPOCHS_PER_ALPHA_STEP = 10  # the text weights move once in so many epochs, as in the released code
WARM_START_SHARE = 0.95  # share of what an earlier fit learned that a warm start keeps


@register_head("lp++", version=2, paper="https://arxiv.org/abs/2404.02285")
class LpPlusPlus(LogitAdjustedHead):
    """Logits ``f w_k + b_k + alpha_k f t_k`` of unit features, all three trained by full-batch gradient steps.

    Args:
        literal: as the released code: move the text weights by the sum of all gradients since the start, in place of
            that of the step; start the biases as a torch linear layer does, in place of zero; and give them the step
            of the weights, which features without a common direction make too long for them, in place of 4 at most.
        epochs: full-batch steps; None for 300, or on large problems for as many as a trillion multiplications allow,
            but at least 50. The text weights move every tenth.
        seed: of the start of the biases if ``literal``.
        progress: show a bar on stderr while training.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> X = [[1.0, 0.9, 0.5], [1.0, 1.1, 0.0]]
    >>> LpPlusPlus().fit(X, ["dog", "cat"], text=text).predict(X)
    array(['dog', 'cat'], dtype='<U3')

    Fidelity: verified: `LpPlusPlus.official` gives the logits of the authors' code. The default clears the gradient of
    the text weights at each step, which that code does not, and adjusts logits for unequal shots. Neither keeps the
    best epoch on validation shots.
    """

    needs_text = supports_warm_start = True
    temperature_prior = (1.2, 1.2, 1.2, 1.2, 1.3)
    recipes = {"official": {"literal": True, "epochs": EPOCHS, "logit_adjustment": 0.0}}
    """What the authors' released code computes in its last epoch."""

    literal: bool = False
    epochs: Annotated[int | None, NOT_NEGATIVE] = None
    seed: int = 0
    progress: bool = False

    def _fit(self, shots: SupportSet) -> None:
        text, present = shots.class_text, torch.nonzero(shots.counts).flatten()  # of the p classes that have shots
        X, target = unit(shots.X), shots.onehot[:, present]
        similarity = X @ text[present].T  # (n, p)
        own = (similarity * target).sum(dim=0) / target.sum(dim=0)
        # As released: the sums, not means, of the shots, and 250 times the mean cosine of a class's shots and text.
        weight, bias = target.T @ X, self._initial_bias(X, len(present))
        alpha = torch.full_like(own, 250 * float(own.mean()))
        largest = max(MIN_EPOCHS, int(MAX_TRAINING_MULTIPLICATIONS / (2 * len(X) * weight.numel())))
        epochs: float = min(EPOCHS, largest) if self.epochs is None else self.epochs
        # With the gradients' sum since the start, a fit can't go on from where another one ended.
        start = {"weight_": weight, "bias_": bias, "alpha_": alpha}
        earlier = None if self.literal else find_warm_start(self, shots, WARM_START_SHARE, **start)
        if earlier is not None:
            learned, earlier = earlier.head, replace(earlier, origin=earlier.origin[present])
            visual, epochs = learned.weight_ - learned.alpha_[:, None] * learned.text_, STEPS_SHARE * epochs
            rows = ((visual, weight), ("bias_", bias), ("alpha_", alpha))
            weight, bias, alpha = (earlier.shrink(one, initial, by_class=True) for one, initial in rows)
        log_prior = self._log_prior(shots.counts)
        offset = X.new_zeros(()) if log_prior is None else log_prior[present]
        momentum_weight, momentum_bias, total = (torch.zeros_like(each) for each in (weight, bias, alpha))
        with limit_threads(X.numel() * len(present)), training_bar(round(epochs), shown=self.progress) as bar:
            gram = X.T @ X if X.shape[1] <= len(X) else X @ X.T  # they have the same eigenvalues but for zeros
            # The bounds of the paper; the eigenvalue is below 1 only if all pictures are zero.
            lr_weight = 4 * len(X) / max(1.0, float(torch.linalg.eigvalsh(gram)[-1]))
            lr_alpha = len(X) / (4 * max(1e-12, float(similarity.square().sum(dim=0).max())))
            # A bias is the weight of a feature that is always one, whose X^T X is n.
            lr_bias = lr_weight if self.literal else min(lr_weight, 4.0)
            for epoch in range(1, round(epochs) + 1):
                logits = (X @ weight.T).add_(bias).addcmul_(similarity, alpha).add_(offset)
                residual = logits.softmax(dim=1).sub_(target).div_(len(X))  # gradient of the mean cross-entropy
                momentum_weight.mul_(MOMENTUM).addmm_(residual.T, X)
                momentum_bias.mul_(MOMENTUM).add_(residual.sum(dim=0))
                weight, bias = weight - lr_weight * momentum_weight, bias - lr_bias * momentum_bias
                gradient = (residual * similarity).sum(dim=0)
                total = total + gradient if self.literal else gradient
                if epoch % EPOCHS_PER_ALPHA_STEP == 0:
                    alpha = alpha - lr_alpha * total
                bar.update()
        # A class without a shot has what the others have on average: only its text sets it apart.
        visual, self.bias_, self.alpha_ = (
            learned.mean(dim=0).expand(shots.n_classes, *learned.shape[1:]).index_copy(0, present, learned)
            for learned in (weight, bias, alpha)
        )
        self.weight_, self.text_ = visual + self.alpha_[:, None] * text, text

    def _text_logits(self, X: Tensor) -> Tensor | None:
        return unit(X) @ (self.alpha_[:, None] * self.text_).T.to(X.dtype)

    def _logits(self, X: Tensor) -> Tensor:
        return torch.addmm(self.bias_.to(X.dtype), unit(X), self.weight_.T.to(X.dtype))

    def _initial_bias(self, X: Tensor, p: int) -> Tensor:
        """(p,) start of the biases."""
        draw = draw_linear((p,), X.shape[1], torch.Generator().manual_seed(self.seed), X.dtype)
        return draw if self.literal else torch.zeros_like(draw)
