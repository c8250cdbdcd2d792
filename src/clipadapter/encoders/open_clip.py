"""Models of open_clip with its loader, preprocessing and tokenizers: CLIP, SigLIP and others.

Code: https://github.com/mlfoundations/open_clip. `clipadapter.encoders.open_clip_sources` finds the weights.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from clipadapter.backends import Tower
from clipadapter.blocks import FINAL
from clipadapter.encoders.base import Encoder, EncoderInfo
from clipadapter.encoders.catalogue import QUICK_GELU, EncoderListing, find_licence, listings_of
from clipadapter.encoders.hub import HubSource, advise, cached_file, hub_answers
from clipadapter.encoders.inputs import check_pixels, unique_texts
from clipadapter.encoders.layers import copy_sharing_weights
from clipadapter.encoders.open_clip_layers import TowerLayers
from clipadapter.encoders.open_clip_prompts import PromptPlaces, find_prompt_places
from clipadapter.encoders.open_clip_sources import (
    ARCHITECTURE_ADVICE,
    ModelSource,
    check_position_embeddings,
    find_source,
    hub_source,
    weights_files,
)
from clipadapter.encoders.open_clip_text import UnpaddedTextTower, open_text_tower
from clipadapter.encoders.projection import find_projection
from clipadapter.encoders.prompted_layers import PromptedBlock, without_prompts
from clipadapter.encoders.registry import register_encoder
from clipadapter.encoders.weights import loading, read_shapes
from clipadapter.errors import EncoderUnavailableError, InputError, require
from clipadapter.parallel import run_in_batches
from clipadapter.pixels import MAX_UNCROPPED_ASPECT_RATIO, PixelSpec, as_rgb, centre_square
from clipadapter.towers import Projection, TextTower

CODE_VERSION = 1
"""Incremented whenever the same weights would give another feature."""

TOKENIZER_PROBES = (
    "a photo of a cat.",
    "A Photo, of the ÜBER-cat's hat!",
    "  two   spaces & <p>marks</p> ",
    "one two three four five six seven eight nine ten " * 12,
)
"""Texts whose tokens differ between tokenizers: case, accents, punctuation, spaces, truncation."""


@register_encoder("open_clip")
class OpenClipEncoder(Encoder):
    """A model of open_clip: pretrained (MODEL/TAG), from a file (MODEL:FILE), a folder or a repository of the hub.

    A feature does not depend on the batch that it was computed in, up to 1e-4 of its length.

    Args:
        source: where the model comes from.
        device: a torch device.

    Raises:
        InputError: if the model takes pictures that are not square.
        EncoderUnavailableError: if the weights or the tokenizer can't be loaded.
    """

    prefix = ""
    """What stands between the scheme and a variant of `open_clip_sources`."""

    def __init__(self, source: ModelSource, device: str = "cpu") -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        model, self._tokenizer = load_model(source)
        facts = dict(model.visual.preprocess_cfg)
        config = PreprocessCfg(**facts)
        self._transform = image_transform_v2(config, is_train=False)
        self._resize_mode = config.resize_mode
        bilinear = config.interpolation == "bilinear"
        self._resample = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
        size = config.size if isinstance(config.size, int) else config.size[0]
        bias = getattr(model, "logit_bias", None)
        self.info = EncoderInfo(
            name=source.uri,
            dim=int(source.config["embed_dim"]),
            image_size=int(size),
            logit_scale=float(model.logit_scale.exp()),
            logit_bias=None if bias is None else float(bias),
            licence=source.licence,
            fingerprint=compute_fingerprint(model, self._tokenizer, source.config, facts),
            note=source.note,
        )
        self.device = device
        self._pixels: PixelSpec | None = None
        if config.resize_mode != "longest":
            resample = "bilinear" if bilinear else "bicubic"
            self._pixels = PixelSpec(int(size), tuple(config.mean), tuple(config.std), config.resize_mode, resample)
        self._model: Any = model.to(device)

    @classmethod
    def open(cls, variant: str, device: str = "cpu") -> OpenClipEncoder:
        """Open what `clipadapter.encoders.open_clip_sources.find_source` finds; its errors are those of this."""
        return cls(find_source(cls.prefix + variant), device)

    @classmethod
    def check(cls, variant: str) -> None:
        """As `Encoder.check`."""
        if source := hub_source(cls.prefix + variant):
            source.check()

    @classmethod
    def listing(cls) -> list[EncoderListing]:
        """All pretrained models of open_clip, each once: without the second names for QuickGELU."""
        import open_clip

        known = {one.name: one for one in listings_of("open_clip")}
        listings = []
        for model, tag in open_clip.list_pretrained():
            if not model.endswith(QUICK_GELU):
                name = f"open_clip:{model}/{tag}"
                licence = find_licence(weights_files(open_clip.get_pretrained_cfg(model, tag))[0])
                dim = int(open_clip.get_model_config(model)["embed_dim"])
                listings.append(known.get(name, EncoderListing(name, dim, licence)))
        return listings

    def preprocess(self, image: Image.Image) -> Tensor:
        """Open_clip's own transform for evaluation."""
        return self._transform(self._crop_strip(as_rgb(image)))

    def tower(self) -> Tower | None:
        """The model's ``visual``; None if pictures are padded to a square, which backends don't do."""
        if self._pixels is None:
            return None
        return Tower(self.info.name, self.info.fingerprint, self.info.dim, self._pixels, self._model.visual)

    def layers(self) -> Mapping[str, int]:
        """``final``, ``inner`` and, if the tower ends in a linear step, ``unprojected``; see `open_clip_layers`.

        Only ``final`` if pictures are padded to a square.
        """
        return {FINAL: self.info.dim} if self._pixels is None else self._layers.widths()

    def second_size(self) -> int | None:
        """12/7 of the tower's own size, in whole patches; None if pictures are padded or the tower refuses it."""
        return None if self._pixels is None else self._second_size

    def layer_network(self, layers: Sequence[str], size: int) -> nn.Module:
        """See `Encoder.layer_network`."""
        if self._pixels is None:
            return super().layer_network(layers, size)
        return self._layers.network(layers, size)

    @cached_property
    def _layers(self) -> TowerLayers:
        return TowerLayers(self._model.visual, self.info.dim, self.info.image_size)

    @cached_property
    def _second_size(self) -> int | None:
        return self._layers.second_size()

    def text_tower(self) -> TextTower | None:
        """The text tower if it is one of CLIP or SigLIP; None for CoCa and the towers of the library transformers."""
        return open_text_tower(self._model, self._tokenizer, self.info.fingerprint, self.device)

    def tunable_copy(self) -> OpenClipEncoder:
        """A second encoder on the same weights."""
        other = copy.copy(self)
        for name in ("_text_tower", "_layers"):  # rebuilt from the modules of the copy
            other.__dict__.pop(name, None)
        other._model = copy_sharing_weights(self._model)
        return other

    def prompt_places(self) -> PromptPlaces | None:
        """See `clipadapter.encoders.open_clip_prompts`; None unless the model is a ViT with a causal text tower."""
        return find_prompt_places(self._model, self._tokenizer, self._set_tokenizer, self.device)

    def _set_tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def projection(self) -> Projection | None:
        """The last step if the image tower is CLIP's, or one of timm with a linear head; None for SigLIP and CoCa."""
        return find_projection(self._model.visual)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(n, 3, s, s) to (n, d)."""
        check_pixels(pixels, self.info.image_size)
        if not len(pixels):
            return torch.empty(0, self.info.dim)
        with torch.inference_mode():
            return run_in_batches(self._model.encode_image, self._model.visual, pixels.to(self.device)).float().cpu()

    def patch_features(self, image: Image.Image) -> Tensor | None:
        """(h, w, d), see `encode_patches`; None for towers that it does not support, and for padded pictures."""
        if self._pixels is None:
            return None
        with torch.inference_mode():
            patches = encode_patches(self._model.visual, self.preprocess(image)[None].to(self.device))
        return None if patches is None else patches.float().cpu()

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts to (k, d), by the model's own tokenizer."""
        different, index = unique_texts(texts)
        tokens = [self._tokenizer(different[i : i + batch_size]) for i in range(0, len(different), batch_size)]
        with torch.inference_mode():
            return self._text_tower(torch.cat(tokens), batch_size)[index]

    @cached_property
    def _text_tower(self) -> UnpaddedTextTower:
        return UnpaddedTextTower(self._model, self.device)

    def _crop_strip(self, image: Image.Image) -> Image.Image:
        """Crop a long strip to its centre, so that scaling it needs little memory; other pictures stay as they are."""
        short, long = sorted(image.size)
        size = self.info.image_size
        if self._resize_mode == "shortest" and long > MAX_UNCROPPED_ASPECT_RATIO * short:
            return centre_square(image, size, self._resample)
        if self._resize_mode == "longest" and long > size * short:
            # The short side would be scaled to less than one pixel.
            width, height = (min(side, size * short) for side in image.size)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            return image.crop((left, top, left + width, top + height))
        return image


