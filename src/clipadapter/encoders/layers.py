"""The attention layers of a network, and a network that shares the weights of another one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def copy_sharing_weights(module: M) -> M:
    """New modules that hold the same tensors: what is put in the place of one is not seen by the other.

    >>> first = nn.Linear(2, 2)
    >>> second = copy_sharing_weights(first)
    >>> second is first, second.weight is first.weight
    (False, True)
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    return copy.deepcopy(module, memo)


@dataclass(frozen=True, eq=False)
class Matrix:
    """One of the matrices of a transformer's layer: some rows of a weight.

    Args:
        parent: the module that has the one which multiplies.
        child: its name there.
        owner: the module that has the weight.
        weight: its name there.
        rows: which rows of it.
    """

    parent: nn.Module
    child: str
    owner: nn.Module
    weight: str
    rows: slice

    @property
    def module(self) -> nn.Module:
        """The module that multiplies: a linear layer, or a whole ``nn.MultiheadAttention``."""
        found = getattr(self.parent, self.child)
        assert isinstance(found, nn.Module)
        return found

    @property
    def full_weight(self) -> Tensor:
        """The whole weight."""
        found = getattr(self.owner, self.weight)
        assert isinstance(found, Tensor)
        return found

    @property
    def values(self) -> Tensor:
        """(out, in): its own rows."""
        return self.full_weight[self.rows]


AttentionLayer = Mapping[str, Matrix]
"""A self-attention layer: matrices "q", "k", "v" make queries, keys and values of a token, "o" its output.

In the MLP after it, "u" makes a token wider, "d" as narrow as before.
"""


MLPS = (
    (("mlp", "c_fc"), ("mlp", "c_proj")),
    (("mlp", "fc1"), ("mlp", "fc2")),
    (("intermediate", "dense"), ("output", "dense")),
)
"""Where "u" and "d" stand in a block of open_clip, timm and BERT."""


def attention_layers(network: nn.Module, mlp: bool = False) -> list[AttentionLayer]:
    """The self-attention layers of a network, from the input to the output.

    Known are those of CLIP's transformers in open_clip, of timm's, and of BERT; a pooling layer is none.

    Args:
        network: a tower or a part of one.
        mlp: also give the matrices of the MLP after each, where it is known: two linear layers, one after the other.

    >>> from open_clip.transformer import Transformer
    >>> [sorted(layer) for layer in attention_layers(Transformer(width=8, layers=2, heads=2))]
    [['k', 'o', 'q', 'v'], ['k', 'o', 'q', 'v']]
    >>> [sorted(layer) for layer in attention_layers(Transformer(width=8, layers=1, heads=2), mlp=True)]
    [['d', 'k', 'o', 'q', 'u', 'v']]
    """
    after: dict[int, AttentionLayer] = {}
    for block in network.modules() if mlp else ():
        if found := _mlp(block):
            inner = (getattr(block, name, None) for name in ("attn", "attention"))
            after |= {id(each): found for each in (block, *inner)}
    return [
        {**layer, **after.get(id(module), {})}
        for module in network.modules()
        for layer in (*_clip(module), *_timm(module), *_bert(module))
    ]


def _clip(block: nn.Module) -> Iterator[AttentionLayer]:
    """``nn.MultiheadAttention`` in a block that feeds it one sequence, as in open_clip."""
    attention = getattr(block, "attn", None)
    if not isinstance(attention, nn.MultiheadAttention) or not hasattr(block, "ln_1") or hasattr(block, "ln_1_kv"):
        return
    w = attention.embed_dim
    parts = {letter: Matrix(block, "attn", attention, "in_proj_weight", _part(i, w)) for i, letter in enumerate("qkv")}
    yield {**parts, "o": Matrix(block, "attn", attention.out_proj, "weight", slice(0, w))}


def _timm(attention: nn.Module) -> Iterator[AttentionLayer]:
    """One linear layer for queries, keys and values."""
    packed, out = getattr(attention, "qkv", None), getattr(attention, "proj", None)
    if not isinstance(packed, nn.Linear) or not isinstance(out, nn.Linear):
        return
    size = packed.out_features // 3
    parts = {letter: Matrix(attention, "qkv", packed, "weight", _part(i, size)) for i, letter in enumerate("qkv")}
    yield {**parts, "o": Matrix(attention, "proj", out, "weight", slice(0, out.out_features))}


def _bert(attention: nn.Module) -> Iterator[AttentionLayer]:
    """A linear layer each; the one for the output stands beside the module that has the others."""
    inner, outer = getattr(attention, "self", None), getattr(attention, "output", None)
    out = getattr(outer, "dense", None)
    names = {"q": "query", "k": "key", "v": "value"}
    if not isinstance(inner, nn.Module) or not isinstance(outer, nn.Module) or not isinstance(out, nn.Linear):
        return
    found = {letter: getattr(inner, name, None) for letter, name in names.items()}
    parts = {
        letter: Matrix(inner, names[letter], linear, "weight", slice(0, linear.out_features))
        for letter, linear in found.items()
        if isinstance(linear, nn.Linear)
    }
    if len(parts) == len(names):
        yield {**parts, "o": Matrix(outer, "dense", out, "weight", slice(0, out.out_features))}


def _mlp(block: nn.Module) -> AttentionLayer:
    """The MLP of a block, if it has one that is known."""
    for names in MLPS:
        places = [(getattr(block, parent, None), child) for parent, child in names]
        linears = [getattr(parent, child, None) for parent, child in places]
        found = {
            letter: Matrix(parent, child, linear, "weight", slice(0, linear.out_features))
            for letter, (parent, child), linear in zip("ud", places, linears, strict=True)
            if isinstance(parent, nn.Module) and isinstance(linear, nn.Linear)
        }
        if len(found) == len(names):
            return found
    return {}


def _part(i: int, size: int) -> slice:
    return slice(i * size, (i + 1) * size)
