"""Models of the library transformers: CLIP, SigLIP and SigLIP 2; DINOv2 and DINOv3, which see pictures only.

Code: https://github.com/huggingface/transformers. Code of a repository is never run, and only safetensors are read. The
library fills weights that are missing with random values; here they are an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from clipadapter.encoders.base import (
    TOKENIZER_PROBES,
    Encoder,
    EncoderInfo,
    TorchEncoder,
    compute_fingerprint,
    encode_by_length,
    unique_texts,
)
from clipadapter.encoders.catalogue import find_licence, find_repository_name
from clipadapter.encoders.inner_layers import INNER_MEAN, INNER_TOKEN, second_size_of
from clipadapter.encoders.open_clip_layers import token_layers
from clipadapter.encoders.registry import register_encoder
from clipadapter.encoders.timm import measure_width
from clipadapter.encoders.weights import HubSource, advise, as_folder, loading, read_config
from clipadapter.errors import EncoderUnavailableError, InputError, brief, require
from clipadapter.utils.blocks import FINAL, UNPROJECTED
from clipadapter.utils.pixels import RESAMPLING_FILTERS, PixelSpec
from clipadapter.utils.prediction import DEFAULT_LOGIT_SCALE
from clipadapter.utils.towers import Projection

CONFIG_FILE = "config.json"
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
WEIGHTS_FILES = ["model.safetensors", "model.safetensors.index.json"]
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
NEEDED_FILES = ["*.json", "*.txt", "*.model", "model.safetensors", "model-*.safetensors"]
"""Patterns of the files that are downloaded."""
RESAMPLING_NAMES = {2: "bilinear", 3: "bicubic"}  # numbers of Pillow, as in the configuration of image processors
RESCALE_FACTOR = 1 / 255
CODE_VERSION = 1  # incremented whenever the same weights would give another feature


@register_encoder("hf")
class TransformersEncoder(TorchEncoder):
    """A model of the library transformers from a repository of the hub (ORG/MODEL) or a folder; extra ``transformers``.

    Picture and text features are those of ``get_image_features`` and ``get_text_features``; of models without texts
    the pooled output. A feature does not depend on the batch that it was computed in, up to 1e-4 of its length.
    """

    def __init__(self, source: TransformersSource, device: str = "cpu") -> None:
        model = load_model(source)
        self.has_text, self.device, self.pixels = source.family.has_text, device, source.pixels
        if self.has_text:
            self._tokenizer, self._is_siglip = open_tokenizer(source, model), source.family.title == "SigLIP"
            self._context_length = int(model.config.text_config.max_position_embeddings)
        network = ImageNetwork(model, self.has_text).eval()
        size = source.pixels.size
        try:
            width = measure_width(network, size, source.uri)
        except (ValueError, RuntimeError) as error:  # the library refuses pictures of another size than the weights'
            raise EncoderUnavailableError(
                f"{source.uri} does not take the pictures of {size} pixels that it states: {error}"
            ) from error
        scale, bias = getattr(model, "logit_scale", None), getattr(model, "logit_bias", None)
        # Not the versions and paths that the library writes into a configuration.
        config = {k: value for k, value in source.config.items() if not k.startswith("_") and "version" not in k}
        tokens = self._tokenize(TOKENIZER_PROBES) if self.has_text else []
        facts = [CODE_VERSION, config, source.pixels.to_dict(), tokens]
        self.info = EncoderInfo(
            name=source.uri,
            dim=width,
            image_size=size,
            logit_scale=DEFAULT_LOGIT_SCALE if scale is None else float(scale.exp()),
            logit_bias=None if bias is None else float(bias),
            licence=source.licence,
            fingerprint=compute_fingerprint(facts, model.state_dict()),
            note=source.note,
        )
        self._model, self._network = model.to(device), network.to(device)

    @classmethod
    def open(cls, variant: str, device: str = "cpu") -> Encoder:
        return cls(find_source(variant), device)

    @classmethod
    def check(cls, variant: str) -> None:
        """As `Encoder.check`. A folder is read."""
        if as_folder(variant) is not None:
            find_source(variant)
        else:
            _hub_source(variant, [CONFIG_FILE]).check()

    def network(self) -> nn.Module:
        return self._network

    def layers(self) -> Mapping[str, int]:
        """``final``; ``inner-token`` and ``inner-mean`` of transformers; ``unprojected`` of CLIP."""
        return self._network.widths(self.info.dim)

    def second_size(self) -> int | None:
        """12/7 of the own size, as 384 is of 224, rounded to whole patches; None for convolutional networks."""
        patch = getattr(self._network.vision.config, "patch_size", None)
        return second_size_of(self.info.image_size, int(patch)) if patch and self._network.is_transformer else None

    def layer_network(self, layers: Sequence[str], size: int) -> nn.Module:
        """See `Encoder.layer_network`. Position embeddings are interpolated as the library does it."""
        patch = getattr(self._network.vision.config, "patch_size", None)
        if size != self.info.image_size and (not patch or size % int(patch)):
            raise InputError(f"the image tower of {self.info.name} takes multiples of {patch} pixels, but not {size}")
        return ImageNetwork(self._model, self.has_text, layers, size != self.info.image_size).eval()

    def projection(self) -> Projection | None:
        """The last step of CLIP's image tower; None for the others."""
        last: Any = self._network.projection
        return None if last is None else Projection(last.weight.detach().T.float().cpu())

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts to (k, d), by the model's own tokenizer."""
        if not self.has_text:
            return super().encode_text(texts)
        different, index = unique_texts(texts)
        return encode_by_length(self._tokenize(different), self._encode_tokens, batch_size)[index]

    @torch.inference_mode()
    def _encode_tokens(self, tokens: list[list[int]]) -> Tensor:
        """Raw features (k, d) of texts, padded to the longest."""
        # CLIP reads its feature at the first end token, and the padding behind it is masked.
        rows = [torch.tensor(each) for each in tokens]
        ids = pad_sequence(rows, batch_first=True, padding_value=self._tokenizer.pad_token_id).to(self.device)
        is_token = torch.arange(ids.shape[1]) < torch.tensor([len(each) for each in tokens])[:, None]
        mask = None if self._is_siglip else is_token.long().to(self.device)
        outputs: Any = self._model.get_text_features(input_ids=ids, attention_mask=mask)
        # Since version 5 the library returns the outputs of the tower, with the feature in the place of the pooled.
        return outputs if isinstance(outputs, Tensor) else outputs.pooler_output

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text with its special tokens, and with padding for SigLIP."""
        # CLIP: padding has no effect, so a batch is padded to its longest text. SigLIP and SigLIP 2: texts in lower
        # case and padded to the context length, as in training; padding is not masked.
        options: dict[str, Any] = {"truncation": True, "max_length": self._context_length}
        if self._is_siglip:
            texts, options["padding"] = [text.lower() for text in texts], "max_length"
        return self._tokenizer(list(texts), **options)["input_ids"]


@dataclass(frozen=True)
class Family:
    """Models of one kind."""

    title: str  # name in texts
    model_class: str  # class of transformers
    crops: bool  # whether its image processor crops the centre unless the configuration says otherwise
    resample: int  # number of the interpolation that it uses by default
    has_text: bool


FAMILIES: Mapping[str, Family] = {
    "clip": Family("CLIP", "CLIPModel", True, 3, True),
    "siglip": Family("SigLIP", "SiglipModel", False, 3, True),
    "dinov2": Family("DINOv2", "Dinov2Model", True, 3, False),
    "dinov2_with_registers": Family("DINOv2 with registers", "Dinov2WithRegistersModel", True, 3, False),
    "dinov3_vit": Family("DINOv3", "DINOv3ViTModel", False, 2, False),
    "dinov3_convnext": Family("DINOv3", "DINOv3ConvNextModel", False, 2, False),
}
"""By ``model_type`` of the configuration. SigLIP 2 at a fixed resolution has that of SigLIP."""


@dataclass(frozen=True)
class TransformersSource:
    """Where a model comes from, before it is loaded."""

    uri: str
    folder: Path  # has all files
    family: Family
    config: Mapping[str, Any]
    pixels: PixelSpec
    licence: str
    note: str = ""  # what a user should know


def find_source(variant: str) -> TransformersSource:
    """The source of ``ORG/MODEL``, ``ORG/MODEL@REVISION`` or a folder; files of the hub are downloaded if need be."""
    if folder := as_folder(variant):
        return _read_source(f"hf:{folder.resolve()}", folder.resolve(), "unknown")
    weights, config = (_hub_source(variant, names) for names in (WEIGHTS_FILES, [CONFIG_FILE]))
    cached = config.cached() and weights.cached()
    folder = cached.parent if cached else weights.folder(NEEDED_FILES)
    note, repo = "", weights.repo
    if weights.revision is None:
        note = f"commit {folder.name}; hf:{repo}@{folder.name} opens this one even after a change"
    return _read_source(f"hf:{variant}", folder, find_licence(repo), note)


def _hub_source(variant: str, names: Sequence[str]) -> HubSource:
    repo, _, revision = variant.partition("@")
    return HubSource(f"hf:{variant}", repo, names, revision or None)


def load_model(source: TransformersSource) -> Any:
    """The model in fp32 on the CPU, ready to use; weights that are missing or can't be loaded are refused."""
    transformers: Any = require("transformers", "transformers", f"The encoder {source.uri}")
    with loading(f"{source.uri} can't be loaded", advise(source.uri)), _without_bars(transformers.utils.logging):
        model, result = getattr(transformers, source.family.model_class).from_pretrained(
            str(source.folder), use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    if missing := sorted(map(str, [*result["missing_keys"], *result["mismatched_keys"]])):
        raise EncoderUnavailableError(
            f"{source.uri} can't be loaded: {len(missing)} of its weights are missing or have another shape, such as "
            f"{missing[0]}. {advise(source.uri)}."
        )
    return model.float().eval().requires_grad_(False)


@contextmanager
def _without_bars(logging: Any) -> Iterator[None]:
    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shows_bars:
            logging.enable_progress_bar()


def open_tokenizer(source: TransformersSource, model: Any) -> Any:
    """The tokenizer in the folder, which must belong to the model."""
    transformers: Any = require("transformers", "transformers", f"The encoder {source.uri}")
    if not any((source.folder / name).is_file() for name in TOKENIZER_FILES):
        # The library would make an empty one.
        raise EncoderUnavailableError(f"{source.uri} has no tokenizer: {', '.join(TOKENIZER_FILES)} are missing")
    with loading(f"the tokenizer of {source.uri} can't be opened", advise(source.uri)):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(source.folder), local_files_only=True, trust_remote_code=False
        )
    vocabulary = int(model.config.text_config.vocab_size)
    if len(tokenizer) > vocabulary:
        raise EncoderUnavailableError(
            f"the tokenizer of {source.uri} has {len(tokenizer)} tokens, but the model {vocabulary}: they do not "
            "belong together"
        )
    return tokenizer


