"""Several labels a picture: each class is a question of its own, answered by a sigmoid.

What heads share for it. A contrastive encoder such as CLIP only learned which of some texts fits a picture best: its
cosines have no point above which a text fits. So where the encoder brings no bias (SigLIP's does, Zhai et al., ICCV
2023, https://arxiv.org/abs/2303.15343), one is learned for each class from the shots. That is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipadapter.heads._folds import held_out_folds, most_can_be_held_out
from clipadapter.heads._shots import SupportSet

SPREAD = 2.0
"""How far the bias of a class may lie from that of the others, in logits: the deviation of a normal prior."""
STEPS = 60
"""Newton steps at most; ten are the rule."""


def fitted_bias(logits: Tensor, targets: Tensor, spread: float = SPREAD) -> Tensor:
    """Biases that make the mean probability of each class the share of shots that have it, drawn to a common one.

    Logistic regression on nothing but a constant, with the logits as its offset: at its optimum the probabilities of a
    class sum to the number of its shots. A normal prior around the bias that does so for all classes together keeps
    classes with few shots near to it; it is what a class without any shot is left with, less what all the shots
    without it tell.

    Args:
        logits: (n, c) of the shots by what did not learn from them.
        targets: (n, c) ones and zeros.
        spread: deviation of the prior.

    Returns:
        (c,) in the dtype of the logits.

    >>> logits, targets = torch.zeros(4, 2), torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    >>> fitted_bias(logits, targets, spread=1e6).sigmoid()
    tensor([0.7500, 0.2500])
    """
    x, y = logits.double(), targets.double()
    # Half a shot with each class and half without: the common bias is finite even if every shot has every class.
    share = (y.sum() + 0.5) / (y.numel() + 1)
    common = _solve(x.reshape(-1, 1), share * y.numel(), x.new_zeros(1), 0.0)
    return _solve(x, y.sum(dim=0), common.expand(x.shape[1]), spread**-2).to(logits.dtype)


def _solve(x: Tensor, wished: Tensor, start: Tensor, pull: float) -> Tensor:
    """Biases b (c,) for which ``sum_i sigmoid(x + b) + pull * (b - start)`` is what is wished.

    The sum rises with b, so that the root is between two bounds; a Newton step that leaves them is halved.
    """
    low = (-x.amax(dim=0) - 50.0).minimum(start)
    high = (-x.amin(dim=0) + 50.0).maximum(start)
    b = start.clone() if pull else -x.median(dim=0).values
    for _ in range(STEPS):
        p = (x + b).sigmoid()
        over = p.sum(dim=0) - wished + pull * (b - start)
        low, high = torch.where(over < 0, b, low), torch.where(over > 0, b, high)
        step = b - over / ((p * (1 - p)).sum(dim=0) + pull).clamp_min(1e-300)
        moved = torch.where((step > low) & (step < high), step, (low + high) / 2)
        done = bool((moved - b).abs().max() < 1e-10)
        b = moved
        if done:
            break
    return b


def sigmoid_bias(shots: SupportSet, logits: Tensor) -> Tensor:
    """(c,) what makes scaled cosines of the shots (n, c) logits of a sigmoid: the encoder's bias, or a fitted one."""
    assert shots.targets is not None
    if shots.bias is not None:
        return logits.new_full((logits.shape[1],), shots.bias)
    return fitted_bias(logits, shots.targets)


def with_bias(head: object, logits: Tensor) -> Tensor:
    """(m, c) logits with the bias that a head has learned, if it has."""
    bias: Tensor | None = getattr(head, "bias_", None)
    return logits if bias is None else logits + bias.to(logits.dtype)


def bias_of_others(head: object, n_classes: int) -> Tensor | None:
    """(c,) bias of classes that a head was not fitted to: the mean of those that it was; None if it has none."""
    bias: Tensor | None = getattr(head, "bias_", None)
    return None if bias is None else bias.mean().expand(n_classes).clone()


def binary_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """(n,) log-loss of the answers about each picture, summed over the classes."""
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)


def several_folds(targets: Tensor, folds: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Folds over pictures with several labels, in which every class that has a shot always keeps one to train on.

    Classes are gone through from the rarest to the most frequent, and each gives its pictures to the folds that have
    the fewest of it (the idea of Sechidis et al., ECML 2011). Of a class whose pictures are all in one fold, one is
    never held out.

    Args:
        targets: (n, c) ones and zeros.
        folds: number of folds wished, 2 or more.
        seed: of the random assignment.

    Returns:
        (training rows, held-out rows) of each fold; empty if nothing can be held out.

    >>> targets = torch.tensor([[1, 0], [1, 1], [0, 1], [1, 0], [0, 0], [0, 1]])
    >>> [(len(train), len(held)) for train, held in several_folds(targets, 2)]
    [(3, 3), (3, 3)]
    """
    generator = torch.Generator().manual_seed(seed)
    has = targets.bool()
    n, counts = len(has), has.sum(dim=0)
    folds = min(folds, n)
    fold = torch.full((n,), -1)
    shuffled = torch.randperm(n, generator=generator)
    for k in [*counts.argsort().tolist(), -1]:  # last the pictures without a label
        of_class = has[:, k] if k >= 0 else torch.ones(n, dtype=torch.bool)
        for row in shuffled[(of_class & (fold < 0))[shuffled]].tolist():
            own = torch.bincount(fold[of_class & (fold >= 0)], minlength=folds)
            total = torch.bincount(fold[fold >= 0], minlength=folds)
            fold[row] = int((own * (n + 1) + total).argmin())
    for k in torch.nonzero(counts > 0).flatten().tolist():
        of_class = torch.nonzero(has[:, k]).flatten()
        if len(fold[of_class].unique()) == 1:
            fold[of_class[0]] = -1
    splits = [(torch.nonzero(fold != i).flatten(), torch.nonzero(fold == i).flatten()) for i in range(folds)]
    return [(train, held) for train, held in splits if len(held) and len(train)]


def shot_folds(shots: SupportSet, folds: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Folds to choose a parameter on, of one label a picture or several; none if most classes have one shot."""
    if shots.targets is not None:
        return several_folds(shots.targets, folds, seed) if most_are_several(shots.targets) else []
    return held_out_folds(shots.labels, folds, seed) if most_can_be_held_out(shots.labels) else []


def most_are_several(targets: Tensor) -> bool:
    """Whether at least half of the classes that have shots have two, as `most_can_be_held_out` asks of one label."""
    counts = targets.sum(dim=0)
    return bool(2 * (counts > 1).sum() >= (counts > 0).sum()) and bool((counts > 0).any())
