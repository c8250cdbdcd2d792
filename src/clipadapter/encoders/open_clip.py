"""Models of open_clip with its loader, preprocessing and tokenizers: CLIP, SigLIP and others.

Code: https://github.com/mlfoundations/open_clip. Where open_clip warns or says nothing, there is an error here: if mean
and deviation are not stated, if a file has other position embeddings than the model, and if a configuration asks for
code from the hub. Where open_clip warns that weights were trained with another activation, theirs is taken.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipadapter.encoders.base import (
    TOKENIZER_PROBES,
    Encoder,
    EncoderInfo,
    compute_fingerprint,
    encode_by_length,
    unique_texts,
)
from clipadapter.encoders.catalogue import QUICK_GELU, check_pretrained, find_licence, suggest
from clipadapter.encoders.layers import copy_sharing_weights
from clipadapter.encoders.open_clip_layers import VisualEncoder, find_projection
from clipadapter.encoders.open_clip_prompts import PromptPlaces, find_prompt_places
from clipadapter.encoders.open_clip_text import (
    CausalTextTower,
    OpenClipTextTower,
    is_exact_without_padding,
    wrap_text_tower,
)
from clipadapter.encoders.registry import register_encoder
from clipadapter.encoders.weights import (
    OPEN_CLIP_WEIGHTS,
    HubSource,
    advise,
    check_has_weights,
    hub_answers,
    loading,
    read_config,
    read_shapes,
)
from clipadapter.errors import EncoderUnavailableError, InputError, UnknownNameError, require
from clipadapter.utils.pixels import RESIZE_MODES, PixelSpec
from clipadapter.utils.towers import Projection

CONFIG_FILE = "open_clip_config.json"
PREPROCESS_FIELDS = ("mean", "std", "interpolation", "resize_mode")
POSITION_EMBEDDINGS = (
    "visual.positional_embedding",
    "visual.trunk.pos_embed",
    "positional_embedding",
    "text.positional_embedding",
)
"""Weights that open_clip silently scales to another length."""

ARCHITECTURE_ADVICE = "Name the architecture of the weights: 'clipadapter encoders open_clip:*' lists all"
CODE_VERSION = 1  # incremented whenever the same weights would give another feature


@register_encoder("open_clip")
class OpenClipEncoder(VisualEncoder):
    """A model of open_clip: pretrained (MODEL/TAG), from a file (MODEL:FILE), a folder or a repository of the hub.

    A feature does not depend on the batch that it was computed in, up to 1e-4 of its length.
    """

    _is_exact_without_padding: bool | None = None  # of the text tower; None: not known yet
    variant_start = ""  # what comes before a variant of this scheme in those of ``open_clip``

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
    def open(cls, variant: str, device: str = "cpu") -> Encoder:
        return cls(find_source(cls.variant_start + variant), device)

    @classmethod
    def check(cls, variant: str) -> None:
        if source := hub_source(cls.variant_start + variant):
            source.check()

    def network(self) -> nn.Module:
        return self._model.visual

    def image_features(self, pixels: Tensor) -> Tensor:
        """As the model itself gives them: that of CoCa leaves its tokens out."""
        return self._model.encode_image(pixels)

    def text_tower(self) -> OpenClipTextTower | None:
        """The text tower if it is one of CLIP or SigLIP; None for CoCa and the towers of the library transformers."""
        return wrap_text_tower(self._model, self._tokenizer, self.info.fingerprint, self.device)

    def tunable_copy(self) -> OpenClipEncoder:
        other = copy.copy(self)
        for name in ("_is_exact_without_padding", "_last_step", "_inner", "_second_size"):  # are those of its modules
            other.__dict__.pop(name, None)
        other._model = copy_sharing_weights(self._model)
        return other

    def prompt_places(self) -> PromptPlaces | None:
        """See `clipadapter.encoders.open_clip_prompts`; None unless the model is a ViT with a causal text tower."""
        return find_prompt_places(self._model.visual, self.text_tower(), partial(setattr, self, "_tokenizer"))

    def projection(self) -> Projection | None:
        """The last step if the image tower is CLIP's, or one of timm with a linear head; None for SigLIP and CoCa."""
        return find_projection(self._model.visual)

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts to (k, d), by the model's own tokenizer."""
        different, index = unique_texts(texts)
        tower = wrap_text_tower(self._model, self._tokenizer, self.info.fingerprint, self.device)
        with torch.inference_mode():
            if isinstance(tower, CausalTextTower):
                if self._is_exact_without_padding is None:
                    self._is_exact_without_padding = is_exact_without_padding(self._model, tower)
                if self._is_exact_without_padding:
                    return encode_by_length(tower.tokenize(different), tower.encode_tokens, batch_size)[index]
            batches = [self._tokenizer(different[i : i + batch_size]) for i in range(0, len(different), batch_size)]
            features = [self._model.encode_text(batch.to(self.device), normalize=False) for batch in batches]
            return torch.cat(features).float().cpu()[index]