def read_pixels(uri: str, processor: Mapping[str, Any], family: Family) -> PixelSpec:
    """How the image processor of this configuration prepares pictures; the family decides what is not stated."""
    processor = {key: value for key, value in processor.items() if value is not None}
    geometry = _read_geometry(processor, family)
    resample = RESAMPLING_NAMES.get(processor.get("resample", family.resample), "")
    is_scaled = all(processor.get(key, True) for key in ("do_resize", "do_rescale"))
    is_byte_range = abs(processor.get("rescale_factor", RESCALE_FACTOR) - RESCALE_FACTOR) < 1e-6
    problem = ""
    if geometry is None:
        problem = f"size {brief(processor.get('size'))}, crop_size {brief(processor.get('crop_size'))}"
    elif not is_scaled or not is_byte_range:
        problem = "pictures are not scaled, or not to values from 0 to 1"
    elif resample not in RESAMPLING_FILTERS:
        problem = f"interpolation {brief(processor.get('resample'))}"
    if geometry is None or problem:
        raise EncoderUnavailableError(f"{uri} prepares pictures in a way that is not supported: {problem}")
    size, scaled, mode = geometry
    is_plain = not processor.get("do_normalize", True)
    try:
        mean, std = ((0.0,) * 3, (1.0,) * 3) if is_plain else (processor["image_mean"], processor["image_std"])
        # `PixelSpec.scaled_size` must be `scaled`, in spite of rounding.
        crop = size / scaled if int(size / (size / scaled)) == scaled else size / (scaled + 0.5)
        return PixelSpec(size, tuple(mean), tuple(std), mode, resample, crop)
    except (InputError, KeyError, TypeError) as error:
        raise EncoderUnavailableError(f"{uri} states no usable preprocessing of pictures: {error}") from error


