"""The bottleneck of CLIP-Adapter: two linear layers with a residual connection.

Paper: Gao et al., IJCV 2023, https://arxiv.org/abs/2110.04544, equations 1 to 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

ADAPTER_TENSORS = ("down", "up", "down_bias", "up_bias")
"""Names of an adapter's tensors."""


class Adapter(nn.Module):
    """Two linear layers with a residual connection around them, for image features f or class text W.

        A(f) = ReLU(f W1) W2                  equation 1; equation 2 is the same with W for f
        f* = ratio A(f) + (1 - ratio) f       equation 3, ratio alpha; equation 4 with W for f, ratio beta

    Args:
        down: (h, d), W1 transposed.
        up: (d, h), W2 transposed.
        down_bias: (h,), or None.
        up_bias: (d,), or None.
        final_relu: a second ReLU after W2, as in the released code.
    """

    def __init__(
        self,
        down: Tensor,
        up: Tensor,
        down_bias: Tensor | None = None,
        up_bias: Tensor | None = None,
        final_relu: bool = False,
    ) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        self.down_bias = None if down_bias is None else nn.Parameter(down_bias)
        self.up_bias = None if up_bias is None else nn.Parameter(up_bias)
        self.final_relu = final_relu
        self.centre: Tensor | None = None  # (d,) is subtracted from the input (ours)

    def forward(self, x: Tensor) -> Tensor:
        """A(x) of rows (n, d)."""
        adapted = linear(self._hidden(x), self.up, self.up_bias)  # (n, d)
        return adapted.relu() if self.final_relu else adapted

    @staticmethod
    def blend(x: Tensor, adapted: Tensor, ratio: Tensor | float) -> Tensor:
        """The residual connection: (n, d) rows and their adapted form, with the weight of the ADAPTED one.

        >>> Adapter.blend(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 0.25)
        tensor([[0.7500, 0.2500]])
        """
        return ratio * adapted + (1 - ratio) * x

    def _hidden(self, x: Tensor) -> Tensor:
        return linear(x, self.down, self._input_bias()).relu()  # (n, h)

    def _input_bias(self) -> Tensor | None:
        """W1 (x - centre) + bias is W1 x + this: the centre costs no pass over (n, d)."""
        if self.centre is None:
            return self.down_bias
        shift = -(self.down @ self.centre)
        return shift if self.down_bias is None else self.down_bias + shift

    def blend_up_to_length(self, x: Tensor, ratio: Tensor | float) -> Tensor:
        """`blend` of x and its adapted form up to a positive factor, on which cosines do not depend.

        If the ratio is a number the factor is ``1 / (1 - ratio)``: the blend is then part of the product with W2, and
        costs no further pass over (n, d).

        >>> adapter = Adapter(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [1.0]]))
        >>> adapter.blend_up_to_length(torch.tensor([[1.0, 0.0]]), 0.25).detach()
        tensor([[1.0000, 0.3333]])
        """
        if self.final_relu or isinstance(ratio, Tensor) or ratio == 1:
            return self.blend(x, self(x), ratio)
        return self._add_up_to_length(x, self._hidden(x), ratio / (1 - ratio))

    def _add_up_to_length(self, x: Tensor, hidden: Tensor, relative: float) -> Tensor:
        """The rows plus ``relative`` times their adapted form."""
        start = x if self.up_bias is None else torch.add(x, self.up_bias, alpha=relative)
        return torch.addmm(start, hidden, self.up.T, alpha=relative)

    def loss_with_gradients(
        self, x: Tensor, ratio: float, loss: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, list[Tensor]]:
        """A loss of `blend_up_to_length`, and its gradients for the parameters in their order, by formula.

        Without a second ReLU, and with a ratio below 1.

        Args:
            x: (n, d) rows.
            ratio: weight of the adapted rows.
            loss: the value for blended rows (n, d), and its gradient (n, d) for them.

        >>> adapter = Adapter(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [1.0]]))
        >>> x = torch.tensor([[1.0, 0.0]])
        >>> value, gradients = adapter.loss_with_gradients(x, 0.5, lambda blend: (blend.sum(), torch.ones(1, 2)))
        >>> [gradient.tolist() for gradient in gradients]
        [[[1.0, 0.0]], [[1.0], [1.0]]]
        """
        relative = ratio / (1 - ratio)
        with torch.no_grad():
            hidden = self._hidden(x)
            value, of_blend = loss(self._add_up_to_length(x, hidden, relative))
            of_up = (of_blend.T @ hidden).mul_(relative)
            of_hidden = (of_blend @ self.up).mul_(hidden > 0).mul_(relative)
            of_down_bias = of_hidden.sum(dim=0)
            of_down = of_hidden.T @ x
            if self.centre is not None:
                of_down.addr_(of_down_bias, self.centre, alpha=-1)
            gradients = [of_down, of_up]
            if self.down_bias is not None:
                gradients.append(of_down_bias)
            if self.up_bias is not None:
                gradients.append(relative * of_blend.sum(dim=0))
        return value, gradients

    @classmethod
    def initial(
        cls,
        d: int,
        hidden: int,
        generator: torch.Generator,
        dtype: torch.dtype,
        *,
        bias: bool = False,
        zero: bool = False,
        final_relu: bool = False,
    ) -> Adapter:
        """Start of training: uniform in plus or minus 1 / sqrt(fan in), torch's default for linear layers.

        With `zero` the last layer starts at zero. Draws come from the generator, where ``nn.Linear`` takes torch's own.
        """

        def uniform(*shape: int, fan_in: int) -> Tensor:
            return (torch.rand(*shape, generator=generator, dtype=dtype) * 2 - 1) / math.sqrt(fan_in)

        down, up = uniform(hidden, d, fan_in=d), uniform(d, hidden, fan_in=hidden)
        down_bias = uniform(hidden, fan_in=d) if bias else None
        up_bias = uniform(d, fan_in=hidden) if bias else None
        adapter = cls(down, up, down_bias, up_bias, final_relu)
        if zero:
            with torch.no_grad():
                for last in (adapter.up, adapter.up_bias):
                    if last is not None:
                        last.zero_()
        return adapter

    @classmethod
    def of_head(cls, head: object, dtype: torch.dtype) -> Adapter | None:
        """The adapter whose tensors a fitted head has as ``down_``, ``up_`` and so on; None if it has none."""
        tensors = {name: getattr(head, f"{name}_", None) for name in ADAPTER_TENSORS}
        if tensors["down"] is None:
            return None
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items() if tensor is not None}
        adapter = cls(**tensors, final_relu=getattr(head, "final_relu", False))  # type: ignore[arg-type]
        return adapter.requires_grad_(False)

    def tensors(self) -> dict[str, Tensor]:
        """The parameters that there are, by name, without their gradients."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def fold_centre(self) -> Adapter:
        """The same function, with the centre as part of the first layer's bias.

        >>> adapter = Adapter(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [1.0]]))
        >>> adapter.centre = torch.tensor([2.0, 5.0])
        >>> adapter.fold_centre().down_bias.tolist()
        [-2.0]
        """
        with torch.no_grad():
            tensors = {**self.tensors(), "down_bias": self._input_bias()}
        folded = Adapter(**tensors, final_relu=self.final_relu)  # type: ignore[arg-type]
        return folded.requires_grad_(self.down.requires_grad)