@register_encoder("hf-hub")
class HubEncoder(OpenClipEncoder):
    """A model of open_clip from a repository of the hub, ``hf-hub:ORG/MODEL`` or ``hf-hub:ORG/MODEL@REVISION``."""

    prefix = "hf-hub:"

    @classmethod
    def listing(cls) -> list[EncoderListing]:
        """What the catalogue says."""
        return listings_of("hf-hub")


def load_model(source: ModelSource) -> tuple[Any, Any]:
    """The model in fp32 on the CPU, ready to use, and its tokenizer.

    Raises:
        InputError: if the model takes pictures that are not square.
        EncoderUnavailableError: if the weights or the tokenizer can't be loaded.
        MissingExtraError: if the tokenizer needs the library transformers, which is not installed.
    """
    import open_clip

    size = source.config.get("vision_cfg", {}).get("image_size", 224)
    if isinstance(size, Sequence) and len(set(size)) > 1:
        raise InputError(f"{source.uri} takes pictures of {size[0]} x {size[1]}; only square ones are supported")
    if {"hf_tokenizer_name", "hf_model_name"} & set(source.config.get("text_cfg", {})):
        require("transformers", "transformers", f"The text tower of {source.uri}")
    check_text_configuration(source)
    shapes = read_shapes(Path(source.weights)) if source.is_own_file and source.weights else {}
    advice = ARCHITECTURE_ADVICE if source.is_own_file else advise(source.uri)
    with loading(f"{source.uri} can't be loaded", advice):
        model = open_clip.create_model(
            source.model,
            pretrained=source.weights,
            force_preprocess_cfg=source.preprocess,
            require_pretrained=True,
            weights_only=True,
        )
        tokenizer = open_tokenizer(source)
    check_position_embeddings(shapes, source, model)
    vocabulary_size = source.config.get("text_cfg", {}).get("vocab_size", 49408)
    if isinstance(tokenizer, open_clip.SimpleTokenizer) and tokenizer.vocab_size != vocabulary_size:
        raise EncoderUnavailableError(
            f"{source.uri} has {vocabulary_size} tokens but names no tokenizer, and CLIP's has {tokenizer.vocab_size}: "
            "name one in text_cfg.hf_tokenizer_name and put its files into the folder"
        )
    return model.eval().requires_grad_(False), tokenizer


