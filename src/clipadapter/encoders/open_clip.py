"""Models of open_clip with its loader, preprocessing and tokenizers: CLIP, SigLIP and others.

Code: https://github.com/mlfoundations/open_clip. Where open_clip warns or says nothing, this module raises an error: if
a folder does not name its mean and deviation, and if the tokenizer does not fit the vocabulary. Where open_clip warns
that weights were trained with another activation, this module takes the activation of the weights.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from clipadapter.backends import Tower
from clipadapter.encoders.base import Encoder, EncoderInfo, EncoderListing
from clipadapter.encoders.hub import cached_file, hub_answers
from clipadapter.encoders.inputs import check_pixels, unique_texts
from clipadapter.encoders.layers import copy_sharing_weights
from clipadapter.encoders.open_clip_text import UnpaddedTextTower, open_text_tower
from clipadapter.encoders.projection import find_projection
from clipadapter.encoders.registry import register_encoder
from clipadapter.errors import EncoderUnavailableError, InputError, UnknownNameError
from clipadapter.parallel import run_in_batches
from clipadapter.pixels import MAX_UNCROPPED_ASPECT_RATIO, PixelSpec, as_rgb, centre_square
from clipadapter.towers import Projection, TextTower

CODE_VERSION = 1
"""Incremented whenever the same weights would give another feature."""

QUICK_GELU = "-quickgelu"
"""How open_clip ends the name of an architecture with the QuickGELU activation."""

TOKENIZER_PROBES = (
    "a photo of a cat.",
    "A Photo, of the ÜBER-cat's hat!",
    "  two   spaces & <p>marks</p> ",
    "one two three four five six seven eight nine ten " * 12,
)
"""Texts whose tokens differ between tokenizers: case, accents, punctuation, spaces, truncation."""

ADVICE = (
    "Copy a folder with its weights here and say open_clip:local-dir:PATH, make the hub reachable, "
    "or say lite, which needs neither"
)


@register_encoder("open_clip")
class OpenClipEncoder(Encoder):
    """A pretrained model of open_clip, ``open_clip:MODEL/TAG``, or a folder, ``open_clip:local-dir:PATH``.

    A feature does not depend on the batch that it was computed in, up to 1e-4 of its length.

    Args:
        source: where the model comes from.
        device: a torch device.

    Raises:
        InputError: if the model takes pictures that are not square.
        EncoderUnavailableError: if the weights or the tokenizer can't be loaded.
    """

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
        )
        self.device = device
        self._pixels: PixelSpec | None = None
        if config.resize_mode != "longest":
            resample = "bilinear" if bilinear else "bicubic"
            self._pixels = PixelSpec(int(size), tuple(config.mean), tuple(config.std), config.resize_mode, resample)
        self._model: Any = model.to(device)

    @classmethod
    def open(cls, variant: str, device: str = "cpu") -> OpenClipEncoder:
        """Open ``MODEL/TAG`` or ``local-dir:PATH``.

        Raises:
            InputError: if it is neither.
            UnknownNameError: if open_clip has no such model, or the model no such weights.
            EncoderUnavailableError: if the weights can't be had.
        """
        if variant.startswith("local-dir:"):
            return cls(find_folder(variant.removeprefix("local-dir:")), device)
        model, _, tag = variant.rpartition("/")
        if not model or not tag:
            raise InputError(
                f"'open_clip:{variant}' names no weights: say open_clip:MODEL/TAG, such as "
                "open_clip:ViT-B-32/laion2b_s34b_b79k, or open_clip:local-dir:PATH"
            )
        return cls(find_pretrained(model, tag), device)

    @classmethod
    def listing(cls) -> list[EncoderListing]:
        """All pretrained models of open_clip."""
        return [
            EncoderListing(f"open_clip:{model}/{tag}", dim, licence)
            for model, tag, dim, licence in list_pretrained_models()
        ]

    def preprocess(self, image: Image.Image) -> Tensor:
        """Open_clip's own transform for evaluation."""
        return self._transform(self._crop_strip(as_rgb(image)))

    def tower(self) -> Tower | None:
        """The model's ``visual``; None if pictures are padded to a square, which backends don't do."""
        if self._pixels is None:
            return None
        return Tower(self.info.name, self.info.fingerprint, self.info.dim, self._pixels, self._model.visual)

    def text_tower(self) -> TextTower | None:
        """The text tower if it is one of CLIP or SigLIP; None for CoCa and the towers of the library transformers."""
        return open_text_tower(self._model, self._tokenizer, self.info.fingerprint, self.device)

    def tunable_copy(self) -> OpenClipEncoder:
        """A second encoder on the same weights."""
        other = copy.copy(self)
        other.__dict__.pop("_text_tower", None)  # rebuilt from the modules of the copy
        other._model = copy_sharing_weights(self._model)
        return other

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


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, before it is loaded.

    Args:
        uri: name of the encoder.
        model: name of the model in open_clip, or ``local-dir:PATH``.
        config: model configuration of open_clip.
        weights: file with the weights; None if open_clip finds it in the folder.
        preprocess: preprocessing that belongs to the weights; None if the folder states it.
        licence: licence of the weights.
    """

    uri: str
    model: str
    config: dict[str, Any]
    weights: str | None
    preprocess: dict[str, Any] | None
    licence: str


def find_pretrained(model: str, tag: str) -> ModelSource:
    """A pretrained model by its names in open_clip; the weights are downloaded if they are not on this machine.

    Weights that were trained with QuickGELU are opened with it: ``ViT-B-32/openai`` and ``ViT-B-32-quickgelu/openai``
    are one encoder, of the first name.

    Raises:
        UnknownNameError: if open_clip has no such model, or the model no such weights.
        EncoderUnavailableError: if the weights are not on this machine and can't be downloaded.
    """
    model, tag, facts, config = _look_up(model, tag)
    uri = f"open_clip:{model.removesuffix(QUICK_GELU)}/{tag}"
    repo, names = _weights_files(facts)
    path = cached_file(repo, names) or _download(uri, facts)
    return ModelSource(uri, model, config, path, facts, weights_licence(tag, repo))


def find_folder(path: str) -> ModelSource:
    """A model from a folder in the layout of open_clip: ``open_clip_config.json`` and the weights.

    Raises:
        EncoderUnavailableError: if the folder or one of the files is missing or can't be used.
    """
    folder = Path(path).expanduser().resolve()
    config_path = folder / "open_clip_config.json"
    if not path or not folder.is_dir():
        raise EncoderUnavailableError(f"there is no folder {path!r}: say open_clip:local-dir:PATH")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderUnavailableError(f"{folder} needs a readable open_clip_config.json: {error}") from error
    facts = config.get("preprocess_cfg") if isinstance(config, dict) else None
    if not isinstance(facts, dict) or not {"mean", "std"} <= set(facts) or "model_cfg" not in config:
        # open_clip would silently use the mean and deviation of another model.
        raise EncoderUnavailableError(
            f"{config_path} must have 'model_cfg', and 'preprocess_cfg' with 'mean' and 'std'"
        )
    if not any(file.suffix in (".safetensors", ".bin", ".pth") for file in folder.iterdir()):
        raise EncoderUnavailableError(f"{folder} has no weights: put an open_clip_model.safetensors into it")
    return ModelSource(
        f"open_clip:local-dir:{folder}", f"local-dir:{folder}", config["model_cfg"], None, None, "unknown"
    )


def load_model(source: ModelSource) -> tuple[Any, Any]:
    """The model in fp32 on the CPU, ready to use, and its tokenizer.

    Raises:
        InputError: if the model takes pictures that are not square.
        EncoderUnavailableError: if the weights or the tokenizer can't be loaded.
    """
    import open_clip

    size = source.config.get("vision_cfg", {}).get("image_size", 224)
    if isinstance(size, Sequence) and len(set(size)) > 1:
        raise InputError(f"{source.uri} takes pictures of {size[0]} x {size[1]}; only square ones are supported")
    try:
        with torch.random.fork_rng(devices=[]):  # a new network draws from the global generator
            model = open_clip.create_model(
                source.model,
                pretrained=source.weights,
                force_preprocess_cfg=source.preprocess,
                require_pretrained=True,
                weights_only=True,
            )
        tokenizer = open_clip.get_tokenizer(source.model)
    except Exception as error:  # open_clip and its loaders raise errors of many classes
        raise EncoderUnavailableError(f"{source.uri} can't be loaded: {error}. {ADVICE}.") from error
    vocabulary_size = source.config.get("text_cfg", {}).get("vocab_size", 49408)
    if isinstance(tokenizer, open_clip.SimpleTokenizer) and tokenizer.vocab_size != vocabulary_size:
        raise EncoderUnavailableError(
            f"{source.uri} has {vocabulary_size} tokens but names no tokenizer, and CLIP's has {tokenizer.vocab_size}: "
            "name one in text_cfg.hf_tokenizer_name and put its files into the folder"
        )
    return model.eval().requires_grad_(False), tokenizer


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


def is_downloaded(model: str, tag: str) -> bool:
    """Whether the weights of this name are on this machine; makes no request.

    Raises:
        UnknownNameError: if open_clip has no such model, or the model no such weights.
    """
    return cached_file(*_weights_files(_look_up(model, tag)[2])) is not None


def list_pretrained_models() -> list[tuple[str, str, int, str]]:
    """Model, tag, width and licence of all pretrained models, each once: without the second names for QuickGELU."""
    import open_clip

    listed = []
    for model, tag in open_clip.list_pretrained():
        if not model.endswith(QUICK_GELU):
            config = open_clip.get_model_config(model)
            facts = open_clip.get_pretrained_cfg(model, tag)
            listed.append((model, tag, int(config["embed_dim"]), weights_licence(tag, _weights_files(facts)[0])))
    return listed


def weights_licence(tag: str, repo: str) -> str:
    """Licence of weights as their makers state it, or "unknown".

    >>> weights_licence("laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    'MIT'
    """
    owner = repo.split("/")[0]
    if tag == "openai" or owner == "laion" or (owner == "timm" and tag.startswith("laion")):
        return "MIT"
    if tag == "webli":
        return "Apache-2.0"
    if tag.startswith("metaclip"):
        return "CC-BY-NC-4.0"
    if owner == "apple" or "MobileCLIP" in repo:
        return "apple-amlr"
    return "unknown"


def _look_up(model: str, tag: str) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    """Model and tag in open_clip's spelling, its configuration of the weights, and that of the model.

    The model is the form of the architecture that has the activation of the weights.
    """
    import open_clip

    model = model.replace("/", "-")
    known = sorted({name for name, _ in open_clip.list_pretrained()})
    if model not in known:
        raise _unknown("open_clip has no pretrained model", model, known, "open_clip:*")
    tags = open_clip.list_pretrained_tags_by_model(model)
    facts = open_clip.get_pretrained_cfg(model, tag)
    if not facts:
        plain = model.removesuffix(QUICK_GELU)
        if open_clip.get_pretrained_cfg(plain, tag):
            raise UnknownNameError(
                f"the weights '{tag}' were trained without QuickGELU, which '{model}' has: say open_clip:{plain}/{tag}"
            )
        raise _unknown(f"'{model}' has no weights", tag, tags, f"open_clip:{model}/*")
    if facts.get("quick_gelu") and not model.endswith(QUICK_GELU):
        model += QUICK_GELU
    return model, tag.lower().replace("-", "_"), facts, open_clip.get_model_config(model)


def _unknown(sentence: str, name: str, known: list[str], pattern: str) -> UnknownNameError:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return UnknownNameError(f"{sentence} '{name}'.{hint} See all: clipadapter encoders '{pattern}'")


def _weights_files(facts: dict[str, Any]) -> tuple[str, list[str]]:
    """Repository on the hub and possible file names of its weights, safetensors first as in open_clip."""
    repo, _, name = facts["hf_hub"].rpartition("/")
    if not name:
        return repo, ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    return repo, list(dict.fromkeys([f"{name.rpartition('.')[0]}.safetensors", name]))


def _download(uri: str, facts: dict[str, Any]) -> str:
    """Download the weights from the hub; returns their path."""
    import open_clip

    repo, names = _weights_files(facts)
    if not hub_answers(repo, names[0]):
        raise EncoderUnavailableError(
            f"the weights of {uri} are not on this machine and the hub does not answer. {ADVICE}."
        )
    try:
        return open_clip.download_pretrained(facts)
    except OSError as error:
        raise EncoderUnavailableError(f"the weights of {uri} can't be downloaded: {error}. {ADVICE}.") from error


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
    last_block = visual.transformer.resblocks[-1]
    has_plain_attention = isinstance(getattr(last_block, "attn", None), nn.MultiheadAttention)
    is_supported = has_plain_attention and visual.transformer.batch_first and visual.attn_pool is None
    if not is_supported or visual.pool_type not in ("tok", "avg"):
        return None
    tower = copy_sharing_weights(visual)  # the modules of the encoder stay unchanged
    tower.output_tokens = True
    if visual.pool_type == "tok":
        tower.transformer.resblocks[-1] = QueryAttention(tower.transformer.resblocks[-1])
    _, tokens = tower(pixels)
    tokens = tower.ln_post(tokens) if visual.final_ln_after_pool else tokens
    patches: Tensor = tokens[0] if tower.proj is None else tokens[0] @ tower.proj
    return patches.unflatten(0, tuple(visual.grid_size))


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
