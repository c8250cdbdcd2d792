"""Pictures and class texts through towers that are being trained, with gradients in whatever was put into them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from clipadapter.backends import Tower
from clipadapter.encoders import Encoder, open_text_tower
from clipadapter.errors import InputError
from clipadapter.functional import unit

AT_ONCE = 64
"""Pictures that go through a frozen tower together."""


class Pictures:
    """Features (b, d) of views of pictures.

    Args:
        encoder: has an image tower of its own.
        squares: (n, v, s, s, 3).
        frozen: whether the tower stays as it is: then it runs now, and never again.

    Raises:
        InputError: if the squares are of another shape or type.
    """

    def __init__(self, encoder: Encoder, squares: NDArray[np.uint8], frozen: bool) -> None:
        self._tower, self._device = _tower(encoder), encoder.device
        size = self._tower.pixels.size
        if squares.ndim != 5 or squares.shape[2:] != (size, size, 3) or squares.dtype != np.uint8:
            raise InputError(
                f"pictures must be squares (n, v, {size}, {size}, 3) of uint8, but are {squares.shape} of "
                f"{squares.dtype}"
            )
        self._squares = squares
        self._features = self._all() if frozen else None

    def __call__(self, rows: Tensor, views: Tensor) -> Tensor:
        """Of rows (b,) the views (b,)."""
        if self._features is not None:
            return self._features[rows.to(self._device), views.to(self._device)]
        return self._run(self._squares[rows.numpy(), views.numpy()])

    def _run(self, squares: NDArray[np.uint8]) -> Tensor:
        spec = self._tower.pixels
        values = torch.from_numpy(squares).to(self._device).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(each, device=self._device).view(1, 3, 1, 1) for each in (spec.mean, spec.std))
        features: Tensor = self._tower.module((values - mean) / std).float()
        return features

    def _all(self) -> Tensor:
        """(n, v, d)."""
        n, v = self._squares.shape[:2]
        flat = self._squares.reshape(n * v, *self._squares.shape[2:])
        with torch.no_grad():  # not inference mode: a gradient goes through what is made of them
            found = torch.cat([self._run(flat[i : i + AT_ONCE]) for i in range(0, n * v, AT_ONCE)])
        return found.reshape(n, v, -1)


class ClassTexts:
    """Class vectors (c, d): of each class the normalised mean of its prompts' normalised features.

    Args:
        encoder: has a text tower.
        prompts: texts of each class.
        frozen: whether the tower stays as it is: then it runs now, and never again.

    Raises:
        InputError: if it is to be trained, but takes no token embeddings.
    """

    def __init__(self, encoder: Encoder, prompts: Mapping[str, Sequence[str]], frozen: bool) -> None:
        texts = [text for some in prompts.values() for text in some]
        counts = torch.tensor([len(some) for some in prompts.values()])
        self._classes = len(counts)
        self._owner = torch.arange(self._classes).repeat_interleave(counts).to(encoder.device)
        self._share = (1 / counts)[self._owner.cpu(), None].to(encoder.device)
        self._vectors: Tensor | None = None
        if frozen:
            self._vectors = self._by_class(encoder.encode_text(texts).to(encoder.device))
            return
        self._tower = open_text_tower(encoder)
        tokens = [torch.tensor(each) for each in self._tower.tokenize(texts)]
        self._lengths = torch.tensor([len(each) for each in tokens])
        with torch.no_grad():
            self._embeddings = self._tower.embed(pad_sequence(tokens, batch_first=True))

    def __call__(self) -> Tensor:
        """Unit rows."""
        if self._vectors is not None:
            return self._vectors
        return self._by_class(self._tower.encode(self._embeddings, self._lengths).float())

    def _by_class(self, rows: Tensor) -> Tensor:
        total = torch.zeros(self._classes, rows.shape[1], device=rows.device)
        return unit(total.index_add(0, self._owner, unit(rows) * self._share))


def networks(encoder: Encoder) -> dict[str, nn.Module]:
    """The layers of the towers "image" and "text", as far as they can be had."""
    text = encoder.text_tower()
    found = {"image": _tower(encoder).module, "text": None if text is None else text.network()}
    return {tower: network for tower, network in found.items() if network is not None}


def weights(encoder: Encoder, towers: Collection[str]) -> int:
    """How many weights some towers have: about the multiplications for a token."""
    found = networks(encoder)
    return sum(weight.numel() for tower in towers for weight in found[tower].parameters())


def _tower(encoder: Encoder) -> Tower:
    tower = encoder.tower()
    assert tower is not None, "open_twin has looked"
    return tower
