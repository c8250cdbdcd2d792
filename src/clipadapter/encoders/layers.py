"""The attention layers of a network, layers with prompts among their tokens, and copies that share weights.

A copy has modules of its own that hold the tensors of the original, so it needs memory only for the weights that are
replaced in it; the original never changes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def copy_sharing_weights(module: ModuleT) -> ModuleT:
    """A copy of a module that holds the same tensors; replacing a part of the copy leaves the original unchanged."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]})


@dataclass(frozen=True, eq=False)
class Matrix:
    """One matrix of a transformer layer: some rows of a weight."""

    parent: nn.Module  # of the module that multiplies by the matrix
    child: str  # name of that module in its parent
    owner: nn.Module  # module that has the weight
    weight: str  # its name in its owner
    rows: slice  # rows of the weight

    @property
    def module(self) -> nn.Module:
        """The module that multiplies: a linear layer, or a whole ``nn.MultiheadAttention``."""
        return getattr(self.parent, self.child)

    @property
    def full_weight(self) -> Tensor:
        """The whole weight, with the rows of other matrices."""
        return getattr(self.owner, self.weight)

    @property
    def values(self) -> Tensor:
        """(out, in): the rows of this matrix."""
        return self.full_weight[self.rows]


AttentionLayer = Mapping[str, Matrix]
"""A self-attention layer: the matrices "q", "k" and "v" give queries, keys and values of a token, "o" the output.

"u" and "d" are the up and down projections of the MLP after it.
"""


MLP_LAYERS = (
    (("mlp", "c_fc"), ("mlp", "c_proj")),
    (("mlp", "fc1"), ("mlp", "fc2")),
    (("intermediate", "dense"), ("output", "dense")),
)
"""Paths of "u" and "d" in a block of open_clip, timm and BERT."""


def attention_layers(network: nn.Module, mlp: bool = False) -> list[AttentionLayer]:
    """The self-attention layers of a network, from the input to the output.

    Transformers of open_clip, timm and BERT are supported. Pooling layers are not included.

    Args:
        network: a tower or a part of one.
        mlp: include the matrices of the MLP after each layer, if it consists of two linear layers.

    >>> from open_clip.transformer import Transformer
    >>> [sorted(layer) for layer in attention_layers(Transformer(width=8, layers=2, heads=2))]
    [['k', 'o', 'q', 'v'], ['k', 'o', 'q', 'v']]
    >>> [sorted(layer) for layer in attention_layers(Transformer(width=8, layers=1, heads=2), mlp=True)]
    [['d', 'k', 'o', 'q', 'u', 'v']]
    """
    mlp_of_module: dict[int, AttentionLayer] = {}
    for block in network.modules() if mlp else ():
        if mlp_matrices := _mlp(block):
            attention_modules = (getattr(block, name, None) for name in ("attn", "attention"))
            mlp_of_module |= {id(module): mlp_matrices for module in (block, *attention_modules)}
    return [
        {**layer, **mlp_of_module.get(id(module), {})}
        for module in network.modules()
        for layer in (*_clip(module), *_timm(module), *_bert(module))
    ]


def _clip(block: nn.Module) -> Iterator[AttentionLayer]:
    """``nn.MultiheadAttention`` in a block that feeds it one sequence, as in open_clip."""
    attention = getattr(block, "attn", None)
    if not isinstance(attention, nn.MultiheadAttention) or not hasattr(block, "ln_1") or hasattr(block, "ln_1_kv"):
        return
    w = attention.embed_dim
    qkv = {letter: Matrix(block, "attn", attention, "in_proj_weight", _rows(i, w)) for i, letter in enumerate("qkv")}
    yield {**qkv, "o": Matrix(block, "attn", attention.out_proj, "weight", slice(0, w))}


