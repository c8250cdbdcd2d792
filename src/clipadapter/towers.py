"""What methods that train through an encoder may ask of it: a text tower that takes token embeddings, a projection.

An encoder gives them by `Encoder.text_tower` and `Encoder.projection`; a method gets them with the class text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


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

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Token numbers (...,) to embeddings (..., w), places not yet added."""

    @abstractmethod
    def encode(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """Embeddings (k, l, w), of which the first ``lengths`` (k,) of each row count, to raw features (k, d).

        A row does not depend on what stands behind its length, nor on the other rows. Differentiable in the
        embeddings; weights have no gradient.
        """


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
