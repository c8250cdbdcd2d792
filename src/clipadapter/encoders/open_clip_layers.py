"""Image towers of open_clip: inner layers, a second size, the features of patches, and the last, linear step.

Transformers give tokens after one third and after two thirds of their layers: the class tokens are the layer
``inner-token``, the means of the patch tokens the layer ``inner-mean``. Both are taken after the last layer norm of the
tower, as ``get_intermediate_layers`` of DINOv2 takes them (https://github.com/facebookresearch/dinov2). Networks of
timm also give the tokens of the last layer. The input of a linear last step follows in ``inner-token``, or in
``inner-mean`` if there is no class token.

Convolutional towers give ``inner-mean``, ``inner-max`` and ``inner-std``: statistics of the channels of their stages
(`clipadapter.encoders.inner_layers.add_statistics`). Maximum and deviation of the last map follow, if it is not the
output of the last stage. The input of a linear last step follows in ``inner-mean``.

At another size position embeddings are interpolated on their grid (bicubic, antialiased), as open_clip and timm do when
they load weights for another size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from clipadapter.encoders.base import TorchEncoder
from clipadapter.encoders.inner_layers import (
    INNER_MAX,
    INNER_MEAN,
    INNER_STD,
    INNER_TOKEN,
    add_statistics,
    second_size_of,
)
from clipadapter.encoders.layers import PromptedBlock, PromptedInput, copy_sharing_weights, without_prompts
from clipadapter.errors import InputError
from clipadapter.utils.blocks import FINAL, UNPROJECTED
from clipadapter.utils.towers import Projection

CONVOLUTION_STEP = 32  # product of the strides of convolutional towers


class VisualEncoder(TorchEncoder):
    """An encoder whose image tower is one of open_clip."""

    @cached_property
    def _last_step(self) -> Projection | None:
        return find_projection(self.network())

    @cached_property
    def _inner(self) -> InnerFeatures | None:
        return find_inner_features(self.network(), self.info.image_size)

    def layers(self) -> Mapping[str, int]:
        """``final``, inner layers if the tower is supported, and ``unprojected`` if it ends in a linear step."""
        widths = {FINAL: self.info.dim}
        if self._inner is not None:
            widths |= self._inner.widths
        if self._last_step is not None:
            widths[UNPROJECTED] = len(self._last_step.weight)
            if self._inner is not None and self._inner.pooled_layer:
                widths[self._inner.pooled_layer] += len(self._last_step.weight)
        return widths

    def second_size(self) -> int | None:
        """12/7 of the tower's own size, in whole patches; None if the tower refuses it."""
        return self._second_size

    @cached_property
    def _second_size(self) -> int | None:
        step = self._step()
        size = None if step is None else second_size_of(self.info.image_size, step)
        if size is None:
            return None
        try:
            network = copy_sharing_weights(self.layer_network([FINAL], size)).to("meta")
            with torch.no_grad():  # on the device "meta" nothing but shapes is computed
                network(torch.empty(1, 3, size, size, device="meta"))
        except (RuntimeError, AssertionError, ValueError, InputError, NotImplementedError):
            return None
        return size

    def layer_network(self, layers: Sequence[str], size: int) -> nn.Module:
        widths, tower, last_step = self.layers(), self.network(), self._last_step
        if getattr(tower, "output_tokens", False):
            raise InputError("the image tower is one of CoCa: it gives its final feature only, at its own size")
        # Weights that are created in inference mode could not be traced later.
        with torch.inference_mode(False), torch.no_grad():
            visual = tower if size == self.info.image_size else self._resized(size)
            if last_step is not None and tuple(layers) != (FINAL,):
                # The last step gives the final feature if it is wanted, then its own input.
                n_inputs, own = len(last_step.weight), [last_step] if FINAL in layers else []
                weight = torch.cat([*(each.weight for each in own), torch.eye(n_inputs)], dim=1)
                biases = [each.bias for each in own if each.bias is not None]
                bias = None if last_step.bias is None else torch.cat([*biases, torch.zeros(n_inputs)])
                visual = replace_projection(visual, Projection(weight, bias))
        if self._inner is None or not self._inner.widths.keys() & set(layers):
            return visual
        return _LayerNetwork(visual, self._inner, layers, widths).eval()

    def patches(self, pixels: Tensor) -> Tensor | None:
        return encode_patches(self.network(), pixels)

    def _step(self) -> int | None:
        """What a side must be a multiple of; None if the tower takes its own size only."""
        visual: Any = self.network()
        kind = kind_of(visual)
        if kind == "vit":
            return int(visual.patch_size[0])
        if kind == "resnet":
            return CONVOLUTION_STEP
        if kind != "timm" or "pool" in dict(visual.head.named_children()):
            return None
        trunk = visual.trunk
        if _is_timm_transformer(trunk):
            patch = getattr(trunk.patch_embed, "patch_size", None)
            is_plain = hasattr(trunk, "set_input_size") and not hasattr(trunk.patch_embed, "backbone")
            return int(patch[0]) if patch and is_plain else None
        # Windows and relative positions of such networks are made for one size.
        return None if hasattr(trunk, "set_input_size") else CONVOLUTION_STEP

    def _resized(self, size: int) -> Any:
        step = self._step()
        if step is None or size % step or size < step:
            reason = "at its own size only" if step is None else f"at multiples of {step} pixels"
            raise InputError(f"the image tower can be run {reason}, but the size is {size}")
        visual: Any = copy_sharing_weights(self.network())
        kind, grid = kind_of(visual), size // step
        if kind == "vit":
            visual.positional_embedding = _resample(visual.positional_embedding, visual.grid_size, grid)
            visual.grid_size, visual.image_size = (grid, grid), (size, size)
        elif kind == "resnet":
            side, pool = self.info.image_size // step, visual.attnpool
            pool.positional_embedding = _resample(pool.positional_embedding, (side, side), grid)
            visual.image_size = size
        elif hasattr(visual.trunk, "set_input_size"):
            visual.trunk.set_input_size(img_size=(size, size))
        return visual.eval()


