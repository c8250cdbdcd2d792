"""The last step of open_clip's image towers, where it is linear: read it, or replace it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clipadapter.encoders.layers import copy_sharing_weights
from clipadapter.utils.towers import Projection


def find_projection(visual: Any) -> Projection | None:
    """The last step of an image tower, in float32 on the CPU; None if it is not linear or not supported.

    CLIP's transformer and ResNet and the networks of timm that end in one linear layer are supported. The result is
    None for SigLIP, whose feature is the output of an attention pool, and for CoCa, whose tower also returns tokens.
    """
    path = _path_of_projection(visual)
    if path is None:
        return None
    parent, _, name = path.rpartition(".")
    last = getattr(visual.get_submodule(parent), name)
    if isinstance(last, nn.Linear):
        bias = None if last.bias is None else last.bias.detach().float().cpu()
        return Projection(last.weight.detach().T.float().cpu(), bias)
    return Projection(last.detach().float().cpu())


def replace_projection(visual: Any, projection: Projection) -> nn.Module:
    """The same tower, one with a projection, with another last step; all other weights are shared with the tower.

    The new projection (p, any width) has a bias if the tower's has one.
    """
    path = _path_of_projection(visual)
    assert path is not None
    tower: nn.Module = copy_sharing_weights(visual)
    parent, _, name = path.rpartition(".")
    owner = tower.get_submodule(parent)
    last = getattr(owner, name)
    if isinstance(last, nn.Linear):
        new: nn.Module | nn.Parameter = _linear(projection, last.weight)
    else:
        assert projection.bias is None
        new = _frozen(projection.weight, last)
    setattr(owner, name, new)
    return tower


def append_identity(projection: Projection) -> Projection:
    """(p, d) to (p, d + p): the output is followed by the input."""
    weight, bias = projection.weight, projection.bias
    wide = torch.cat([weight, torch.eye(len(weight))], dim=1)
    return Projection(wide, None if bias is None else torch.cat([bias, torch.zeros(len(weight))]))


def kind_of(visual: Any) -> str:
    """The kind of an image tower of open_clip: "vit", "resnet" or "timm"; "" for others."""
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    # Not isinstance: a derived class may end in another way.
    return {VisionTransformer: "vit", ModifiedResNet: "resnet", TimmModel: "timm"}.get(type(visual), "")


def _path_of_projection(visual: Any) -> str | None:
    """Dotted path of the last step: a parameter (p, d) or a linear layer."""
    kind = kind_of(visual)
    if kind == "vit":
        return None if visual.output_tokens or visual.proj is None else "proj"
    if kind == "resnet":
        return "attnpool.c_proj"
    if kind != "timm":
        return None
    if len(visual.head):
        return "head.proj" if type(getattr(visual.head, "proj", None)) is nn.Linear else None
    last = visual.trunk.get_classifier()
    if type(last) is not nn.Linear:
        return None
    return next(f"trunk.{name}" for name, module in visual.trunk.named_modules() if module is last)


def _linear(projection: Projection, like: Tensor) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, *projection.weight.shape, bias=projection.bias is not None)
    layer.weight = _frozen(projection.weight.T.contiguous(), like)
    if projection.bias is not None:
        layer.bias = _frozen(projection.bias, like)
    return layer.eval()


def _frozen(values: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(like), requires_grad=False)
