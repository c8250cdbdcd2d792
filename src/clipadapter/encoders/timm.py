"""Models of timm, which see pictures only: DINOv2, DINOv3, ConvNeXt, EVA and all other pretrained networks.

Code: https://github.com/huggingface/pytorch-image-models. If timm builds a model without its classifier, it does not
say which weights were missing. So models are built with the classifier of their weights, which is removed afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipadapter.encoders.base import Encoder, EncoderInfo, compute_fingerprint
from clipadapter.encoders.layers import copy_sharing_weights
from clipadapter.encoders.open_clip_layers import VisualEncoder
from clipadapter.encoders.registry import register_encoder
from clipadapter.encoders.weights import (
    HubSource,
    advise,
    check_has_weights,
    loading,
    parse_timm,
    read_config,
    read_shapes,
)
from clipadapter.errors import EncoderUnavailableError, InputError, UnknownNameError, require
from clipadapter.utils.pixels import MIN_CROP, RESAMPLING_FILTERS, PixelSpec

CONFIG_FILE = "config.json"
SAFE_NAMES = {"pytorch_model.bin": "model.safetensors", "open_clip_pytorch_model.bin": "open_clip_model.safetensors"}
"""How the hub calls the same weights as safetensors, as in timm."""
CODE_VERSION = 1  # incremented whenever the same weights would give another feature
RESIZE_MODES = {"center": "shortest", "squash": "squash"}  # the ways of cropping of timm and those of `PixelSpec`


@register_encoder("timm")
class TimmEncoder(VisualEncoder):
    """A model of timm: pretrained (MODEL, MODEL@SIZE), from a file (MODEL:FILE) or a folder (local-dir:FOLDER).

    The picture feature is what the classifier of the model gets: the pooled output. Texts are not supported.
    """

    has_text = False

    def __init__(self, uri: str, network: Any, licence: str, device: str = "cpu") -> None:
        facts: Mapping[str, Any] = network.pretrained_cfg
        self.pixels, self.device = read_pixels(uri, facts), device
        size = self.pixels.size
        pooling = str(getattr(network, "global_pool", ""))
        architecture = [CODE_VERSION, facts["architecture"], pooling, self.pixels.to_dict()]
        dim, fingerprint = measure_width(network, size, uri), compute_fingerprint(architecture, network.state_dict())
        self.info = EncoderInfo.without_text(uri, dim, size, licence, fingerprint)
        self._visual = as_open_clip_tower(network.to(device), size)

    @classmethod
    def open(cls, variant: str, device: str = "cpu") -> Encoder:
        return cls(*load_model(variant), device)

    @classmethod
    def check(cls, variant: str) -> None:
        model, _, path = parse_timm(variant)
        if model and not path:
            _weights_on_hub(_look_up(model)).check()

    def network(self) -> nn.Module:
        """The model without its classifier, as an image tower of open_clip."""
        return self._visual


def load_model(variant: str) -> tuple[str, Any, str]:
    """URI, model in fp32 on the CPU, without its classifier, in inference mode, and licence of its weights.

    Weights of the hub are downloaded if need be; those that do not fit are refused.
    """
    model, side, path = parse_timm(variant)
    file = Path(path).expanduser().resolve()
    options: dict[str, Any] = {}
    if not model:
        uri, name, licence = f"timm:local-dir:{file}", f"local-dir:{file}", _check_folder(file)
    else:
        facts = _look_up(model)
        name = ".".join(part for part in (facts["architecture"], facts.get("tag", "")) if part)
        uri = f"timm:{name}" if side is None else f"timm:{name}@{side}"
        overlay: dict[str, Any] = {} if side is None else {"input_size": (3, side, side)}
        if path:
            uri, licence = f"{uri}:{file}", "unknown"
            shapes, classifier = read_shapes(file), facts.get("classifier") or ()
            layers = [f"{layer}.weight" for layer in ([classifier] if isinstance(classifier, str) else classifier)]
            n_classes = next((int(shapes[layer][0]) for layer in layers if layer in shapes), 0)  # of the weights
            overlay |= {"file": str(file), "num_classes": n_classes, "label_offset": 0}
        else:
            licence, n_classes = spell_licence(facts), int(facts["num_classes"])
            overlay["file"] = str(_weights_on_hub(facts).path())
        options = {"num_classes": n_classes, "pretrained_cfg_overlay": overlay}
    timm: Any = require("timm", "train", "Encoders of timm")
    with loading(f"{uri} can't be loaded", advise(uri)):
        network = timm.create_model(name, pretrained=True, **options)
        network.reset_classifier(0)
    return uri, network.float().eval().requires_grad_(False), licence


def spell_licence(facts: Mapping[str, Any]) -> str:
    """The licence that timm states for weights, spelled as in the lists of encoders."""
    name = str(facts.get("license") or "unknown")
    known = {"apache-2.0": "Apache-2.0", "mit": "MIT", "cc-by-nc-4.0": "CC-BY-NC-4.0", "bsd-3-clause": "BSD-3-Clause"}
    return known.get(name, name)


def _look_up(model: str) -> dict[str, Any]:
    """What timm knows of pretrained weights."""
    timm: Any = require("timm", "train", "Encoders of timm")
    try:
        config = timm.get_pretrained_cfg(model, allow_unregistered=False)
    except RuntimeError as error:
        raise UnknownNameError(f"the installed timm has no model or weights '{model}'") from error
    return {"architecture": model.partition(".")[0], "num_classes": config.num_classes, **config.to_dict()}


def _check_folder(folder: Path) -> str:
    """Refuse a folder without a model of timm; returns the licence of its weights."""
    file = folder / CONFIG_FILE
    config = read_config(str(folder), file)
    facts, architecture = config.get("pretrained_cfg", config), config.get("architecture")
    if not isinstance(architecture, str) or not isinstance(facts, dict):
        raise EncoderUnavailableError(
            f"{file} states no 'architecture' and 'pretrained_cfg', so it is no model of timm: write the folder with "
            "timm.models.save_for_hf"
        )
    _look_up(architecture)
    check_has_weights(folder, "a model.safetensors")
    return spell_licence(facts)


def _weights_on_hub(facts: Mapping[str, Any]) -> HubSource:
    """The file with the weights on the hub, safetensors if it is there."""
    repo, name = facts.get("hf_hub_id"), facts.get("hf_hub_filename") or "pytorch_model.bin"
    uri = f"timm:{facts['architecture']}"
    if not repo:
        raise EncoderUnavailableError(
            f"the weights of {uri} are not on the hub: download them from {facts.get('url') or 'their page'}, and say "
            f"{uri}:FILE"
        )
    safe_name = SAFE_NAMES.get(name, f"{name.rpartition('.')[0]}.safetensors")
    return HubSource(uri, str(repo), list(dict.fromkeys([safe_name, name])))


def as_open_clip_tower(network: nn.Module, size: int) -> nn.Module:
    """The network as an image tower of open_clip, which is a network of timm and a last step; here there is none."""
    from open_clip.timm_model import TimmModel

    tower: Any = TimmModel.__new__(TimmModel)  # its constructor would build another network
    nn.Module.__init__(tower)
    tower.trunk, tower.head, tower.image_size = network, nn.Sequential(), (size, size)
    return tower.eval()


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