class ClipTokens:
    """Tokens of CLIP's transformer after some of its layers."""

    pooled_layer = INNER_TOKEN  # layer that the input of a linear last step belongs to; "" if it has it already

    def __init__(self, visual: Any) -> None:
        self.indices = token_layers(len(visual.transformer.resblocks))
        width = len(self.indices) * int(visual.positional_embedding.shape[1])
        self.widths = {INNER_TOKEN: width, INNER_MEAN: width}

    def run(self, visual: Any, pixels: Tensor, layers: Sequence[str]) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """The result of the tower, and the parts (n, d) of each inner layer, at least of the wanted ones."""
        outputs = visual.forward_intermediates(
            pixels, self.indices, normalize_intermediates=True, output_fmt="NLC", output_extra_tokens=True
        )
        class_tokens = [each[:, 0] for each in outputs["image_intermediates_prefix"]]
        means = [each.mean(dim=1) for each in outputs["image_intermediates"]]
        return outputs["image_features"], {INNER_TOKEN: class_tokens, INNER_MEAN: means}


class TimmTokens:
    """Tokens of a transformer of timm: as `ClipTokens`, and after the last layer too."""

    def __init__(self, visual: Any) -> None:
        trunk = visual.trunk
        n_layers = len(trunk.blocks)
        self.indices = sorted({*token_layers(n_layers), n_layers - 1})
        self.has_class = getattr(trunk, "cls_token", None) is not None
        self.has_prefix = int(trunk.num_prefix_tokens) > 0
        width = len(self.indices) * int(trunk.embed_dim)
        self.widths = ({INNER_TOKEN: width} if self.has_class else {}) | {INNER_MEAN: width}
        self.pooled_layer = INNER_TOKEN if self.has_class else INNER_MEAN
        if self.has_class and getattr(trunk, "global_pool", "") == "token":
            self.pooled_layer = ""  # the class token of the last layer

    def run(self, visual: Any, pixels: Tensor, layers: Sequence[str]) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """See `ClipTokens.run`."""
        trunk = visual.trunk
        options = {"return_prefix_tokens": True} if self.has_prefix else {}
        tokens, outputs = trunk.forward_intermediates(pixels, self.indices, norm=True, output_fmt="NLC", **options)
        pairs: list[tuple[Tensor, Any]] = outputs if self.has_prefix else [(each, None) for each in outputs]
        class_tokens = [prefix[:, 0] for _, prefix in pairs if self.has_class]
        means = [patches.mean(dim=1) for patches, _ in pairs]
        return visual.head(trunk.forward_head(tokens)), {INNER_TOKEN: class_tokens, INNER_MEAN: means}


