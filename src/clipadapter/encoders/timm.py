"""Models of timm, which see pictures only: DINOv2, DINOv3, ConvNeXt, EVA and all other pretrained networks.

Code: https://github.com/huggingface/pytorch-image-models. `clipadapter.encoders.timm_sources` finds the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clipadapter.encoders import timm_sources
from clipadapter.encoders.base import EncoderInfo
from clipadapter.encoders.catalogue import EncoderListing, list_timm, listings_of
from clipadapter.encoders.inputs import compute_fingerprint
from clipadapter.encoders.layers import copy_sharing_weights
from clipadapter.encoders.open_clip_layers import VisualEncoder
from clipadapter.encoders.registry import register_encoder
from clipadapter.encoders.timm_sources import TimmSource, load_model
from clipadapter.errors import InputError
from clipadapter.utils.pixels import MIN_CROP, RESAMPLING_FILTERS, PixelSpec
from clipadapter.utils.prediction import DEFAULT_LOGIT_SCALE

CODE_VERSION = 1
"""Incremented whenever the same weights would give another feature."""
RESIZE_MODES = {"center": "shortest", "squash": "squash"}
"""The ways of cropping of timm and those of `PixelSpec`."""


@register_encoder("timm")
class TimmEncoder(VisualEncoder):
    """A model of timm: pretrained (MODEL, MODEL@SIZE), from a file (MODEL:FILE) or a folder (local-dir:FOLDER).

    The picture feature is what the classifier of the model gets: the pooled output. Texts are not supported.
    """

    has_text = False
    sources = timm_sources

    def __init__(self, source: TimmSource, device: str = "cpu") -> None:
        network: nn.Module = load_model(source)
        facts: Mapping[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
        self.pixels = read_pixels(source.uri, facts)
        self.device = device
        self.info = EncoderInfo(
            name=source.uri,
            dim=measure_width(network, self.pixels.size, source.uri),
            image_size=self.pixels.size,
            logit_scale=DEFAULT_LOGIT_SCALE,
            logit_bias=None,
            licence=source.licence,
            fingerprint=_fingerprint(network, facts, self.pixels),
        )
        self._visual = as_open_clip_tower(network.to(device), self.pixels.size)

    def network(self) -> nn.Module:
        """The model without its classifier, as an image tower of open_clip."""
        return self._visual

    @classmethod
    def listing(cls) -> list[EncoderListing]:
        """All pretrained models of timm."""
        return list({one.name: one for one in [*listings_of("timm"), *list_timm()]}.values())


def as_open_clip_tower(network: nn.Module, size: int) -> nn.Module:
    """The network as an image tower of open_clip, which is a network of timm and a last step; here there is none."""
    from open_clip.timm_model import TimmModel

    tower: Any = TimmModel.__new__(TimmModel)  # its constructor would build another network
    nn.Module.__init__(tower)
    tower.trunk, tower.head, tower.image_size = network, nn.Sequential(), (size, size)
    module: nn.Module = tower.eval()
    return module


def read_pixels(uri: str, facts: Mapping[str, Any]) -> PixelSpec:
    """How timm prepares pictures for a model, from its ``pretrained_cfg``."""
    from timm.data import resolve_data_config

    config = resolve_data_config(pretrained_cfg=dict(facts))
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise InputError(f"{uri} takes pictures of {channels} x {height} x {width}; only square ones of 3 channels do")
    crop, mode, resample = float(config["crop_pct"]), config["crop_mode"], config["interpolation"]
    if mode not in RESIZE_MODES or resample not in RESAMPLING_FILTERS or not MIN_CROP <= crop <= 1:
        raise InputError(
            f"{uri} prepares pictures in a way that is not supported: crop_mode {mode}, crop_pct {crop:g}, "
            f"interpolation {resample}; supported are {' and '.join(RESIZE_MODES)}, {MIN_CROP:g} to 1, "
            f"{' and '.join(RESAMPLING_FILTERS)}"
        )
    return PixelSpec(int(height), tuple(config["mean"]), tuple(config["std"]), RESIZE_MODES[mode], resample, crop)


def measure_width(network: nn.Module, size: int, uri: str) -> int:
    """Width of the features of a network for pixels (n, 3, size, size); none is computed where that is possible."""
    with torch.inference_mode():
        try:
            # Arrays without storage; the network itself keeps its own.
            features = copy_sharing_weights(network).to("meta")(torch.empty(1, 3, size, size, device="meta"))
        except (RuntimeError, NotImplementedError):  # a network that looks at its values
            features = network(torch.zeros(1, 3, size, size))
    if not isinstance(features, Tensor) or features.ndim != 2:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InputError(f"{uri} gives no single feature per picture, but {shape}: take a model that pools its output")
    return int(features.shape[1])


def _fingerprint(network: nn.Module, facts: Mapping[str, Any], pixels: PixelSpec) -> str:
    """Hex digest of the weights, the architecture, the pooling and the preprocessing."""
    pooling = str(getattr(network, "global_pool", ""))
    return compute_fingerprint([CODE_VERSION, facts["architecture"], pooling, pixels.to_dict()], network.state_dict())
