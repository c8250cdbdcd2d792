"""Models of the library transformers: CLIP, SigLIP and SigLIP 2; DINOv2 and DINOv3, which see pictures only.

Code: https://github.com/huggingface/transformers. `clipadapter.encoders.transformers_sources` finds the weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from clipadapter.backends import Tower
from clipadapter.encoders.base import Encoder, EncoderInfo, no_text_error
from clipadapter.encoders.catalogue import EncoderListing, listings_of
from clipadapter.encoders.inputs import check_pixels, hash_arrays, length_batches, to_tensor, unique_texts
from clipadapter.encoders.open_clip import TOKENIZER_PROBES
from clipadapter.encoders.registry import register_encoder
from clipadapter.encoders.timm import measure_width
from clipadapter.encoders.transformers_sources import (
    TransformersSource,
    check_available,
    find_source,
    load_model,
    open_tokenizer,
)
from clipadapter.errors import EncoderUnavailableError
from clipadapter.parallel import run_in_batches
from clipadapter.prediction import DEFAULT_LOGIT_SCALE

CODE_VERSION = 1
"""Incremented whenever the same weights would give another feature."""


@register_encoder("hf")
class TransformersEncoder(Encoder):
    """A model of the library transformers from a repository of the hub (ORG/MODEL) or a folder; extra ``transformers``.

    Picture and text features are those of ``get_image_features`` and ``get_text_features``; of models without texts
    the pooled output. A feature does not depend on the batch that it was computed in, up to 1e-4 of its length.

    Args:
        source: where the model comes from.
        device: a torch device.

    Raises:
        EncoderUnavailableError: if weights or tokenizer can't be loaded.
        MissingExtraError: if transformers is not installed.
    """

    def __init__(self, source: TransformersSource, device: str = "cpu") -> None:
        model = load_model(source)
        self.has_text, self.device, self._pixels = source.family.has_text, device, source.pixels
        self._text = TextNetwork(source, model, device) if self.has_text else None
        network = ImageNetwork(model, self.has_text).eval()
        size = source.pixels.size
        try:
            width = measure_width(network, size, source.uri)
        except (ValueError, RuntimeError) as error:  # the library refuses pictures of another size than the weights'
            raise EncoderUnavailableError(
                f"{source.uri} does not take the pictures of {size} pixels that it states: {error}"
            ) from error
        scale, bias = getattr(model, "logit_scale", None), getattr(model, "logit_bias", None)
        self.info = EncoderInfo(
            name=source.uri,
            dim=width,
            image_size=size,
            logit_scale=DEFAULT_LOGIT_SCALE if scale is None else float(scale.exp()),
            logit_bias=None if bias is None else float(bias),
            licence=source.licence,
            fingerprint=_fingerprint(source, model, self._text),
            note=source.note,
        )
        self._network: nn.Module = network.to(device)

    @classmethod
    def open(cls, variant: str, device: str = "cpu") -> TransformersEncoder:
        """Open what `clipadapter.encoders.transformers_sources.find_source` finds.

        Raises:
            InputError: if the variant names neither a repository nor a folder.
            EncoderUnavailableError: if the files can't be had, or are those of no model that is supported.
        """
        return cls(find_source(variant), device)

    @classmethod
    def check(cls, variant: str) -> None:
        """As `Encoder.check`."""
        check_available(variant)

    @classmethod
    def listing(cls) -> list[EncoderListing]:
        """What the catalogue says."""
        return listings_of("hf")

    def preprocess(self, image: Image.Image) -> Tensor:
        """Scale, crop and normalize as the model's image processor states it."""
        return to_tensor(self._pixels.to_square(image), self._pixels.mean, self._pixels.std)

    def tower(self) -> Tower:
        """The image tower with its projection."""
        return Tower(self.info.name, self.info.fingerprint, self.info.dim, self._pixels, self._network)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(n, 3, s, s) to (n, d)."""
        check_pixels(pixels, self.info.image_size)
        if not len(pixels):
            return torch.empty(0, self.info.dim)
        with torch.inference_mode():
            return run_in_batches(self._network, self._network, pixels.to(self.device)).float().cpu()

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts to (k, d), by the model's own tokenizer.

        Raises:
            InputError: if there are no texts, or the model has no text tower.
        """
        if self._text is None:
            raise no_text_error(self.info.name)
        different, index = unique_texts(texts)
        with torch.inference_mode():
            return self._text(different, batch_size)[index]


