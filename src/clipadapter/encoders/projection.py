"""The last step of open_clip's image towers, where it is linear: to read it, and to put another in its place."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from clipadapter.encoders.layers import copy_sharing_weights
from clipadapter.towers import Projection


def find_projection(visual: Any) -> Projection | None:
    """The last step of an image tower, in float32 on the CPU; None if it is not linear, or is not known.

    Known are CLIP's transformer and ResNet, and the networks of timm that end in one linear layer. None is the answer
    for SigLIP, whose feature is what its attention pool gives, and for CoCa, whose tower gives tokens, too.

    Args:
        visual: of a model of open_clip.
    """
    place = _place(visual)
    if place is None:
        return None
    parent, _, name = place.rpartition(".")
    last = getattr(visual.get_submodule(parent), name)
    if isinstance(last, nn.Linear):
        bias = None if last.bias is None else last.bias.detach().float().cpu()
        return Projection(last.weight.detach().T.float().cpu(), bias)
    return Projection(last.detach().float().cpu())


def with_projection(visual: Any, projection: Projection) -> nn.Module:
    """The same tower with another last step; all other weights are shared with it.

    Args:
        visual: a tower in which `find_projection` finds one, in evaluation mode.
        projection: (p, any width), with p as the tower has it; a bias where the tower has one.
    """
    place = _place(visual)
    assert place is not None
    tower: nn.Module = copy_sharing_weights(visual)
    parent, _, name = place.rpartition(".")
    here = tower.get_submodule(parent)
    last = getattr(here, name)
    if isinstance(last, nn.Linear):
        new: nn.Module | nn.Parameter = _linear(projection, last.weight)
    else:
        assert projection.bias is None
        new = _frozen(projection.weight, last)
    setattr(here, name, new)
    return tower


def _place(visual: Any) -> str | None:
    """Where the last step is, as a dotted path to a parameter (p, d) or to a linear layer."""
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    # Not isinstance: a derived class may end in another way.
    if type(visual) is VisionTransformer:
        return None if visual.output_tokens or visual.proj is None else "proj"
    if type(visual) is ModifiedResNet:
        return "attnpool.c_proj"
    if type(visual) is not TimmModel:
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