def check_text_configuration(source: ModelSource) -> None:
    """Refuse a text tower of the library transformers whose configuration can't be had.

    The library would try for 20 seconds, and not name the repository.
    """
    name = source.config.get("text_cfg", {}).get("hf_model_name")
    if name and not Path(name).is_dir():
        HubSource(f"the text tower of {source.uri}", name, ["config.json"]).check()


def open_tokenizer(source: ModelSource) -> Any:
    """The tokenizer that open_clip opens for the model. What is in the hub's cache is used without a request."""
    import open_clip

    facts = source.config.get("text_cfg", {})
    name = facts.get("hf_tokenizer_name")
    if not name or (source.repo is None and source.weights is None):
        return open_clip.get_tokenizer(source.model)  # CLIP's, or in the folder
    revision = source.commit if name == source.repo else None
    options = {"trust_remote_code": False, **facts.get("tokenizer_kwargs", {})}
    options |= {"context_length": facts.get("context_length", 77), "tokenizer_mode": facts.get("tokenizer_mode")}
    cached = cached_file(name, ["tokenizer.json", "tokenizer_config.json"], revision)
    reason = ""
    if cached is not None:
        try:  # as a folder: by its name, the library transformers would also ask for a config.json
            return open_clip.tokenizer.HFTokenizer(str(Path(cached).parent), **options)
        except (OSError, ValueError) as error:  # not all of its files are in the cache
            reason = f" ({str(error).partition(chr(10))[0]})"
    if not hub_answers(name, "tokenizer_config.json"):
        raise FileNotFoundError(
            f"its tokenizer is that of the repository {name}, which does not open from the hub's cache on this "
            f"machine{reason}, and the hub does not answer"
        )
    return open_clip.tokenizer.HFTokenizer(name, revision=revision, **options)


