"""Parts of an encoder that some methods train through: a text tower that takes token embeddings, and a projection.

An encoder offers them as `Encoder.text_tower` and `Encoder.projection`. A method receives them with the text features.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import takewhile

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

WORD_PATTERN = re.compile(r"\w+|[^\w\s]")
UNKNOWN_WORD_SCALE = 0.01
"""Length of the vector of an unknown word, as a fraction of the summed lengths of the known ones."""


class TextTower(ABC):
    """A frozen text tower that takes token embeddings, so that a loss of its features has a gradient in them.

    ``encode(embed(ids), lengths)`` of the tokens of some texts equals the encoder's ``encode_text`` for these texts,
    up to rounding.
    """

    fingerprint: str  # of the encoder
    width: int  # w of a token embedding
    dim: int  # d of a feature
    context_length: int  # maximum number of tokens in a text, special tokens included
    device: str  # of the weights

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text with its special tokens, without padding; a text that is too long is truncated."""

    @cached_property
    def special_token_counts(self) -> tuple[int, int]:
        """How many special tokens stand at the beginning and at the end of every text, such as (1, 1)."""
        empty, word = self.tokenize(["", "cat"])
        at_beginning = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(empty, word, strict=False)))
        return at_beginning, len(empty) - at_beginning

    def network(self) -> nn.Module | None:
        """The layers that a text passes, for methods that change weights; None, the default, if it has none."""
        return None

    def final_norm(self) -> nn.Module | None:
        """The norm after the last layer, if `network` does not contain it; None, the default, if there is none."""
        return None

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (...,) to embeddings (..., w), without positional embeddings."""

    @abstractmethod
    def encode(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """Embeddings (k, l, w), of which the first ``lengths`` (k,) of each row count, to raw features (k, d).

        A row depends neither on what follows its length nor on the other rows. The result is differentiable in the
        embeddings; weights have no gradient.
        """

    def encode_tokens(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Features (k, d) of texts by their tokens, padded to the longest text by token 0, which changes no feature."""
        ids = pad_sequence([torch.tensor(each) for each in tokens], batch_first=True)
        return self.encode(self.embed(ids), torch.tensor([len(each) for each in tokens]))

    def after_prefix(self, prefix: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """`encode` of texts that begin with embeddings (p, w), as a function of those after them, up to rounding.

        It takes embeddings (k, l, w) and lengths (k,), 1 or more, and is differentiable in the prefix too. A tower with
        causal attention runs its layers for the prefix here, once for all texts.
        """

        def encode(embeddings: Tensor, lengths: Tensor) -> Tensor:
            common = prefix.to(embeddings.dtype).expand(len(embeddings), *prefix.shape)
            return self.encode(torch.cat([common, embeddings], dim=1), lengths + len(prefix))

        return encode


@dataclass(frozen=True, eq=False)
class Projection:
    """The last, linear step of an image tower: ``feature = unprojected @ weight + bias``."""

    weight: Tensor  # (p, d)
    bias: Tensor | None = None  # (d,), or None


class WordTower(TextTower):
    """A text tower for tests: the feature of a text is the sum of its word vectors; unknown words have short ones.

    Args:
        vectors: known words in lower case to (d,) vectors.
        dim: d.
    """

    device = "cpu"
    context_length = 77
    START_TOKEN = -1

    def __init__(self, vectors: Mapping[str, Tensor], dim: int) -> None:
        self.width = self.dim = dim
        self._ids = {word: i for i, word in enumerate(vectors)}
        self._vectors = [vector.detach().float().clone() for vector in vectors.values()]
        self.fingerprint = f"words {list(vectors)} {dim}"

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """A start token, then a token id for each word and punctuation mark: its index in the vocabulary, or a hash."""
        return [
            [self.START_TOKEN, *map(self._token_id, WORD_PATTERN.findall(text.lower()))][: self.context_length]
            for text in texts
        ]

    def embed(self, ids: Tensor) -> Tensor:
        rows = [self._vector(token_id) for token_id in ids.flatten().tolist()]
        return torch.stack(rows).reshape(*ids.shape, self.dim)

    def encode(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        is_token = torch.arange(embeddings.shape[1]) < lengths[:, None]
        # One position after the other: a sum over a longer row may round differently.
        total = torch.zeros_like(embeddings[:, 0])
        for position in range(embeddings.shape[1]):
            total = total + torch.where(is_token[:, position, None], embeddings[:, position], 0.0)
        return total

    def _token_id(self, word: str) -> int:
        unknown = len(self._ids) + int.from_bytes(blake2b(word.encode(), digest_size=6).digest(), "big")
        return self._ids.get(word, unknown)

    def _vector(self, token_id: int) -> Tensor:
        if 0 <= token_id < len(self._vectors):
            return self._vectors[token_id]
        vector = torch.randn(self.dim, generator=torch.Generator().manual_seed(token_id + 2))
        return vector * UNKNOWN_WORD_SCALE * (sum(float(each.norm()) for each in self._vectors) or 1.0) / self.dim**0.5