def _read_geometry(processor: Mapping[str, Any], family: Family) -> tuple[int, int, str] | None:
    """Side of the square, side before it is cropped, and way of resizing; None if they are not supported."""
    size = processor.get("size")
    sides = size if isinstance(size, Mapping) else {"shortest_edge": size}
    shortest, square = sides.get("shortest_edge"), _side_of_square(sides)
    if processor.get("do_center_crop", family.crops):
        crop = _side_of_square(processor.get("crop_size"))
        # A square that is cropped from a squashed picture is used by no model.
        return (crop, shortest, "shortest") if crop and isinstance(shortest, int) and shortest >= crop else None
    return (square, square, "squash") if square else None


def _side_of_square(sides: Any) -> int | None:
    """The side, from a number or from height and width; None if there is no square."""
    if isinstance(sides, Mapping):
        sides = sides.get("height") if sides.get("height") == sides.get("width") else None
    return sides if type(sides) is int and sides > 0 else None


def _read_source(uri: str, folder: Path, licence: str, note: str = "") -> TransformersSource:
    config = read_config(uri, folder / CONFIG_FILE)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        titles = ", ".join(dict.fromkeys(family.title for family in FAMILIES.values()))
        other = find_repository_name(uri.removeprefix("hf:").partition("@")[0])
        hint = f": say {other} for these weights" if other else ""
        raise EncoderUnavailableError(
            f"{uri} has a model of type {brief(kind)}; those that are supported are {titles}{hint}"
        )
    family = FAMILIES[kind]
    name = next((name for name in PROCESSOR_FILES if (folder / name).is_file()), PROCESSOR_FILES[0])
    processor = read_config(uri, folder / name)
    processor = processor.get("image_processor", processor)
    if not isinstance(processor, Mapping):
        raise EncoderUnavailableError(f"{folder / name} has no configuration of an image processor")
    if not any((folder / name).is_file() for name in WEIGHTS_FILES):
        raise EncoderUnavailableError(
            f"{uri} has no {WEIGHTS_FILES[0]}. Other formats can hold code and are not read: convert the weights with "
            "model.save_pretrained(FOLDER)"
        )
    return TransformersSource(uri, folder, family, config, read_pixels(uri, processor, family), licence, note)


