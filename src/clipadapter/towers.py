"""What methods that train through an encoder may ask of it: a text tower that takes token embeddings, a projection.

An encoder gives them by `Encoder.text_tower` and `Encoder.projection`; a method gets them with the class text.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor, nn

_WORDS = re.compile(r"\w+|[^\w\s]")
WEIGHT = 0.01
"""Length of an unknown word's vector, as a share of the known ones' in all."""


class TextTower(ABC):
    """A frozen text tower that takes token embeddings, so that a loss of its features has a gradient in them.

    ``encode(embed(ids), lengths)`` of the tokens of some texts is what the encoder's ``encode_text`` gives for them,
    to rounding.
    """

    fingerprint: str
    """The encoder's."""
    width: int
    """Width w of a token's embedding."""
    dim: int
    """Width d of a feature."""
    context_length: int
    """Most tokens in a text, marks included."""
    device: str
    """Where the weights are."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text with its marks, without padding; a text that is too long is cut."""

    @property
    @abstractmethod
    def marks(self) -> tuple[int, int]:
        """How many tokens that stand for no word begin and end every text, such as (1, 1)."""

    def network(self) -> nn.Module | None:
        """The layers that a text goes through, for methods that change weights; None, the default, if it has none."""
        return None

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Token numbers (...,) to embeddings (..., w), places not yet added."""

    @abstractmethod
    def encode(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """Embeddings (k, l, w), of which the first ``lengths`` (k,) of each row count, to raw features (k, d).

        A row does not depend on what stands behind its length, nor on the other rows. Differentiable in the
        embeddings; weights have no gradient.
        """

    def begin(self, embeddings: Tensor) -> Beginning:
        """Make ready what some texts begin with: embeddings (p, w), for `encode_after`.

        A tower whose tokens don't see what stands behind them runs its layers here, once for all texts.
        """
        return Beginning(embeddings)

    def encode_after(self, beginning: Beginning, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """`encode` of texts that begin alike, to rounding; differentiable in the beginning's embeddings as well.

        Args:
            beginning: from `begin`.
            embeddings: (k, l, w), of what stands behind it.
            lengths: (k,), how many of each row's count, without the beginning; 1 or more.

        Returns:
            Raw features (k, d).
        """
        alike = beginning.embeddings
        whole = torch.cat([alike.to(embeddings.dtype).expand(len(embeddings), *alike.shape), embeddings], dim=1)
        return self.encode(whole, lengths + len(alike))


@dataclass(frozen=True, eq=False)
class Beginning:
    """What some texts begin with; see `TextTower.begin`.

    Args:
        embeddings: (p, w).
        layers: keys and values that each layer has made of it; none if they are made with the texts.
    """

    embeddings: Tensor
    layers: Sequence[tuple[Tensor, Tensor]] = ()


@dataclass(frozen=True, eq=False)
class Projection:
    """The last, linear step of an image tower: ``feature = before @ weight + bias``.

    Args:
        weight: (p, d).
        bias: (d,), or None.
    """

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, before: Tensor) -> Tensor:
        """(n, p) to (n, d)."""
        found = before @ self.weight
        return found if self.bias is None else found + self.bias


class WordTower(TextTower):
    """A text tower for tests: a text's feature is the sum of its words' vectors; words that are not known weigh little.

    Args:
        vectors: known words in lower case to (d,) vectors.
        dim: d.

    >>> tower = WordTower({"red": torch.ones(4)}, dim=4)
    >>> tokens = torch.tensor(tower.tokenize(["a red thing"]))
    >>> bool((tower.encode(tower.embed(tokens), torch.tensor([4])) - 1).abs().max() < 0.2)
    True
    """

    device = "cpu"
    context_length = 77
    marks = (1, 0)
    MARK = -1

    def __init__(self, vectors: Mapping[str, Tensor], dim: int) -> None:
        self.width = self.dim = dim
        self._words = list(vectors)
        self._vectors = [vectors[word].detach().float().clone() for word in self._words]
        self.fingerprint = f"words {self._words} {dim}"

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """A mark, then a number for each word and sign: its place among the known words, or one of its own."""
        return [[self.MARK, *map(self._number, _WORDS.findall(text.lower()))][: self.context_length] for text in texts]

    def embed(self, ids: Tensor) -> Tensor:
        """(...,) to (..., d)."""
        rows = [self._vector(number) for number in ids.flatten().tolist()]
        return torch.stack(rows).reshape(*ids.shape, self.dim)

    def encode(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """(k, l, d) to (k, d)."""
        told = torch.arange(embeddings.shape[1]) < lengths[:, None]
        # One by one: a sum may round otherwise in a longer row.
        total = torch.zeros_like(embeddings[:, 0])
        for place in range(embeddings.shape[1]):
            total = total + torch.where(told[:, place, None], embeddings[:, place], 0.0)
        return total

    def _number(self, word: str) -> int:
        if word in self._words:
            return self._words.index(word)
        return len(self._words) + int.from_bytes(blake2b(word.encode(), digest_size=6).digest(), "big")

    def _vector(self, number: int) -> Tensor:
        if 0 <= number < len(self._words):
            return self._vectors[number]
        vector = torch.randn(self.dim, generator=torch.Generator().manual_seed(number + 2))
        return vector * WEIGHT * (sum(float(each.norm()) for each in self._vectors) or 1.0) / self.dim**0.5
