"""The bottleneck of CLIP-Adapter and its residual blend (Gao et al., https://arxiv.org/abs/2110.04544)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from clipadapter.errors import InputError
from clipadapter.functional import unit

Mix = Callable[..., Tensor]
"""`blend` or `unadapted`."""


def blend(x: Tensor, adapted: Tensor, ratio: Tensor | float, renormalise: bool = True) -> Tensor:
    """Residual blend, equations 3 and 4: ``ratio * adapted + (1 - ratio) * x``.

    Args:
        x: (n, d) features before the adapter.
        adapted: (n, d) its output.
        ratio: weight of the ADAPTED feature, alpha or beta of the paper.
        renormalise: scale the result to unit length.

    Returns:
        (n, d).

    >>> blend(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 0.25, renormalise=False)
    tensor([[0.7500, 0.2500]])
    """
    mixed = ratio * adapted + (1 - ratio) * x
    return unit(mixed) if renormalise else mixed


def unadapted(x: Tensor, adapted: Tensor, ratio: Tensor | float, renormalise: bool = True) -> Tensor:
    """The part (n, d) of `blend` that does not come from the adapter, as long as it is in there; arguments likewise.

    >>> x, adapted = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> unadapted(x, adapted, 0.25, renormalise=False)
    tensor([[0.7500, 0.0000]])
    """
    own = (1 - ratio) * x
    return own / (own + ratio * adapted).norm(dim=1, keepdim=True).clamp_min(1e-12) if renormalise else own


def check_ratio(name: str, value: float | str) -> None:
    """Refuse what is no ratio, by name: 0 to 1, "auto", "learned" and "dynamic" are."""
    if value not in ("auto", "learned", "dynamic") and (isinstance(value, str) or not 0 <= value <= 1):
        raise InputError(f"{name} must be 0 to 1, 'auto', 'learned' or 'dynamic', but is {value!r}")


def attended(x: Tensor, text: Tensor, scale: float) -> Tensor:
    """Input (n, 2d) of the paper's Q(f, W): features (n, d), and the class text (c, d) that each of them points to.

    The second is the mean of the class text under zero-shot's probabilities, so that the input has one width for any
    number of classes.

    >>> attended(torch.tensor([[0.6, 0.8]]), torch.eye(2), scale=0.0)
    tensor([[0.6000, 0.8000, 0.5000, 0.5000]])
    """
    return torch.cat([x, (scale * x @ text.T).softmax(dim=1) @ text], dim=1)


def gated(gate: Tensor, inputs: Tensor) -> Tensor:
    """A ratio (n, 1) as a function of inputs (n, k): the sigmoid of a linear map.

    The paper does not publish the architecture of its Q(f, W); this is the simplest that trains.

    Args:
        gate: (1 + k,), the constant first; or (1,) for a ratio that is one number.
        inputs: (n, k), not looked at for one number.

    >>> gated(torch.tensor([0.0, 1.0]), torch.tensor([[0.0], [100.0]]))
    tensor([[0.5000],
            [1.0000]])
    """
    return (gate[0] + inputs @ gate[1:] if len(gate) > 1 else gate).sigmoid().view(-1, 1)


@dataclass
class Bottleneck:
    """Two linear maps with a ReLU between them, equation 1: ``A(x) = ReLU(x W1) W2``.

    Args:
        down: (h, d).
        up: (d, h).
        down_bias: (h,) or None.
        up_bias: (d,) or None.
    """

    down: Tensor
    up: Tensor
    down_bias: Tensor | None = None
    up_bias: Tensor | None = None

    @classmethod
    def initial(
        cls, d: int, h: int, bias: bool, generator: torch.Generator, dtype: torch.dtype, zero: bool = False
    ) -> Bottleneck:
        """Start of training: uniform in plus or minus 1 / sqrt(fan in), torch's default for linear layers.

        With `zero` the last layer starts at zero.
        """

        def uniform(*shape: int, fan_in: int) -> Tensor:
            return (torch.rand(*shape, generator=generator, dtype=dtype) * 2 - 1) / math.sqrt(fan_in)

        down, up = uniform(h, d, fan_in=d), uniform(d, h, fan_in=h)
        start = cls(down, up, *((uniform(h, fan_in=d), uniform(d, fan_in=h)) if bias else ()))
        if zero:
            start.up.zero_()
            if start.up_bias is not None:
                start.up_bias.zero_()
        return start

    @classmethod
    def learned(cls, head: object, dtype: torch.dtype) -> Bottleneck | None:
        """The one whose tensors a head has by its fields' names and ``_``; None if there is none."""
        found = {field.name: getattr(head, f"{field.name}_", None) for field in fields(cls)}
        if found["down"] is None:
            return None
        return cls(**{name: tensor.to(dtype) for name, tensor in found.items() if tensor is not None})

    def __call__(self, x: Tensor, final_relu: bool = False) -> Tensor:
        """(n, d) to (n, d); a second ReLU at the end if wished, as in the released code."""
        out = torch.nn.functional.linear(self._hidden(x), self.up, self.up_bias)  # (n, d)
        return out.relu() if final_relu else out

    def blended(self, x: Tensor, ratio: Tensor | float, final_relu: bool = False) -> Tensor:
        """What `blend` gives for x and its adapted form, but for the length: enough for cosines.

        A ratio that is a number costs no pass over (n, d) beside the product.

        >>> layer = Bottleneck(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [1.0]]))
        >>> layer.blended(torch.tensor([[1.0, 0.0]]), 0.25)
        tensor([[1.0000, 0.3333]])
        """
        if final_relu or isinstance(ratio, Tensor) or ratio == 1:
            return blend(x, self(x, final_relu), ratio, renormalise=False)
        odds = ratio / (1 - ratio)
        start = x if self.up_bias is None else torch.add(x, self.up_bias, alpha=odds)
        return torch.addmm(start, self._hidden(x), self.up.T, alpha=odds)

    def _hidden(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.down, self.down_bias).relu()  # (n, h)

    def around(self, centre: Tensor | None) -> Bottleneck:
        """The bottleneck of ``x - centre``, as a bias of the first layer: `centre` is (d,), or None for zeros.

        >>> layer = Bottleneck(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [1.0]]))
        >>> layer.around(torch.tensor([2.0, 5.0]))(torch.tensor([[3.0, 0.0]]))
        tensor([[0., 1.]])
        """
        if centre is None:
            return self
        shift = -(self.down @ centre)
        return replace(self, down_bias=shift if self.down_bias is None else self.down_bias + shift)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors there are, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}