class ImageNetwork(nn.Module):
    """The image tower of a model, with its inner layers.

    Inner layers of a transformer are tokens as in `clipadapter.encoders.open_clip_layers`. Those after the last layer
    follow; if there is a projection, its input does, in ``inner-token``. For pictures of another size than the model's,
    position embeddings are interpolated.
    """

    def __init__(self, model: Any, has_text: bool, layers: Sequence[str] = (FINAL,), is_resized: bool = False) -> None:
        super().__init__()
        self.vision = model.vision_model if has_text else model
        self.projection: nn.Module | None = getattr(model, "visual_projection", None)
        self.layers = tuple(layers)
        config = self.vision.config
        # The others interpolate whenever the size differs, or have no position embeddings.
        self.interpolates = is_resized and has_text
        names = ("post_layernorm", "layernorm", "norm")
        norm: Any = next((getattr(self.vision, name) for name in names if hasattr(self.vision, name)), None)
        self.is_transformer = hasattr(config, "num_hidden_layers") and isinstance(norm, nn.Module)
        self.indices: list[int] = []
        self.n_prefix = 0
        if self.is_transformer:
            self.norm = norm
            n_layers = int(config.num_hidden_layers)
            self.indices = [i for i in token_layers(n_layers) if i < n_layers - 1]
            self.has_class = self.projection is not None or not has_text
            self.n_prefix = int(self.has_class) + int(getattr(config, "num_register_tokens", 0) or 0)

    def widths(self, final: int) -> dict[str, int]:
        """Width of each layer, ``final`` first."""
        unprojected = {} if self.projection is None else {UNPROJECTED: int(self.vision.config.hidden_size)}
        if not self.is_transformer:
            return {FINAL: final, **unprojected}
        width, n_tokens = int(self.vision.config.hidden_size), len(self.indices)
        inner = {
            INNER_TOKEN: width * (n_tokens + 1) if self.has_class else 0,
            INNER_MEAN: width * (n_tokens + (self.projection is None)),
        }
        return {FINAL: final, **{layer: w for layer, w in inner.items() if w}, **unprojected}

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, s, s) to (n, sum of widths)."""
        options = {"interpolate_pos_encoding": True} if self.interpolates else {}
        if {INNER_TOKEN, INNER_MEAN} & set(self.layers):
            options["output_hidden_states"] = True
        outputs = self.vision(pixel_values=pixels, **options)
        pooled: Tensor = outputs.pooler_output
        features = {FINAL: [pooled if self.projection is None else self.projection(pooled)], UNPROJECTED: [pooled]}
        if "output_hidden_states" in options:
            tokens = [self.norm(outputs.hidden_states[i + 1]) for i in self.indices]
            tokens += [outputs.last_hidden_state] if self.projection is None else []
            features[INNER_MEAN] = [each[:, self.n_prefix :].mean(dim=1) for each in tokens]
            features[INNER_TOKEN] = [each[:, 0] for each in tokens] + ([] if self.projection is None else [pooled])
        parts = [part for layer in self.layers for part in features[layer]]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