class ImageNetwork(nn.Module):
    """The image tower of a model.

    Args:
        model: of transformers, in inference mode.
        has_text: whether it has a text tower; its picture features are then projected.
    """

    def __init__(self, model: Any, has_text: bool) -> None:
        super().__init__()
        self.vision = model.vision_model if has_text else model
        self.projection: nn.Module | None = getattr(model, "visual_projection", None)

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, s, s) to (n, d)."""
        pooled: Tensor = self.vision(pixel_values=pixels).pooler_output
        return pooled if self.projection is None else self.projection(pooled)


class TextNetwork:
    """Texts to features, by the rules of the model's family.

    CLIP: padding has no effect, so a batch is padded to its longest text. SigLIP and SigLIP 2: texts in lower case and
    padded to the context length, as in training; padding is not masked.

    Args:
        source: where the model comes from.
        model: of transformers, in inference mode.
        device: its device.
    """

    def __init__(self, source: TransformersSource, model: Any, device: str) -> None:
        self._model, self._device = model, device
        self._tokenizer = open_tokenizer(source)
        self._is_siglip = source.family.title == "SigLIP"
        self._context_length = int(model.config.text_config.max_position_embeddings)
        vocabulary = int(model.config.text_config.vocab_size)
        if len(self._tokenizer) > vocabulary:
            raise EncoderUnavailableError(
                f"the tokenizer of {source.uri} has {len(self._tokenizer)} tokens, but the model {vocabulary}: they do "
                "not belong together"
            )

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text with its special tokens, and with padding for SigLIP."""
        options: dict[str, Any] = {"truncation": True, "max_length": self._context_length}
        if self._is_siglip:
            texts, options["padding"] = [text.lower() for text in texts], "max_length"
        ids: list[list[int]] = self._tokenizer(list(texts), **options)["input_ids"]
        return ids

    def __call__(self, texts: Sequence[str], batch_size: int) -> Tensor:
        """Raw features (k, d) float32 on the CPU."""
        tokens = self.tokenize(texts)
        order: list[int] = []
        rows = []
        for batch in length_batches([len(ids) for ids in tokens], batch_size):
            longest = max(len(tokens[i]) for i in batch)
            # CLIP reads its feature at the first end token, and the padding behind it is masked.
            padding = self._tokenizer.pad_token_id
            ids = torch.tensor([tokens[i] + [padding] * (longest - len(tokens[i])) for i in batch]).to(self._device)
            lengths = torch.tensor([len(tokens[i]) for i in batch])
            mask = None if self._is_siglip else (torch.arange(longest) < lengths[:, None]).long().to(self._device)
            features = self._model.get_text_features(input_ids=ids, attention_mask=mask)
            # Since version 5 the library returns the outputs of the tower, with the feature in the place of the pooled.
            rows.append((features if isinstance(features, Tensor) else features.pooler_output).float().cpu())
            order += batch
        return torch.cat(rows)[torch.tensor(order).argsort()]


def _fingerprint(source: TransformersSource, model: nn.Module, text: TextNetwork | None) -> str:
    """Hex digest of weights, architecture, preprocessing, and the tokens of probe texts."""
    # Not the versions and paths that the library writes into a configuration.
    config = {key: value for key, value in source.config.items() if not key.startswith("_") and "version" not in key}
    tokens = [] if text is None else text.tokenize(TOKENIZER_PROBES)
    facts = json.dumps([CODE_VERSION, config, source.pixels.to_dict(), tokens], sort_keys=True)
    return hash_arrays(model.state_dict(), hashlib.sha256(facts.encode()))
