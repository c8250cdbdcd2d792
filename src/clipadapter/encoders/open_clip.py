"""Models of open_clip, with its own loader, preprocessing and tokenizers: CLIP, SigLIP and their kin.

Code: https://github.com/mlfoundations/open_clip. Differs from it: nothing is guessed. A folder must say its
mean and deviation, weights trained with QuickGELU must meet a model that has it, a tokenizer must fit the
vocabulary; open_clip only warns, or says nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clipadapter.backends import Tower
from clipadapter.encoders import _open_clip_load as load
from clipadapter.encoders._base import Encoder, EncoderInfo, EncoderListing
from clipadapter.encoders._inputs import check_pixels, unique_texts
from clipadapter.encoders._open_clip_prompts import open_text_tower
from clipadapter.encoders._open_clip_text import PlainTextTower
from clipadapter.encoders._patches import find_patches
from clipadapter.encoders._projection import find_projection
from clipadapter.encoders._registry import register_encoder
from clipadapter.encoders._tuned import share
from clipadapter.errors import InputError
from clipadapter.parallel import run_in_batches
from clipadapter.pixels import LONG_RATIO, PixelSpec, as_rgb, centre_square
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

    def __init__(self, source: load.Source, device: str = "cpu") -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        model, self._tokenizer = load.build(source)
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
            fingerprint=load.fingerprint(model, self._tokenizer, source.config, facts),
        )
        self.device = device
        self._pixels: PixelSpec | None = None
        if config.resize_mode != "longest":
            resample = "bilinear" if bilinear else "bicubic"
            self._pixels = PixelSpec(int(size), tuple(config.mean), tuple(config.std), config.resize_mode, resample)
        self._model: Any = model.to(device)

    @classmethod
    def open(cls, rest: str, device: str = "cpu") -> OpenClipEncoder:
        """Open ``MODEL/TAG`` or ``local-dir:PATH``.

        Raises:
            InputError: if it is neither.
            UnknownNameError: if open_clip has no such model, or the model no such weights.
            EncoderUnavailableError: if the weights can't be had.
        """
        if rest.startswith("local-dir:"):
            return cls(load.find_folder(rest.removeprefix("local-dir:")), device)
        model, _, tag = rest.rpartition("/")
        if not model or not tag:
            raise InputError(
                f"'open_clip:{rest}' names no weights: say open_clip:MODEL/TAG, such as "
                "open_clip:ViT-B-32/laion2b_s34b_b79k, or open_clip:local-dir:PATH"
            )
        return cls(load.find_tag(model, tag), device)

    @classmethod
    def listing(cls) -> list[EncoderListing]:
        """All pretrained models of open_clip."""
        return [
            EncoderListing(f"open_clip:{model}/{tag}", dim, licence) for model, tag, dim, licence in load.list_tags()
        ]

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

    def twin(self) -> OpenClipEncoder:
        """A second encoder on the same weights."""
        other = copy.copy(self)
        other.__dict__.pop("_text_tower", None)  # made anew, from the second one's modules
        other._model = share(self._model)
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
        if self._resize_mode == "shortest" and long > LONG_RATIO * short:
            return centre_square(image, size, self._resample)
        if self._resize_mode == "longest" and long > size * short:
            # Else its short side would be scaled to less than one pixel.
            keep = [min(side, size * short) for side in image.size]
            left, top = ((side - kept) // 2 for side, kept in zip(image.size, keep, strict=True))
            return image.crop((left, top, left + keep[0], top + keep[1]))
        return image
