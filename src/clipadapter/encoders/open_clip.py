"""Models of open_clip with its loader, preprocessing and tokenizers: CLIP, SigLIP and others.

Code: https://github.com/mlfoundations/open_clip. `clipadapter.encoders.open_clip_sources` finds the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipadapter.encoders import open_clip_sources
from clipadapter.encoders.base import EncoderInfo
from clipadapter.encoders.catalogue import QUICK_GELU, EncoderListing, find_licence, listings_of
from clipadapter.encoders.hub import HubSource, advise, cached_file, hub_answers
from clipadapter.encoders.inputs import TOKENIZER_PROBES, compute_fingerprint, unique_texts
from clipadapter.encoders.layers import copy_sharing_weights
from clipadapter.encoders.open_clip_layers import VisualEncoder, find_projection
from clipadapter.encoders.open_clip_prompts import PromptPlaces, find_prompt_places
from clipadapter.encoders.open_clip_sources import (
    ARCHITECTURE_ADVICE,
    ModelSource,
    check_position_embeddings,
    weights_files,
)
from clipadapter.encoders.open_clip_text import UnpaddedTextTower, open_text_tower
from clipadapter.encoders.registry import register_encoder
from clipadapter.encoders.weights import loading, read_shapes
from clipadapter.errors import EncoderUnavailableError, InputError, require
from clipadapter.utils.pixels import RESIZE_MODES, PixelSpec
from clipadapter.utils.towers import Projection, TextTower

CODE_VERSION = 1
"""Incremented whenever the same weights would give another feature."""


@register_encoder("open_clip")
class OpenClipEncoder(VisualEncoder):
    """A model of open_clip: pretrained (MODEL/TAG), from a file (MODEL:FILE), a folder or a repository of the hub.

    A feature does not depend on the batch that it was computed in, up to 1e-4 of its length.
    """

    sources = open_clip_sources

    def __init__(self, source: ModelSource, device: str = "cpu") -> None:
        from open_clip.transform import PreprocessCfg

        model, self._tokenizer = load_model(source)
        facts = dict(model.visual.preprocess_cfg)
        config = PreprocessCfg(**facts)
        if config.resize_mode not in RESIZE_MODES:
            raise InputError(f"{source.uri} pads pictures to a square, which is not supported: take another model")
        size = config.size if isinstance(config.size, int) else config.size[0]
        bias = getattr(model, "logit_bias", None)
        arrays = {"tokens": self._tokenizer(list(TOKENIZER_PROBES)), **model.state_dict()}
        self.info = EncoderInfo(
            name=source.uri,
            dim=int(source.config["embed_dim"]),
            image_size=int(size),
            logit_scale=float(model.logit_scale.exp()),
            logit_bias=None if bias is None else float(bias),
            licence=source.licence,
            fingerprint=compute_fingerprint([CODE_VERSION, source.config, facts], arrays),
            note=source.note,
        )
        self.device = device
        resample = "bilinear" if config.interpolation == "bilinear" else "bicubic"
        self.pixels = PixelSpec(int(size), tuple(config.mean), tuple(config.std), config.resize_mode, resample)
        self._model: Any = model.to(device)

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

    def network(self) -> nn.Module:
        """The model's ``visual``."""
        visual: nn.Module = self._model.visual
        return visual

    def image_features(self, pixels: Tensor) -> Tensor:
        """As the model itself gives them: that of CoCa leaves its tokens out."""
        features: Tensor = self._model.encode_image(pixels)
        return features

    def text_tower(self) -> TextTower | None:
        """The text tower if it is one of CLIP or SigLIP; None for CoCa and the towers of the library transformers."""
        return open_text_tower(self._model, self._tokenizer, self.info.fingerprint, self.device)

    def tunable_copy(self) -> OpenClipEncoder:
        """A second encoder on the same weights."""
        other = copy.copy(self)
        for name in ("_text_tower", "_layers", "_second_size"):  # rebuilt from the modules of the copy
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

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts to (k, d), by the model's own tokenizer."""
        different, index = unique_texts(texts)
        tokens = [self._tokenizer(different[i : i + batch_size]) for i in range(0, len(different), batch_size)]
        with torch.inference_mode():
            return self._text_tower(torch.cat(tokens), batch_size)[index]

    @cached_property
    def _text_tower(self) -> UnpaddedTextTower:
        return UnpaddedTextTower(self._model, self.device)


@register_encoder("hf-hub")
class HubEncoder(OpenClipEncoder):
    """A model of open_clip from a repository of the hub, ``hf-hub:ORG/MODEL`` or ``hf-hub:ORG/MODEL@REVISION``."""

    variant_start = "hf-hub:"

    @classmethod
    def listing(cls) -> list[EncoderListing]:
        """Those that the catalogue recommends."""
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
    language_model = source.config.get("text_cfg", {}).get("hf_model_name")
    if language_model and not Path(language_model).is_dir():
        # The library would try for 20 seconds, and not name the repository.
        HubSource(f"the text tower of {source.uri}", language_model, ["config.json"]).check()
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
