"""Losses of training and of held-out shots, for single-label and multi-label pictures.

Gradients of cross-entropy are written as formulas: with a few hundred rows in a step they take less time than automatic
differentiation. docs/decisions/0046 has the figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, hardshrink

from clipadapter.functional import unit
from clipadapter.heads.multilabel import binary_losses
from clipadapter.heads.support import SupportSet

MIN_GRADIENT = 1e-30
"""Gradients of single logits that are smaller are zero. Products with them stay above 1.2e-38, the smallest float32
with all its digits. Intel's processors need up to 190 times as long for a product of smaller numbers."""
MIN_LOG_PROBABILITY = math.log(MIN_GRADIENT)


@dataclass(frozen=True)
class LabelLoss:
    """Mean loss of logits for class labels: cross-entropy, logit-adjusted and generalised if asked for.

    Logit adjustment adds to the logits, in training only, a constant of each class that grows with its frequency: Menon
    et al., ICLR 2021, https://arxiv.org/abs/2007.07314, equation 10. Generalised cross-entropy is
    ``(1 - p ** q) / q`` for the probability p of the label: Zhang and Sabuncu, NeurIPS 2018,
    https://arxiv.org/abs/1805.07836, equation 6. Its gradient is that of cross-entropy times ``p ** q``, so that labels
    which the model contradicts weigh less. With q near 0 it is cross-entropy, with q of 1 one minus the probability.

    Args:
        offset: (c,) added to the logits; None for nothing.
        q: of generalised cross-entropy, 0 to 1; 0 is cross-entropy.

    >>> logits, labels = torch.tensor([[0.0, 0.0]]), torch.tensor([1])
    >>> [round(float(LabelLoss(q=q)(logits, labels)), 3) for q in (0.0, 0.001, 1.0)]
    [0.693, 0.693, 0.5]
    >>> offset = torch.tensor([3.0, 1.0]).log()  # the first class is three times as frequent
    >>> round(float(LabelLoss(offset)(logits, labels).neg().exp()), 3)
    0.25
    """

    offset: Tensor | None = None
    q: float = 0.0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of logits (b, c) and class positions (b,)."""
        logits = drop_tiny_gradients(logits if self.offset is None else logits + self.offset)
        if self.q == 0:
            return cross_entropy(logits, labels)
        return self.of_log_probabilities(-cross_entropy(logits, labels, reduction="none"))

    def with_gradient(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The same loss, and its gradient (b, c) for the logits, which is zero where it is below `MIN_GRADIENT`.

        >>> value, gradient = LabelLoss().with_gradient(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        >>> gradient.tolist()
        [[0.5, -0.5]]
        """
        labels = labels[:, None]
        log_p = (logits if self.offset is None else logits + self.offset).log_softmax(dim=1)
        value = self.of_log_probabilities(log_p.gather(1, labels))
        # exp() is slow as well where its result is that small.
        gradient = log_p.clamp_min_(MIN_LOG_PROBABILITY).exp_()
        p_label = gradient.gather(1, labels) if self.q else None
        gradient.scatter_add_(1, labels, gradient.new_full((len(labels), 1), -1.0)).mul_(1 / len(labels))
        if p_label is not None:
            gradient.mul_(p_label**self.q)
        return value, _zero_below_min_gradient(gradient)

    def of_log_probabilities(self, log_p: Tensor) -> Tensor:
        """Mean loss of the log probabilities (b,) of the labels."""
        return -(log_p if self.q == 0 else torch.expm1(self.q * log_p) / self.q).mean()


CROSS_ENTROPY = LabelLoss()
"""The loss without either change."""