@register_encoder("hf-hub")
class HubEncoder(OpenClipEncoder):
    """A model of open_clip from a repository of the hub, ``hf-hub:ORG/MODEL`` or ``hf-hub:ORG/MODEL@REVISION``."""

    variant_start = "hf-hub:"


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, before it is loaded."""

    uri: str  # name of the encoder
    model: str  # name of the model in open_clip, or local-dir:PATH
    config: dict[str, Any]  # model configuration of open_clip
    weights: str | None  # file with the weights; None if open_clip finds it in the folder
    preprocess: dict[str, Any] | None  # preprocessing that belongs to the weights; None if the folder states it
    licence: str = "unknown"
    repo: str | None = None  # repository of the hub whose snapshot is the folder
    commit: str | None = None  # of the snapshot
    is_own_file: bool = False  # whether the user named the file with the weights
    note: str = ""  # what a user should know


def hub_source(variant: str) -> HubSource | None:
    """The file of the hub that a variant needs first; None if it names a file or folder."""
    kind, has_path, rest = variant.partition(":")
    if kind == "hf-hub":
        repo, _, revision = rest.partition("@")
        return HubSource(variant, repo, [CONFIG_FILE], revision or None)
    if has_path:
        return None
    return look_up(*variant.rpartition("/")[::2])[0]


def find_source(variant: str) -> ModelSource:
    """The source that follows the scheme in the URI of an encoder; files of the hub are downloaded if need be."""
    kind, has_path, rest = variant.partition(":")
    if kind == "local-dir":
        return _find_folder(rest)
    if kind == "hf-hub":
        return _find_repository(variant)
    return find_file(kind, rest) if has_path else find_pretrained(*variant.rpartition("/")[::2])


def find_pretrained(model: str, tag: str) -> ModelSource:
    """A pretrained model by its names in open_clip; with QuickGELU, if its weights were trained with it."""
    source, model, facts, config = look_up(model, tag)
    return ModelSource(source.uri, model, config, str(source.path()), facts, find_licence(source.repo))


def _find_folder(path: str) -> ModelSource:
    """A model from a folder in the layout of open_clip: ``open_clip_config.json`` and the weights."""
    folder = Path(path).expanduser().resolve()
    config = _read_config(folder / CONFIG_FILE, str(folder))
    check_has_weights(folder, "an open_clip_model.safetensors")
    return ModelSource(f"open_clip:local-dir:{folder}", f"local-dir:{folder}", config, None, None)


def _find_repository(uri: str) -> ModelSource:
    """A model from a repository of the Hugging Face hub that has an ``open_clip_config.json``."""
    source = hub_source(uri)
    assert source is not None
    config_path = source.path()
    folder, commit = config_path.parent, config_path.parent.name
    config = _read_config(config_path, uri, source.other_name())
    HubSource(uri, source.repo, OPEN_CLIP_WEIGHTS, commit).path()
    repo, note = source.repo, ""
    if source.revision is None:
        note = f"commit {commit}; hf-hub:{repo}@{commit} opens this one even after a change on the hub"
    licence = find_licence(repo)
    return ModelSource(uri, f"local-dir:{folder}", config, None, None, licence, repo=repo, commit=commit, note=note)


def find_file(model: str, path: str) -> ModelSource:
    """Weights of one's own for an architecture; of ``MODEL/TAG`` they have the preprocessing and the activation."""
    import open_clip

    file = Path(path).expanduser().resolve()
    name, _, tag = model.partition("/")
    if tag:
        source, name, facts, config = look_up(name, tag)
        return ModelSource(f"{source.uri}:{file}", name, config, str(file), facts, is_own_file=True)
    config = open_clip.get_model_config(name)
    if config is None:
        raise UnknownNameError(f"open_clip has no architecture '{name}'.{suggest(name, open_clip.list_models())}")
    facts, note = _preprocessing_of(name, path), ""
    if not config.get("quick_gelu") and open_clip.get_model_config(name + QUICK_GELU):
        note = (
            f"opened without QuickGELU; if the weights were fine-tuned from OpenAI's, say open_clip:{name}/openai:FILE"
        )
    return ModelSource(f"open_clip:{name}:{file}", name, config, str(file), facts, is_own_file=True, note=note)


