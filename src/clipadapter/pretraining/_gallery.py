"""Pictures to train on: read once to find those that can be, kept shrunk in bounded memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from clipadapter.data.images import ImageSource, image_bytes, read_image
from clipadapter.errors import ImageError

KEEP = 1 << 30
"""Bytes of shrunk pictures kept in memory; the others are read anew each time."""


class Gallery:
    """The different pictures among the sources that can be read.

    Args:
        sources: paths, PIL images or arrays.
        short: pictures are shrunk until their short side has so many pixels.
        pool: threads that read.
        progress: show a bar on stderr.
    """

    def __init__(self, sources: Sequence[ImageSource], short: int, pool: ThreadPoolExecutor, progress: bool) -> None:
        self._short = short
        self._kept: dict[str, Tensor] = {}
        self._source: dict[str, ImageSource] = {}
        self.skipped: list[tuple[str, str]] = []
        room = KEEP
        found = pool.map(self._try, sources)
        bar = tqdm(found, total=len(sources), desc="reading", unit="img", file=sys.stderr, disable=not progress)
        for source, answer in zip(sources, bar, strict=True):
            if isinstance(answer, ImageError):
                self.skipped.append((answer.source, answer.reason))
                continue
            digest, image = answer
            if digest not in self._source and image.numel() <= room:
                self._kept[digest] = image
                room -= image.numel()
            self._source.setdefault(digest, source)
        self.digests = sorted(self._source)
        """Names of the pictures: hashes of their bytes, so that nothing depends on paths or order."""

    def __len__(self) -> int:
        return len(self.digests)

    def image(self, digest: str) -> Tensor:
        """A picture (3, h, w) uint8; safe to call from threads.

        Raises:
            ImageError: if it can be read no more.
        """
        kept = self._kept.get(digest)
        return self._read(self._source[digest], None) if kept is None else kept

    def _try(self, source: ImageSource) -> tuple[str, Tensor] | ImageError:
        try:
            data = image_bytes(source)
            read = self._read(source, data if not isinstance(source, Image.Image | np.ndarray) else None)
        except ImageError as error:
            return error
        return blake2b(data, digest_size=16).hexdigest(), read

    def _read(self, source: ImageSource, data: bytes | None) -> Tensor:
        image = read_image(source, data=data)
        ratio = self._short / min(image.size)
        if ratio < 1:
            width, height = (max(1, round(ratio * side)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