@dataclass(frozen=True)
class Loss:
    """Cross-entropy of labels; or, of multi-label targets, binary cross-entropy summed over the classes.

    The second is SigLIP's loss without its text side (Zhai et al., ICCV 2023, equation 1): the sum over classes, not
    their mean, is as large as the cross-entropy of as many labels.

    Args:
        scale: of the cosines.
        labels: (n,) class positions; not used with multi-label targets.
        targets: (n, c) ones and zeros of multi-label pictures, else None.
        bias: (c,) added to the logits of multi-label pictures, else None.
        label_loss: of labels; not used with multi-label targets.
    """

    scale: float
    labels: Tensor
    targets: Tensor | None
    bias: Tensor | None
    label_loss: LabelLoss = CROSS_ENTROPY

    @classmethod
    def of_support_set(
        cls,
        shots: SupportSet,
        rows: Tensor,
        bias: Tensor | None,
        temperature: float = 1.0,
        label_loss: LabelLoss = CROSS_ENTROPY,
    ) -> Loss:
        """The loss of some of the shots, with the encoder's logit scale divided by a temperature."""
        targets = None if shots.targets is None else shots.targets[rows]
        return cls(shots.scale / temperature, shots.labels[rows], targets, bias, label_loss)

    def from_features(self, features: Tensor, weight: Tensor, rows: Tensor, *, normalise: bool = True) -> Tensor:
        """Mean loss of a batch.

        Args:
            features: (b, d) of any length.
            weight: (c, d) class weights.
            rows: (b,) which rows of the labels these are.
            normalise: take cosines; False for products with the features as they are.
        """
        if normalise and self.targets is None:
            return cosine_cross_entropy(features, weight, self.labels[rows], self.scale, label_loss=self.label_loss)
        features = unit(features) if normalise else features
        logits = self.scale * features @ weight.T
        if self.targets is None:
            return self.label_loss(logits, self.labels[rows])
        return binary_losses(drop_tiny_gradients(self._with_bias(logits)), self.targets[rows]).mean()

    def with_gradient(self, features: Tensor, weight: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """`from_features` of labels and cosines, and its gradient (b, d), which is written in place of the features."""
        assert self.targets is None
        labels = self.labels[rows]
        return cosine_loss_with_gradient(features, weight, labels, self.scale, label_loss=self.label_loss)

    def sums_at_temperatures(
        self, logits: Tensor, rows: Tensor, temperatures: Tensor, wrong_label_share: float
    ) -> Tensor:
        """(t,) summed loss of rows with scaled cosines (b, c), divided by each of the temperatures (t,).

        A share of the labels may be wrong, each other label being as likely, so that one wrong label can't outweigh the
        rest. Multi-label targets are taken as they are.

        >>> loss = Loss(1.0, torch.tensor([0, 1]), None, None)
        >>> sure_and_wrong = torch.tensor([[-100.0, 100.0], [100.0, -100.0]])
        >>> loss.sums_at_temperatures(sure_and_wrong, torch.arange(2), torch.ones(1), 0.1).round(decimals=2)
        tensor([5.9900])
        """
        if self.targets is not None:
            logits = self._with_bias(logits)
            return torch.stack([binary_losses(logits / t, self.targets[rows]).sum() for t in temperatures])
        labels, share = self.labels[rows, None], wrong_label_share
        offset = self.label_loss.offset
        adjusted = (logits / t if offset is None else logits / t + offset for t in temperatures)
        right = [each.softmax(dim=1).gather(1, labels)[:, 0] for each in adjusted]
        return torch.stack([-((1 - share) * p + share / logits.shape[1]).log().sum() for p in right])

    def of_null_model(self, rows: Tensor, n_classes: int) -> float:
        """Summed loss of a prediction without features: each class as likely; multi-label, as likely as frequent."""
        if self.targets is None:
            return len(rows) * math.log(n_classes)
        targets = self.targets[rows]
        share = targets.mean(dim=0)
        return float(-(torch.xlogy(targets, share) + torch.xlogy(1 - targets, 1 - share)).sum())

    def _with_bias(self, logits: Tensor) -> Tensor:
        return logits if self.bias is None else logits + self.bias


def drop_tiny_gradients(logits: Tensor) -> Tensor:
    """The same logits, whose gradient becomes zero where it is smaller than `MIN_GRADIENT`.

    With CLIP's logit scale of 100, most probabilities of a trained head are so small. They change no weight.

    >>> logits = torch.tensor([[100.0, 0.0]], requires_grad=True)
    >>> drop_tiny_gradients(logits).softmax(dim=1)[0, 1].backward()
    >>> logits.grad
    tensor([[0., 0.]])
    """
    if logits.requires_grad:
        logits.register_hook(_zero_below_min_gradient)
    return logits


def _zero_below_min_gradient(gradient: Tensor) -> Tensor:
    return hardshrink(gradient, MIN_GRADIENT)


def cosine_cross_entropy(
    features: Tensor,
    weight: Tensor,
    labels: Tensor,
    scale: float,
    min_length: float = 0.0,
    label_loss: LabelLoss = CROSS_ENTROPY,
) -> Tensor:
    """Mean cross-entropy, or another loss of labels, of ``scale * unit(features) @ weight.T``.

    Its gradients are computed by formula, with the loss.

    Args:
        features: (n, d), any length; with a gradient if it requires one.
        weight: (c, d), likewise.
        labels: (n,) class positions.
        scale: CLIP's ``exp(logit_scale)``.
        min_length: shorter features are divided by this length in place of their own. Without it a feature of zeros
            has logits of zero, as by `functional.unit`, and a gradient of zero: it has no direction.
        label_loss: which loss.

    Returns:
        A scalar.

    >>> features, weight = torch.tensor([[3.0, 4.0]]), torch.eye(2)
    >>> expected = torch.nn.functional.cross_entropy(torch.tensor([[6.0, 8.0]]), torch.tensor([1]))
    >>> bool(torch.isclose(cosine_cross_entropy(features, weight, torch.tensor([1]), 10.0), expected))
    True
    """
    return _CosineCrossEntropy.apply(features, weight, labels, scale, min_length, label_loss)


class _CosineCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, *others: Any) -> Tensor:
        needs = ctx.needs_input_grad[:2]
        value, *gradients = _cosine_loss(features.clone() if needs[0] else features, weight, needs, *others)
        ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if gradient is None else gradient * grads[0] for gradient in ctx.saved_tensors)
        return *gradients, None, None, None, None