def compute_fingerprint(
    model: nn.Module,
    tokenizer: Callable[[list[str]], Tensor],
    config: dict[str, Any],
    preprocess: dict[str, Any],
) -> str:
    """Hex digest of the weights, the architecture, the preprocessing and the tokenizer's output for probe texts.

    SHA-256 because processors have instructions for it: 0.5 s for ViT-B/32, half the time of BLAKE2.
    """
    digest = hashlib.sha256(json.dumps([CODE_VERSION, config, preprocess], sort_keys=True).encode())
    arrays: dict[str, Tensor] = {"tokens": tokenizer(list(TOKENIZER_PROBES)), **model.state_dict()}
    for name in sorted(arrays):
        array = arrays[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(array.shape)} {array.dtype}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def encode_patches(visual: Any, pixels: Tensor) -> Tensor | None:
    """A feature for each patch of a picture, in the space of the picture's feature.

    CLIP's transformer reads its feature from one token, and the outputs at the patches are not in that space. So the
    last layer runs as in ClearCLIP (Lan et al., ECCV 2024, https://arxiv.org/abs/2407.12442, section 3): each patch
    attends to patches with similar queries, and the output of attention is taken without the residual and the MLP.
    CLIP's ResNet ends in attention too: there each position passes the value and output layers only, as in MaskCLIP
    (Zhou et al., ECCV 2022, https://arxiv.org/abs/2112.01071, section 3.2). Networks of timm pool each position as if
    it were the only one.

    Args:
        visual: image tower of a model of open_clip.
        pixels: (1, 3, s, s), normalized, on the device of the tower.

    Returns:
        (h, w, d) as the tower gives it; None for towers that are not supported: those of CoCa, and networks of timm
        that read their feature from a class token.
    """
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    # Not isinstance: a derived class may end in another way.
    if type(visual) is VisionTransformer:
        return _transformer_patches(visual, pixels)
    if type(visual) is ModifiedResNet:
        return _resnet_patches(visual, pixels)
    return _timm_patches(visual, pixels) if type(visual) is TimmModel else None


class QueryAttention(nn.Module):
    """A layer in which each token attends to the tokens with similar queries.

    Args:
        block: a block of open_clip with ``nn.MultiheadAttention``.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, *_others: Any, **_named: Any) -> Tensor:
        """Tokens (n, l, width) to the same shape."""
        attention = self.block.attn
        qkv = torch.nn.functional.linear(self.block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
        q, _, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (n, heads, l, width) each
        mixed = torch.nn.functional.scaled_dot_product_attention(q, q, v).transpose(1, 2).flatten(2)
        output: Tensor = self.block.ls_1(attention.out_proj(mixed))
        return output


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
    patches: Tensor = pool.c_proj(pool.v_proj(positions))
    return patches.unflatten(0, grid)


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
    patches: Tensor = visual.head(trunk.forward_head(single_patches))
    return patches.unflatten(0, grid)