def _timm(attention: nn.Module) -> Iterator[AttentionLayer]:
    """One linear layer for queries, keys and values."""
    packed, out = getattr(attention, "qkv", None), getattr(attention, "proj", None)
    if not isinstance(packed, nn.Linear) or not isinstance(out, nn.Linear):
        return
    size = packed.out_features // 3
    qkv = {letter: Matrix(attention, "qkv", packed, "weight", _rows(i, size)) for i, letter in enumerate("qkv")}
    yield {**qkv, "o": _whole(attention, "proj", out)}


def _bert(attention: nn.Module) -> Iterator[AttentionLayer]:
    """One linear layer for each matrix; the output layer is in a sibling of the module that has the others."""
    inner, outer = getattr(attention, "self", None), getattr(attention, "output", None)
    out = getattr(outer, "dense", None)
    if not isinstance(inner, nn.Module) or not isinstance(outer, nn.Module) or not isinstance(out, nn.Linear):
        return
    linears = {name: getattr(inner, name, None) for name in ("query", "key", "value")}
    if all(isinstance(linear, nn.Linear) for linear in linears.values()):
        qkv = {name[0]: _whole(inner, name, linear) for name, linear in linears.items()}
        yield {**qkv, "o": _whole(outer, "dense", out)}


def _mlp(block: nn.Module) -> AttentionLayer:
    """The matrices of the MLP of a block; empty if it has none that is supported."""
    for names in MLP_LAYERS:
        parents = [(getattr(block, parent, None), child) for parent, child in names]
        linears = [getattr(parent, child, None) for parent, child in parents]
        if all(isinstance(linear, nn.Linear) for linear in linears):
            return {name: _whole(*place, linear) for name, place, linear in zip("ud", parents, linears, strict=True)}
    return {}


def _whole(parent: Any, child: str, linear: Any) -> Matrix:
    return Matrix(parent, child, linear, "weight", slice(0, linear.out_features))


def _rows(i: int, size: int) -> slice:
    return slice(i * size, (i + 1) * size)


PromptSource = Callable[[], Tensor]  # gives the prompts (n, w) of one block. A module is moved and saved with the tower


class FixedPrompts(nn.Module):
    """Prompts (n, w) that do not change."""

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def forward(self) -> Tensor:
        """(n, w)."""
        return self.values


class PromptedBlock(nn.Module):
    """A block that gets prompts in place of tokens: those after the first of a text, the last ones of a picture."""

    def __init__(self, block: Any, source: PromptSource, is_text: bool) -> None:
        super().__init__()
        self.block, self.source, self.is_text = block, source, is_text

    def forward(self, x: Tensor, *, attn_mask: Tensor | None = None) -> Tensor:
        """Tokens (k, l, w) to the same shape."""
        return self.block(self.insert(x), attn_mask=attn_mask)

    def insert(self, x: Tensor) -> Tensor:
        """Tokens (k, l, w) with the prompts in their places."""
        prompts = _for_each_row(self.source, x)
        n = prompts.shape[1]
        parts = [x[:, :1], prompts, x[:, 1 + n :]] if self.is_text else [x[:, :-n], prompts]
        return torch.cat(parts, dim=1)

    @property
    def mlp(self) -> Any:
        """The MLP of the block: the transformer reads the type of its weights."""
        return self.block.mlp

    def get_weight_dtype(self) -> Any:
        """Type of the weights, which open_clip asks since version 3.2."""
        return self.block.get_weight_dtype()


def without_prompts(block: Any) -> Any:
    """The block itself, without the prompts that it may get."""
    return block.block if isinstance(block, PromptedBlock) else block


class PromptedInput(nn.Module):
    """The layer norm before the first block of an image tower, with prompts after its input tokens."""

    def __init__(self, norm: nn.Module, source: PromptSource) -> None:
        super().__init__()
        self.norm, self.source = norm, source

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (k, l, w) to (k, l + n, w)."""
        return self.norm(torch.cat([x, _for_each_row(self.source, x)], dim=1))


def _for_each_row(source: PromptSource, x: Tensor) -> Tensor:
    """Prompts (k, n, w) for the k rows of x."""
    return source().to(x.dtype).expand(x.shape[0], -1, -1)