def cosine_loss_with_gradient(
    features: Tensor,
    weight: Tensor,
    labels: Tensor,
    scale: float,
    min_length: float = 0.0,
    label_loss: LabelLoss = CROSS_ENTROPY,
) -> tuple[Tensor, Tensor]:
    """`cosine_cross_entropy`, and its gradient (n, d) for the features, which is written in their place.

    >>> features, weight = torch.tensor([[3.0, 4.0]]), torch.eye(2)
    >>> value, gradient = cosine_loss_with_gradient(features, weight, torch.tensor([1]), 10.0)
    >>> bool((gradient @ torch.tensor([3.0, 4.0])).abs() < 1e-6)  # a longer feature has the same cosines
    True
    """
    value, gradient, _ = _cosine_loss(features, weight, (True, False), labels, scale, min_length, label_loss)
    assert gradient is not None
    return value, gradient


def _cosine_loss(
    features: Tensor,
    weight: Tensor,
    needs: tuple[bool, bool],
    labels: Tensor,
    scale: float,
    min_length: float,
    label_loss: LabelLoss,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss, and the gradients for the features (n, d) and the weight (c, d) that are needed.

    The unit features are never made, and a gradient takes one product and one pass over (n, d). That of the features
    is written in their place.
    """
    # The gradient divides by squares of lengths: below this bound it overflows, and squares lose their digits.
    smallest = (8 * max(scale, 1.0) * torch.finfo(features.dtype).tiny) ** 0.5
    bound = max(min_length, smallest)
    length = features.norm(dim=1, keepdim=True)
    is_free = length >= bound
    length.clamp_min_(bound)
    factor = scale / length
    if min_length < smallest:
        factor.mul_(is_free)
    logits = (features @ weight.T).mul_(factor)  # (n, c)
    value, gradient = label_loss.with_gradient(logits, labels)
    # A longer feature has smaller logits, unless its length is at the bound.
    radial = (gradient * logits).sum(dim=1, keepdim=True).mul_(is_free).div_(length).div_(length).neg_()
    gradient.mul_(factor)
    weight_gradient = gradient.T @ features if needs[1] else None
    features_gradient = features.mul_(radial).addmm_(gradient, weight) if needs[0] else None
    return value, features_gradient, weight_gradient


def class_loss_with_gradient(
    x: Tensor, weight: Tensor, labels: Tensor, scale: float, label_loss: LabelLoss = CROSS_ENTROPY
) -> tuple[Tensor, Tensor]:
    """A loss of ``scale * x @ unit(weight).T``, and its gradient for the weight.

    Args:
        x: (n, d) unit features.
        weight: (c, d) class weights of any length above 0.
        labels: (n,) class positions.
        scale: CLIP's ``exp(logit_scale)``.
        label_loss: which loss.

    Returns:
        The mean loss, and the gradient (c, d).

    >>> x, weight = torch.tensor([[0.6, 0.8]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> value, gradient = class_loss_with_gradient(x, weight, torch.tensor([1]), 1.0)
    >>> expected = torch.nn.functional.cross_entropy(torch.tensor([[0.6, 0.8]]), torch.tensor([1]))
    >>> bool(torch.isclose(value, expected)), bool((gradient * weight).sum(dim=1).abs().max() < 1e-6)
    (True, True)
    """
    # Logits are divided by lengths, not weights: a pass over (n, c) in place of several over (c, d).
    squares = weight.square().sum(dim=1)
    factor = scale * squares.rsqrt()
    logits = (x @ weight.T).mul_(factor)
    value, gradient = label_loss.with_gradient(logits, labels)
    radial = (gradient * logits).sum(dim=0)
    return value, (weight * (-radial / squares)[:, None]).addmm_(gradient.mul_(factor).T, x)