def look_up(model: str, tag: str) -> tuple[HubSource, str, dict[str, Any], dict[str, Any]]:
    """Pretrained weights on the hub, and open_clip's name of the model, facts of the weights and configuration."""
    # The model is the form of the architecture that has the activation of the weights.
    check_pretrained(model, tag)
    import open_clip

    model = model.replace("/", "-").removesuffix(QUICK_GELU)
    facts = open_clip.get_pretrained_cfg(model, tag)
    if not facts:  # of another release than the one whose names are known
        raise UnknownNameError(f"the installed open_clip has no weights '{tag}' of a model '{model}'")
    source = HubSource(f"open_clip:{model}/{tag.lower().replace('-', '_')}", *weights_files(facts))
    if facts.get("quick_gelu"):
        model += QUICK_GELU
    return source, model, facts, open_clip.get_model_config(model)


def weights_files(facts: dict[str, Any]) -> tuple[str, list[str]]:
    """Repository on the hub and possible file names of its weights, safetensors first as in open_clip."""
    repo, _, name = facts["hf_hub"].rpartition("/")
    if not name:
        return repo, OPEN_CLIP_WEIGHTS
    return repo, list(dict.fromkeys([f"{name.rpartition('.')[0]}.safetensors", name]))


def _read_config(path: Path, place: str, advice: str = "") -> dict[str, Any]:
    """The configuration of the model in an ``open_clip_config.json``, which must also state the preprocessing."""
    content = read_config(place, path)
    facts, config = content.get("preprocess_cfg"), content.get("model_cfg")
    if not isinstance(facts, dict) or not {"mean", "std"} <= set(facts) or not isinstance(config, dict):
        # open_clip would silently use the mean and deviation of another model.
        raise EncoderUnavailableError(
            f"{CONFIG_FILE} of {place} must have 'model_cfg', and 'preprocess_cfg' with 'mean' and 'std'"
            + (f": {advice}" if advice else "")
        )
    options = dict(config.get("text_cfg") or {}).get("tokenizer_kwargs") or {}
    if "trust_remote_code" in options:
        raise EncoderUnavailableError(
            f"{CONFIG_FILE} of {place} asks to run code of the tokenizer (trust_remote_code), which is never done: "
            "remove it from tokenizer_kwargs in a copy of the folder"
        )
    return config


def _preprocessing_of(model: str, path: str) -> dict[str, Any]:
    """The preprocessing of all pretrained weights of an architecture; CLIP's if it has none."""
    import open_clip

    name = model.removesuffix(QUICK_GELU)
    tags = {tag: open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)}
    ways = {tag: {field: facts[field] for field in PREPROCESS_FIELDS} for tag, facts in tags.items()}
    first = next(iter(ways), None)
    if first is None:
        return {}
    if others := [tag for tag, way in ways.items() if way != ways[first]]:
        raise InputError(
            f"the weights of {name} do not all take pictures prepared in the same way, so say what yours were "
            f"fine-tuned from: open_clip:{name}/{first}:{path}, open_clip:{name}/{others[0]}:{path} or another name; "
            f"'clipadapter encoders open_clip:{name}/*' lists them"
        )
    return ways[first]


def load_model(source: ModelSource) -> tuple[Any, Any]:
    """The model in fp32 on the CPU, ready to use, and its tokenizer; what is wrong with either is refused."""
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
    # open_clip silently scales position embeddings of another size to those of the network.
    for name, value in model.state_dict().items():
        if name in POSITION_EMBEDDINGS and shapes.get(name, value.shape) != tuple(value.shape):
            raise EncoderUnavailableError(
                f"the weights of {source.uri} are for pictures or texts of another size: {name} is {shapes[name]} in "
                f"the file and {tuple(value.shape)} in {source.model}. {ARCHITECTURE_ADVICE}"
            )
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
    reason = ""
    if cached := HubSource(source.uri, name, ["tokenizer.json", "tokenizer_config.json"], revision).cached():
        try:  # as a folder: by its name, the library transformers would also ask for a config.json
            return open_clip.tokenizer.HFTokenizer(str(cached.parent), **options)
        except (OSError, ValueError) as error:  # not all of its files are in the cache
            reason = f" ({str(error).partition(chr(10))[0]})"
    if not hub_answers(name, "tokenizer_config.json"):
        raise FileNotFoundError(
            f"its tokenizer is that of the repository {name}, which does not open from the hub's cache on this "
            f"machine{reason}, and the hub does not answer"
        )
    return open_clip.tokenizer.HFTokenizer(name, revision=revision, **options)
