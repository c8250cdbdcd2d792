"""The text side of ``lite``, open to token embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from clipadapter.encoders import _lite_image as image_side
from clipadapter.encoders import _lite_text as text_side
from clipadapter.encoders._marks import find_marks
from clipadapter.towers import TextTower


class LiteTextTower(TextTower):
    """MiniLM, and the bridge to the pictures' space, as one tower.

    Args:
        tower: MiniLM.
        bridge: from its space to that of the pictures.
        fingerprint: the encoder's.
    """

    width = text_side.WIDTH
    dim = image_side.WIDTH
    context_length = text_side.MAX_TOKENS

    def __init__(self, tower: text_side.MiniLm, bridge: text_side.Bridge, fingerprint: str) -> None:
        self.fingerprint, self.device = fingerprint, tower.device
        self._tower, self._bridge = tower, bridge
        self._marks = find_marks(self.tokenize)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text with its marks."""
        return self._tower.tokenize(texts)

    @property
    def marks(self) -> tuple[int, int]:
        """One at either end."""
        return self._marks

    def network(self) -> nn.Module:
        """MiniLM's transformer."""
        return self._tower.network()

    def embed(self, ids: Tensor) -> Tensor:
        """(...,) to (..., 384)."""
        return self._tower.embed(ids)

    def encode(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """(k, l, 384) to (k, 1280)."""
        return self._bridge(self._tower.encode(embeddings, lengths))
