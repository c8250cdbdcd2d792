"""Models of open_clip, with its own loader, preprocessing and tokenizers: CLIP, SigLIP and their kin.

Code: https://github.com/mlfoundations/open_clip. Differs from it: nothing is guessed. A folder must say its
mean and deviation, weights trained with QuickGELU must meet a model that has it, a tokenizer must fit the
vocabulary; open_clip only warns, or says nothing.
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
from clipadapter.encoders.open_clip_text import PlainTextTower, open_text_tower
from clipadapter.encoders.projection import find_projection
from clipadapter.encoders.registry import register_encoder
from clipadapter.errors import EncoderUnavailableError, InputError, UnknownNameError
from clipadapter.parallel import run_in_batches
from clipadapter.pixels import MAX_ASPECT_RATIO, PixelSpec, as_rgb, centre_square
from clipadapter.towers import Projection, TextTower


@register_encoder("open_clip")
class OpenClipEncoder(Encoder):
    """A pretrained model of open_clip, ``open_clip:MODEL/TAG``, or a folder, ``open_clip:local-dir:PATH``.

    A feature does not depend on the batch it was computed in, to 1e-4 of its length.

    Args:
        source: what to load.
        device: a torch device.

    Raises:
        InputError: if the model takes pictures that are not square.
        EncoderUnavailableError: if the weights or the tokenizer can't be loaded.
    """

    def __init__(self, source: Source, device: str = "cpu") -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        model, self._tokenizer = build(source)
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
            fingerprint=fingerprint(model, self._tokenizer, source.config, facts),
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
        return cls(find_tag(model, tag), device)

    @classmethod
    def listing(cls) -> list[EncoderListing]:
        """All pretrained models of open_clip."""
        return [EncoderListing(f"open_clip:{model}/{tag}", dim, licence) for model, tag, dim, licence in list_tags()]

    def preprocess(self, image: Image.Image) -> Tensor:
        """Open_clip's own transform for evaluation."""
        return self._transform(self._bounded(as_rgb(image)))

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
        other.__dict__.pop("_text_tower", None)  # made anew, from the second one's modules
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
        """(h, w, d), see `find_patches`; None for towers that it does not know, and for padded pictures."""
        if self._pixels is None:
            return None
        with torch.inference_mode():
            found = find_patches(self._model.visual, self.preprocess(image)[None].to(self.device))
        return None if found is None else found.float().cpu()

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts to (k, d), by the model's own tokenizer."""
        different, places = unique_texts(texts)
        tokens = [self._tokenizer(different[i : i + batch_size]) for i in range(0, len(different), batch_size)]
        with torch.inference_mode():
            return self._text_tower(torch.cat(tokens), batch_size)[places]

    @cached_property
    def _text_tower(self) -> PlainTextTower:
        return PlainTextTower(self._model, self.device)

    def _bounded(self, image: Image.Image) -> Image.Image:
        """A long strip cut to its middle, so that scaling it needs little memory; else the picture itself."""
        short, long = sorted(image.size)
        size = self.info.image_size
        if self._resize_mode == "shortest" and long > MAX_ASPECT_RATIO * short:
            return centre_square(image, size, self._resample)
        if self._resize_mode == "longest" and long > size * short:
            # Else its short side would be scaled to less than one pixel.
            keep = [min(side, size * short) for side in image.size]
            left, top = ((side - kept) // 2 for side, kept in zip(image.size, keep, strict=True))
            return image.crop((left, top, left + keep[0], top + keep[1]))
        return image


CODE_VERSION = 1
"""Raised whenever the same weights would give another feature."""


TOKENIZER_PROBES = (
    "a photo of a cat.",
    "A Photo, of the ÜBER-cat's hat!",
    "  two   spaces & <p>marks</p> ",
    "one two three four five six seven eight nine ten " * 12,
)
"""Texts whose tokens tell any two tokenizers apart: case, accents, marks, spaces, cutting."""


INSTEAD = (
    "Copy a folder with its weights here and say open_clip:local-dir:PATH, make the hub reachable, "
    "or say lite, which needs neither"
)


@dataclass(frozen=True)
class Source:
    """Where a model comes from, before it is loaded.

    Args:
        uri: the encoder's name.
        model: what open_clip calls it: a name of its own, or ``local-dir:PATH``.
        config: open_clip's model configuration.
        weights: file with the weights; None if open_clip finds it in the folder.
        preprocess: facts about the pictures that belong to the weights; None if the folder tells them.
        licence: of the weights.
    """

    uri: str
    model: str
    config: dict[str, Any]
    weights: str | None
    preprocess: dict[str, Any] | None
    licence: str


def find_tag(model: str, tag: str) -> Source:
    """A pretrained model by open_clip's names; the weights are fetched if they are not on this machine.

    Raises:
        UnknownNameError: if open_clip has no such model, or the model no such weights.
        InputError: if the weights were trained with another activation than the model has.
        EncoderUnavailableError: if the weights are not on this machine and the hub does not give them.
    """
    model, tag, facts, config = _pretrained(model, tag)
    uri = f"open_clip:{model}/{tag}"
    if facts.get("quick_gelu") and not config.get("quick_gelu"):
        raise InputError(
            f"the weights '{tag}' were trained with the QuickGELU activation, which '{model}' does not have, "
            f"and would silently be worse: say open_clip:{model}-quickgelu/{tag}"
        )
    repo, names = _files(facts)
    path = cached_file(repo, names) or _fetch(uri, facts)
    return Source(uri, model, config, path, facts, licence(tag, repo))


def find_folder(path: str) -> Source:
    """A model from a folder in open_clip's layout: ``open_clip_config.json`` beside the weights.

    Raises:
        EncoderUnavailableError: if the folder or one of the files is missing or can't be used.
    """
    folder = Path(path).expanduser().resolve()
    place = folder / "open_clip_config.json"
    if not path or not folder.is_dir():
        raise EncoderUnavailableError(f"there is no folder {path!r}: say open_clip:local-dir:PATH")
    try:
        config = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderUnavailableError(f"{folder} needs a readable open_clip_config.json: {error}") from error
    facts = config.get("preprocess_cfg") if isinstance(config, dict) else None
    if not isinstance(facts, dict) or not {"mean", "std"} <= set(facts) or "model_cfg" not in config:
        # open_clip itself would fall back on the mean and deviation of another model, without a word.
        raise EncoderUnavailableError(f"{place} must have 'model_cfg', and 'preprocess_cfg' with 'mean' and 'std'")
    if not any(file.suffix in (".safetensors", ".bin", ".pth") for file in folder.iterdir()):
        raise EncoderUnavailableError(f"{folder} has no weights: put an open_clip_model.safetensors into it")
    return Source(f"open_clip:local-dir:{folder}", f"local-dir:{folder}", config["model_cfg"], None, None, "unknown")


def build(source: Source) -> tuple[Any, Any]:
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
        with torch.random.fork_rng(devices=[]):  # a new network draws from the global stream
            model = open_clip.create_model(
                source.model,
                pretrained=source.weights,
                force_preprocess_cfg=source.preprocess,
                require_pretrained=True,
                weights_only=True,
            )
        tokenizer = open_clip.get_tokenizer(source.model)
    except Exception as error:  # whatever open_clip and the loaders under it raise
        raise EncoderUnavailableError(f"{source.uri} can't be loaded: {error}. {INSTEAD}.") from error
    words = source.config.get("text_cfg", {}).get("vocab_size", 49408)
    if isinstance(tokenizer, open_clip.SimpleTokenizer) and tokenizer.vocab_size != words:
        raise EncoderUnavailableError(
            f"{source.uri} has {words} tokens but names no tokenizer, and CLIP's has {tokenizer.vocab_size}: "
            "name one in text_cfg.hf_tokenizer_name and put its files into the folder"
        )
    return model.eval().requires_grad_(False), tokenizer


def fingerprint(
    model: nn.Module,
    tokenizer: Callable[[list[str]], Tensor],
    config: dict[str, Any],
    preprocess: dict[str, Any],
) -> str:
    """Hex digest of the weights' bytes, the architecture, the preprocessing and what the tokenizer does.

    SHA-256, since processors have it built in: 0.5 s for ViT-B/32, half of what BLAKE2 takes.
    """
    total = hashlib.sha256(json.dumps([CODE_VERSION, config, preprocess], sort_keys=True).encode())
    arrays: dict[str, Tensor] = {"tokens": tokenizer(list(TOKENIZER_PROBES)), **model.state_dict()}
    for name in sorted(arrays):
        array = arrays[name].detach().cpu().contiguous()
        total.update(f"{name} {tuple(array.shape)} {array.dtype}".encode())
        total.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()[:32]


def weights_on_disk(model: str, tag: str) -> bool:
    """Whether open_clip's weights of this name are on this machine; asks no network.

    Raises:
        UnknownNameError: if open_clip has no such model, or the model no such weights.
    """
    return cached_file(*_files(_pretrained(model, tag)[2])) is not None


def list_tags() -> list[tuple[str, str, int, str]]:
    """Model, tag, width and licence of all pretrained models that fit their weights' activation."""
    import open_clip

    found = []
    for model, tag in open_clip.list_pretrained():
        config = open_clip.get_model_config(model)
        facts = open_clip.get_pretrained_cfg(model, tag)
        if not facts.get("quick_gelu") or config.get("quick_gelu"):
            found.append((model, tag, int(config["embed_dim"]), licence(tag, _files(facts)[0])))
    return found


def licence(tag: str, repo: str) -> str:
    """Licence of weights as their makers state it, or "unknown".

    >>> licence("laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
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


def _pretrained(model: str, tag: str) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    """Names as open_clip writes them, what is known of the weights, and the model's configuration."""
    import open_clip

    model = model.replace("/", "-")
    known = sorted({name for name, _ in open_clip.list_pretrained()})
    if model not in known:
        raise _unknown("open_clip has no pretrained model", model, known, "open_clip:*")
    tags = open_clip.list_pretrained_tags_by_model(model)
    facts = open_clip.get_pretrained_cfg(model, tag)
    if not facts:
        raise _unknown(f"'{model}' has no weights", tag, tags, f"open_clip:{model}/*")
    return model, tag.lower().replace("-", "_"), facts, open_clip.get_model_config(model)


def _unknown(sentence: str, name: str, known: list[str], pattern: str) -> UnknownNameError:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return UnknownNameError(f"{sentence} '{name}'.{hint} See all: clipadapter encoders '{pattern}'")


def _files(facts: dict[str, Any]) -> tuple[str, list[str]]:
    """Repository on the hub and the names its weights may have, the safe format first as in open_clip."""
    repo, _, name = facts["hf_hub"].rpartition("/")
    if not name:
        return repo, ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    return repo, list(dict.fromkeys([f"{name.rpartition('.')[0]}.safetensors", name]))


def _fetch(uri: str, facts: dict[str, Any]) -> str:
    """Path of the weights, fetched from the hub."""
    import open_clip

    repo, names = _files(facts)
    if not hub_answers(repo, names[0]):
        raise EncoderUnavailableError(
            f"the weights of {uri} are not on this machine and the hub does not answer. {INSTEAD}."
        )
    try:
        return open_clip.download_pretrained(facts)
    except OSError as error:
        raise EncoderUnavailableError(f"the weights of {uri} can't be fetched: {error}. {INSTEAD}.") from error


def find_patches(visual: Any, pixels: Tensor) -> Tensor | None:
    """A feature for each patch.

    Args:
        visual: of a model of open_clip.
        pixels: (1, 3, s, s), normalised, where the tower is.

    Returns:
        (h, w, d) as the tower gives it; None for towers that are not known: those of CoCa, and networks of timm that
        answer by a class token.
    """
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    # Not isinstance: a derived class may end in another way.
    if type(visual) is VisionTransformer:
        return _of_transformer(visual, pixels)
    if type(visual) is ModifiedResNet:
        return _of_resnet(visual, pixels)
    return _of_timm(visual, pixels) if type(visual) is TimmModel else None


class QueryAttention(nn.Module):
    """A layer of which each token keeps what those with like queries have as values.

    Args:
        block: of open_clip, with torch's own attention.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, *_others: Any, **_named: Any) -> Tensor:
        """Tokens (n, l, width) to the same shape."""
        attention = self.block.attn
        made = torch.nn.functional.linear(self.block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
        q, _, v = made.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (n, heads, l, width) each
        found = torch.nn.functional.scaled_dot_product_attention(q, q, v).transpose(1, 2).flatten(2)
        kept: Tensor = self.block.ls_1(attention.out_proj(found))
        return kept


def _of_transformer(visual: Any, pixels: Tensor) -> Tensor | None:
    last = visual.transformer.resblocks[-1]
    known = isinstance(getattr(last, "attn", None), nn.MultiheadAttention) and visual.transformer.batch_first
    if visual.attn_pool is not None or visual.pool_type not in ("tok", "avg") or not known:
        return None
    tower = copy_sharing_weights(visual)  # the encoder's own modules stay as they are
    tower.output_tokens = True
    if visual.pool_type == "tok":
        tower.transformer.resblocks[-1] = QueryAttention(tower.transformer.resblocks[-1])
    _, tokens = tower(pixels)
    tokens = tower.ln_post(tokens) if visual.final_ln_after_pool else tokens
    patches: Tensor = tokens[0] if tower.proj is None else tokens[0] @ tower.proj
    return patches.unflatten(0, tuple(visual.grid_size))


def _of_resnet(visual: Any, pixels: Tensor) -> Tensor:
    (features,) = visual.forward_intermediates(pixels, indices=1, intermediates_only=True)["image_intermediates"]
    pool, grid = visual.attnpool, tuple(features.shape[2:])
    spots = features[0].permute(1, 2, 0).flatten(0, 1)
    spots = spots + pool.positional_embedding[1:].to(spots.dtype)  # the first is that of the mean
    patches: Tensor = pool.c_proj(pool.v_proj(spots))
    return patches.unflatten(0, grid)


def _of_timm(visual: Any, pixels: Tensor) -> Tensor | None:
    trunk = visual.trunk
    if getattr(trunk, "global_pool", "") == "token" or getattr(trunk, "output_fmt", "NCHW") != "NCHW":
        return None
    features: Tensor = trunk.forward_features(pixels)
    grid: Any
    if features.ndim == 4:
        grid = tuple(features.shape[2:])
        alone = features[0].permute(1, 2, 0).flatten(0, 1)[:, :, None, None]
    else:
        first = int(getattr(trunk, "num_prefix_tokens", 0))
        side = math.isqrt(features.shape[1] - first)
        if side * side != features.shape[1] - first:
            return None
        grid = (side, side)
        alone = features[0, first:, None]
        if first and not getattr(trunk, "pool_include_prefix", False):
            # Pooling drops so many tokens before it looks at the patches.
            alone = torch.cat([features[:, :first].expand(len(alone), -1, -1), alone], dim=1)
    found: Tensor = visual.head(trunk.forward_head(alone))
    return found.unflatten(0, grid)