class StageMaps:
    """Statistics of the stages of a convolutional tower, CLIP's or one of timm."""

    pooled_layer = INNER_MEAN

    def __init__(self, visual: Any, size: int) -> None:
        network = getattr(visual, "trunk", visual)
        # ResNets count the stem as a stage.
        self.indices = [1, 2, 3, 4] if hasattr(network, "layer4") else None
        meta = copy_sharing_weights(network).to("meta")
        with torch.no_grad():  # on the device "meta" nothing but shapes is computed
            last, maps = self._maps(meta, torch.empty(1, 3, size, size, device="meta"))
        if not maps or any(each.ndim != 4 for each in maps):
            raise ValueError("the network has no feature maps")
        self.has_last_map = last.ndim == 4 and last is not maps[-1]
        width = sum(each.shape[1] for each in maps)
        with_last = width + (last.shape[1] if self.has_last_map else 0)
        self.widths = {INNER_MEAN: width, INNER_MAX: with_last, INNER_STD: with_last}

    def run(self, visual: Any, pixels: Tensor, layers: Sequence[str]) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """See `ClipTokens.run`."""
        trunk = getattr(visual, "trunk", None)
        result, maps = self._maps(visual if trunk is None else trunk, pixels)
        final = result if trunk is None else visual.head(trunk.forward_head(result))
        parts: dict[str, list[Tensor]] = {layer: [] for layer in self.widths}
        for each in maps:
            add_statistics(parts, each, layers)
        if self.has_last_map:
            add_statistics(parts, result, [layer for layer in layers if layer != INNER_MEAN])
        return final, parts

    def _maps(self, network: Any, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What a network gives, before its head if it is one of timm, and the maps of its stages."""
        outputs = network.forward_intermediates(pixels, self.indices, output_fmt="NCHW")
        if isinstance(outputs, dict):
            return outputs["image_features"], outputs["image_intermediates"]
        return outputs[0], list(outputs[1])


InnerFeatures = ClipTokens | TimmTokens | StageMaps


class _LayerNetwork(nn.Module):
    """A tower with its inner features: the wanted layers, of which each has its width."""

    def __init__(self, visual: Any, inner: InnerFeatures, layers: Sequence[str], widths: Mapping[str, int]) -> None:
        super().__init__()
        self.visual, self.inner, self.layers = visual, inner, tuple(layers)
        self.width, self.result_widths = sum(widths[layer] for layer in layers), list[int]()
        if projection := find_projection(visual):  # it gives the final feature, if that is wanted, then its own input
            final_width = widths[FINAL] if FINAL in layers else 0
            self.result_widths = [final_width, projection.weight.shape[1] - final_width]

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, s, s) to (n, sum of widths) float32."""
        result, features = self.inner.run(self.visual, pixels, self.layers)
        if self.result_widths:
            final, unprojected = result.split(self.result_widths, dim=1)
            features |= {FINAL: [final], UNPROJECTED: [unprojected]}
            if self.inner.pooled_layer:
                features[self.inner.pooled_layer].append(unprojected)
        else:
            features[FINAL] = [result]
        rows = torch.cat([part.float() for layer in self.layers for part in features[layer]], dim=1)
        return rows.unflatten(1, (1, self.width)).flatten(1)  # the width of a plain result can be unknown in ONNX


def find_inner_features(visual: Any, size: int) -> InnerFeatures | None:
    """How inner features of an image tower of open_clip are taken; None if it is not supported."""
    kind = kind_of(visual)
    if kind == "vit":
        is_plain = visual.attn_pool is None and not visual.output_tokens and visual.pool_type in ("tok", "avg")
        # Prompts stand among the patch tokens, whose mean would be another one.
        return ClipTokens(visual) if is_plain and not isinstance(visual.ln_pre, PromptedInput) else None
    if kind == "resnet":
        return StageMaps(visual, size)
    if kind != "timm" or not hasattr(visual.trunk, "forward_intermediates"):
        return None
    if _is_timm_transformer(visual.trunk):
        return TimmTokens(visual)
    try:
        return StageMaps(visual, size)
    except (RuntimeError, AssertionError, ValueError, TypeError, NotImplementedError):
        return None


def token_layers(n_layers: int) -> list[int]:
    """Indices of the layers of a transformer after which tokens are taken: one and two thirds of the way.

    >>> token_layers(12), token_layers(24), token_layers(1)
    ([3, 7], [7, 15], [0])
    """
    return sorted({max(1, round(n_layers * third / 3)) - 1 for third in (1, 2)})


def _is_timm_transformer(trunk: Any) -> bool:
    return all(hasattr(trunk, name) for name in ("blocks", "num_prefix_tokens", "patch_embed", "embed_dim"))


def _resample(embedding: Tensor, grid: Sequence[int], new_grid: int) -> nn.Parameter:
    """Position embeddings (1 + h w, d) for another grid; the first one, of the class token or the mean, is kept."""
    from timm.layers import resample_abs_pos_embed

    resampled = resample_abs_pos_embed(
        embedding[None], new_size=[new_grid, new_grid], old_size=list(grid), num_prefix_tokens=1
    )
    return nn.Parameter(resampled[0], requires_grad=False)


def encode_patches(visual: Any, pixels: Tensor) -> Tensor | None:
    """A feature for each patch of a picture, in the space of the picture's feature.

    CLIP's transformer reads its feature from one token, and the outputs at the patches are not in that space. So the
    last layer runs as in ClearCLIP (Lan et al., ECCV 2024, https://arxiv.org/abs/2407.12442, section 3): each patch
    attends to patches with similar queries, and the output of attention is taken without the residual and the MLP.
    CLIP's ResNet ends in attention too: there each position passes the value and output layers only, as in MaskCLIP
    (Zhou et al., ECCV 2022, https://arxiv.org/abs/2112.01071, section 3.2). Networks of timm pool each position as if
    it were the only one.

    Pixels (1, 3, s, s) to (h, w, d); None for towers that are not supported: those of CoCa, and networks of timm that
    read their feature from a class token.
    """
    patches_of = {"vit": _transformer_patches, "resnet": _resnet_patches, "timm": _timm_patches}
    kind = kind_of(visual)
    return patches_of[kind](visual, pixels) if kind else None


class QueryAttention(nn.Module):
    """A block of open_clip with ``nn.MultiheadAttention`` in which tokens attend to those with similar queries."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, *_others: Any, **_named: Any) -> Tensor:
        """Tokens (n, l, width) to the same shape."""
        attention = self.block.attn
        qkv = torch.nn.functional.linear(self.block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
        q, _, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (n, heads, l, width) each
        mixed = torch.nn.functional.scaled_dot_product_attention(q, q, v).transpose(1, 2).flatten(2)
        return self.block.ls_1(attention.out_proj(mixed))


def _transformer_patches(visual: Any, pixels: Tensor) -> Tensor | None:
    last_block = without_prompts(visual.transformer.resblocks[-1])
    has_plain_attention = isinstance(getattr(last_block, "attn", None), nn.MultiheadAttention)
    is_supported = has_plain_attention and visual.transformer.batch_first and visual.attn_pool is None
    if not is_supported or visual.pool_type not in ("tok", "avg"):
        return None
    tower = copy_sharing_weights(visual)  # the modules of the encoder stay unchanged
    tower.output_tokens = True
    if visual.pool_type == "tok":
        blocks = tower.transformer.resblocks
        last = QueryAttention(without_prompts(blocks[-1]))
        is_prompted = isinstance(blocks[-1], PromptedBlock)
        blocks[-1] = PromptedBlock(last, blocks[-1].source, is_text=False) if is_prompted else last
    _, tokens = tower(pixels)
    tokens = tower.ln_post(tokens) if visual.final_ln_after_pool else tokens
    grid = tuple(visual.grid_size)
    tokens = tokens[0, : math.prod(grid)]  # without prompts, which stand after the patches
    patches: Tensor = tokens if tower.proj is None else tokens @ tower.proj
    return patches.unflatten(0, grid)


def _resnet_patches(visual: Any, pixels: Tensor) -> Tensor:
    (features,) = visual.forward_intermediates(pixels, indices=1, intermediates_only=True)["image_intermediates"]
    pool, grid = visual.attnpool, tuple(features.shape[2:])
    positions = features[0].permute(1, 2, 0).flatten(0, 1)
    positions = positions + pool.positional_embedding[1:].to(positions.dtype)  # the first one belongs to the mean
    return pool.c_proj(pool.v_proj(positions)).unflatten(0, grid)


def _timm_patches(visual: Any, pixels: Tensor) -> Tensor | None:
    trunk = visual.trunk
    if getattr(trunk, "global_pool", "") == "token" or getattr(trunk, "output_fmt", "NCHW") != "NCHW":
        return None
    features: Tensor = trunk.forward_features(pixels)
    grid: Any
    if features.ndim == 4:
        grid = tuple(features.shape[2:])
        single_patches = features[0].permute(1, 2, 0).flatten(0, 1)[:, :, None, None]
    else:
        n_prefix = int(getattr(trunk, "num_prefix_tokens", 0))
        side = math.isqrt(features.shape[1] - n_prefix)
        if side * side != features.shape[1] - n_prefix:
            return None
        grid = (side, side)
        single_patches = features[0, n_prefix:, None]
        if n_prefix and not getattr(trunk, "pool_include_prefix", False):
            # Pooling drops the prefix tokens before it reads the patches.
            prefix = features[:, :n_prefix].expand(len(single_patches), -1, -1)
            single_patches = torch.cat([prefix, single_patches], dim=1)
    return visual.head(trunk.forward_head(single_patches)).unflatten(0, grid)


def find_projection(visual: Any) -> Projection | None:
    """The last step of an image tower, in float32 on the CPU; None if it is not linear, as SigLIP's, or CoCa's."""
    if (place := _place_of_projection(visual)) is None:
        return None
    last = getattr(*place)
    if isinstance(last, nn.Linear):
        bias = None if last.bias is None else last.bias.detach().float().cpu()
        return Projection(last.weight.detach().T.float().cpu(), bias)
    return Projection(last.detach().float().cpu())


def replace_projection(visual: Any, projection: Projection) -> nn.Module:
    """The same tower with another last step (p, any width), with a bias if it has one; other weights are shared."""
    tower: nn.Module = copy_sharing_weights(visual)
    place = _place_of_projection(tower)
    assert place is not None
    owner, name = place
    last = getattr(owner, name)
    if not isinstance(last, nn.Linear):
        assert projection.bias is None
        setattr(owner, name, nn.Parameter(projection.weight.to(last), requires_grad=False))
        return tower
    linear = nn.utils.skip_init(nn.Linear, *projection.weight.shape, bias=projection.bias is not None)
    linear.weight = nn.Parameter(projection.weight.T.contiguous().to(last.weight), requires_grad=False)
    if projection.bias is not None:
        linear.bias = nn.Parameter(projection.bias.to(last.weight), requires_grad=False)
    setattr(owner, name, linear.eval())
    return tower


def kind_of(visual: Any) -> str:
    """The kind of an image tower of open_clip: "vit", "resnet" or "timm"; "" for others."""
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    # Not isinstance: a derived class may end in another way.
    return {VisionTransformer: "vit", ModifiedResNet: "resnet", TimmModel: "timm"}.get(type(visual), "")


def _place_of_projection(visual: Any) -> tuple[nn.Module, str] | None:
    """The module that has the last step, a parameter (p, d) or a linear layer, and the name of the step in it."""
    kind = kind_of(visual)
    if kind == "vit":
        return None if visual.output_tokens or visual.proj is None else (visual, "proj")
    if kind == "resnet":
        return visual.attnpool, "c_proj"
    if kind != "timm":
        return None
    owners = [visual.head] if len(visual.head) else visual.trunk.modules()
    last = getattr(visual.head, "proj", None) if len(visual.head) else visual.trunk.get_classifier()
    places = ((owner, name) for owner in owners for name, child in owner.named_children() if child is last)
    return next(places) if type(last) is nn.Linear else None
