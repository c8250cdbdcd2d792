"""Encoders around an encoder: another backend or precision of its image tower, and several blocks of features.

Blocks are inner layers, a second resolution, mirrored pictures, and other encoders. Those of one encoder at one size
come from one pass through its image tower. `open_blocks` groups blocks into passes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from clipadapter.encoders.base import Encoder, TorchEncoder, digest_of
from clipadapter.encoders.registry import check_uri, encoder_info, schemes_with, split_blocks
from clipadapter.errors import InputError, brief
from clipadapter.runtime.engines import PRECISIONS, Int8Calibration, Runner, Tower, calibration_digest, create_backend
from clipadapter.utils.blocks import FINAL, UNPROJECTED, Block, BlockSource
from clipadapter.utils.devices import check_device
from clipadapter.utils.pixels import MIN_JPEG_SIDE_RATIO
from clipadapter.utils.towers import Projection, TextTower

LAYER_VERSION = 2  # incremented whenever the same layer of the same picture would get another feature


class EncoderWrapper(Encoder):
    """An encoder that changes how pictures are encoded by another one; texts are encoded by that one itself."""

    def __init__(self, plain: Encoder) -> None:
        self.plain, self.device, self.has_text = plain, plain.device, plain.has_text

    def text_tower(self) -> TextTower | None:
        return self.plain.text_tower()

    def projection(self) -> Projection | None:
        return self.plain.projection()

    def tunable_copy(self) -> Encoder | None:
        """Of the encoder itself, in full precision."""
        return self.plain.tunable_copy()

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        return self.plain.encode_text(texts, batch_size)


class BackendEncoder(EncoderWrapper):
    """See `with_backend`; ``calibration`` is the digest of the pictures that int8 was calibrated with."""

    def __init__(
        self, plain: Encoder, tower: Tower, run: Runner, backend: str, precision: str, calibration: str = ""
    ) -> None:
        super().__init__(plain)
        self.pixels, self._run = tower.pixels, run
        self.info = replace(
            plain.info,
            fingerprint=precision_fingerprint(plain.info.fingerprint, backend, precision, calibration),
            backend=backend,
            precision=precision,
            int8_calibration_digest=calibration,
        )

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """(s, s, 3)."""
        return (self.pixels.size, self.pixels.size, 3)

    def preprocess(self, image: Image.Image) -> Tensor:
        """The square that the tower sees, as (s, s, 3) uint8: the backend normalizes it."""
        return torch.from_numpy(np.array(self.pixels.to_square(image)))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(n, s, s, 3) uint8 to (n, d)."""
        if tuple(pixels.shape[1:]) != self.pixel_shape or pixels.dtype != torch.uint8:
            raise InputError(
                f"this encoder takes pixels (n, {', '.join(map(str, self.pixel_shape))}) of uint8, but got "
                f"{tuple(pixels.shape)} of {pixels.dtype}"
            )
        if not len(pixels):
            return torch.empty(0, self.info.dim)
        return torch.from_numpy(self._run(pixels.numpy()))

    def tower(self) -> Tower | None:
        return self.plain.tower()

    def towers(self) -> tuple[Tower, ...]:
        return self.plain.towers()

    def layers(self) -> Mapping[str, int]:
        return self.plain.layers()

    def block_fingerprints(self) -> tuple[str, ...]:
        """Those of the encoder itself in this precision."""
        # int8 rounds each layer by ranges that may depend on which other layers are read.
        info, plain = self.info, self.plain.block_fingerprints()
        if len(plain) == 1:
            return (info.fingerprint,)
        facts = info.precision, info.int8_calibration_digest
        together = f" of {self.plain.info.fingerprint}" if info.precision == "int8" else ""
        return tuple(precision_fingerprint(each + together, info.backend, *facts) for each in plain)

    def patch_features(self, image: Image.Image) -> Tensor | None:
        """Of the encoder itself, in full precision."""
        return self.plain.patch_features(image)


def calibrations_of_passes(encoder: Encoder, calibration: Int8Calibration | None) -> dict[int, Int8Calibration]:
    """The calibration of each pass of an encoder by its number; none for passes that only the encoder itself runs."""
    numbers = [i for i, each in enumerate(encoder.passes()) if each.tower() is not None]
    if calibration is None:
        return {}
    if not isinstance(calibration, str):  # squares have one size, and passes may see several
        raise InputError("an encoder of several passes is calibrated for int8 by `choose_backend`: call that")
    return {i: calibration[16 * n : 16 * (n + 1)] for n, i in enumerate(numbers)}


def precision_fingerprint(fingerprint: str, backend: str, precision: str, calibration: str = "") -> str:
    """Fingerprint of an encoder in another precision.

    All backends give the same features in full precision, and nearly the same in bf16, so they share a fingerprint.
    Features in int8 depend on the backend and on the pictures it was calibrated with.
    """
    if precision == "fp32":
        return fingerprint
    # How far JPEGs are shrunk while they are decoded is part of it: see `clipadapter.utils.pixels.min_jpeg_side`.
    facts = f"{fingerprint} {precision} room {MIN_JPEG_SIDE_RATIO}"
    if precision == "int8":
        facts += f" {backend} {calibration}"
    return hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()


def with_backend(
    encoder: Encoder, backend: str = "torch", precision: str = "fp32", calibration: Int8Calibration | None = None
) -> Encoder:
    """The same encoder, with an image tower that runs in another backend or precision.

    Args:
        encoder: any; if it can't be converted, torch and fp32 return it unchanged.
        backend: see ``clipadapter.runtime.engines.list_backends()``.
        precision: "fp32" gives the same features up to rounding; "bf16" and "int8" give similar ones with another
            fingerprint.
        calibration: squares (m, s, s, 3) that set the ranges of int8; or the digest of those that it was converted with
            before, which an encoder of several passes needs: `choose_backend` converts each.

    Raises:
        UnknownNameError: if no backend has the name.
        InputError: if the encoder can't be converted, or the backend has no such precision or device.
        MissingExtraError: if the backend is not installed.

    >>> from clipadapter.encoders import create_encoder
    >>> with_backend(create_encoder("toy")).info.backend
    'torch'
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, but is {brief(precision)}")
    if isinstance(encoder, BlockEncoder):
        calibrations = calibrations_of_passes(encoder, calibration)
        # A pass that only the encoder itself can run stays as it is.
        return encoder.run_on(
            [
                each if each.tower() is None else with_backend(each, backend, precision, calibrations.get(i))
                for i, each in enumerate(encoder.passes())
            ]
        )
    plain = encoder.plain if isinstance(encoder, BackendEncoder) else encoder
    runtime = create_backend(backend, device=plain.device)
    tower = plain.tower()
    if tower is None:
        if (backend, precision) == ("torch", "fp32"):
            return plain
        raise InputError(f"the image tower of {plain.info.name} can't be converted: use backend 'torch' and fp32")
    run = runtime.prepare(tower, precision, calibration)
    digest = calibration_digest(calibration) if precision == "int8" else ""
    return BackendEncoder(plain, tower, run, backend, precision, digest)


class LayerEncoder(EncoderWrapper, TorchEncoder):
    """One pass through an encoder's image tower, with other outputs than its final feature, or at another size.

    If it is mirrored, it gives the mean of the features of a picture and of its mirror image.

    Raises:
        InputError: if the tower has no such layer, or can't be run at this size.
    """

    def __init__(
        self, plain: Encoder, layers: Sequence[str], size: int | None = None, is_mirrored: bool = False
    ) -> None:
        towers, known = plain.towers(), plain.layers()
        missing = [layer for layer in layers if layer not in known]
        if missing or len(towers) != 1:
            raise InputError(
                f"the image tower of {plain.info.name} has no layer {missing[0] if missing else layers[0]!r} that "
                f"features can be taken from; it has {', '.join(known)}"
            )
        super().__init__(plain)
        self.layer_names = tuple(layer for layer in known if layer in layers)
        info = plain.info
        self.size, self.is_mirrored = size, is_mirrored  # None is the encoder's own size
        sources = [BlockSource("", layer, size, is_mirrored) for layer in self.layer_names]
        self.info = replace(
            info,
            name=f"{info.name}[{','.join(source.name for source in sources)}]",
            dim=sum(known[layer] for layer in self.layer_names),
            image_size=size or info.image_size,
            blocks=tuple(Block(source.name, known[source.layer]) for source in sources),
            fingerprint=digest_of(
                "layers", LAYER_VERSION, info.fingerprint, self.layer_names, size or info.image_size, is_mirrored
            ),
        )
        self.pixels = replace(towers[0].pixels, size=self.info.image_size)
        self._tower = Tower(self.info.name, self.info.fingerprint, self.info.dim, self.pixels, self._build_network)

    def block_fingerprints(self) -> tuple[str, ...]:
        """That of the encoder for its final feature at its own size; others name the layer, the size and the view."""
        info, size = self.plain.info, self.info.image_size
        is_plain = size == info.image_size and not self.is_mirrored
        return tuple(
            info.fingerprint
            if is_plain and layer == FINAL
            else digest_of("layer", LAYER_VERSION, info.fingerprint, layer, size, self.is_mirrored)
            for layer in self.layer_names
        )

    def network(self) -> nn.Module:
        return self._tower.module

    def tower(self) -> Tower | None:
        """The image tower with these outputs; None if backends don't run that of the encoder."""
        return None if self.plain.tower() is None else self._tower

    def towers(self) -> tuple[Tower, ...]:
        return (self._tower,)

    def _build_network(self) -> nn.Module:
        network = self.plain.layer_network(self.layer_names, self.info.image_size)
        return MirroredMean(network) if self.is_mirrored else network


class MirroredMean(nn.Module):
    """The mean of a network's outputs for a picture and for its mirror image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, s, s) to (n, d)."""
        return (self.network(pixels) + self.network(pixels.flip(3))) / 2


class BlockEncoder(EncoderWrapper):
    """Several passes side by side, with or without a backend; text features of the first of the encoders themselves.

    The first pass has the block ``final``; the names are those of the blocks of all passes.
    """

    def __init__(self, passes: Sequence[Encoder], names: Sequence[str]) -> None:
        self.bases = tuple(dict.fromkeys(map(plain_encoder, passes)))
        super().__init__(self.bases[0])
        self._passes, self.names = tuple(passes), tuple(names)
        infos = [each.info for each in passes]
        first = infos[0]
        digest = "".join(info.int8_calibration_digest for info in infos)
        widths = [block.width for info in infos for block in info.blocks]
        licences = list(dict.fromkeys(base.info.licence for base in self.bases))
        fingerprint = digest_of("blocks 1", *(encoder_without_blocks(each).info.fingerprint for each in passes))
        self.info = replace(
            first,
            name=f"{self.plain.info.name}[{','.join(names)}]",
            dim=sum(widths),
            image_size=max(info.image_size for info in infos),
            licence=", ".join(licences),
            fingerprint=precision_fingerprint(fingerprint, first.backend, first.precision, digest),
            note="; ".join(dict.fromkeys(info.note for info in infos if info.note)),
            blocks=tuple(Block(name, width) for name, width in zip(names, widths, strict=True)),
            int8_calibration_digest=digest,
        )

    def passes(self) -> tuple[Encoder, ...]:
        return self._passes

    def towers(self) -> tuple[Tower, ...]:
        """Those of all passes; empty if one can't be run otherwise than by its encoder."""
        by_pass = [each.towers() for each in self._passes]
        return tuple(tower for towers in by_pass for tower in towers) if all(by_pass) else ()

    def block_fingerprints(self) -> tuple[str, ...]:
        return tuple(fingerprint for each in self._passes for fingerprint in each.block_fingerprints())

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """(l,): the flattened pixels of all passes, one after the other."""
        return (sum(self._pixel_counts()),)

    def preprocess(self, image: Image.Image) -> Tensor:
        """The flattened input of all passes, (l,) float32."""
        return torch.cat([each.preprocess(image).flatten().float() for each in self._passes])

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(n, l) to (n, d)."""
        if pixels.ndim != 2 or tuple(pixels.shape[1:]) != self.pixel_shape:
            raise InputError(f"this encoder takes pixels (n, {self.pixel_shape[0]}), but got {tuple(pixels.shape)}")
        features = []
        for each, part in zip(self._passes, pixels.split(self._pixel_counts(), dim=1), strict=True):
            dtype = torch.uint8 if isinstance(each, BackendEncoder) else torch.float32
            features.append(each.encode_pixels(part.unflatten(1, each.pixel_shape).to(dtype)))
        return torch.cat(features, dim=1)

    def run_on(self, passes: Sequence[Encoder]) -> BlockEncoder:
        """The same encoder with its passes in other backends or precisions."""
        return BlockEncoder(passes, self.names)

    def _pixel_counts(self) -> list[int]:
        return [math.prod(each.pixel_shape) for each in self._passes]


def create_encoder(uri: str, device: str = "cpu") -> Encoder:
    """Open an encoder by its URI, ``SCHEME`` or ``SCHEME:VARIANT``.

    Args:
        uri: such as ``lite``, ``open_clip:ViT-B-32/laion2b_s34b_b79k`` or ``open_clip:local-dir:PATH``; with several
            blocks of features such as ``lite[final,stage3]`` (`clipadapter.utils.blocks`).
        device: of the towers; see `devices.check_device`.

    Raises:
        InputError: if torch can't use the device on this machine.
        UnknownNameError: if no encoder has the scheme.
        EncoderUnavailableError: if the weights can't be loaded.
        MissingExtraError: if an optional package is missing.

    >>> create_encoder("toy").info.dim
    32
    """
    check_uri(uri)
    base, names = split_blocks(uri)
    scheme, _, variant = base.partition(":")
    encoder = encoder_info(scheme).cls.open(variant, device=check_device(device))
    return open_blocks(encoder, names) if names else encoder


def open_blocks(
    encoder: Encoder, names: Iterable[str], others: Sequence[Encoder] = (), moved: Mapping[str, Encoder] | None = None
) -> Encoder:
    """An encoder that gives some blocks of features.

    Args:
        encoder: gives class text and the blocks without the name of an encoder. Its own blocks are replaced. If a
            backend runs it, the backend runs all passes in the same precision, except int8: that would need the
            pictures it was calibrated with, so torch runs them in fp32.
        names: names of the blocks (`clipadapter.utils.blocks`); ``final`` is always one of them. They are put in the
            order of passes and layers.
        others: open encoders that the names may name; those that are missing are opened.
        moved: open encoders by the URI that the names have for them, if this is no longer where they are.

    Returns:
        The encoder itself if ``final`` is the only block.

    Raises:
        InputError: if an encoder has no such block.

    >>> encoder = open_blocks(create_encoder("toy"), ["final", "toy/final"])
    >>> encoder.info.name, encoder.info.dim
    ('toy[final,toy/final]', 64)
    """
    first = plain_encoder(encoder)
    by_pass: dict[tuple[str, int | None, bool], list[str]] = {}
    for source in map(BlockSource.parse, dict.fromkeys([FINAL, *names])):
        by_pass.setdefault(source.pass_key, []).append(source.layer)
    bases: dict[str, Encoder] = {"": first}
    bases_of_now = encoder.bases if isinstance(encoder, BlockEncoder) else ()
    opened = {other.info.name: other for other in map(plain_encoder, (*bases_of_now, *others))}
    opened |= {uri: plain_encoder(other) for uri, other in (moved or {}).items()}
    passes: list[Encoder] = []
    ordered: list[str] = []
    for (uri, size, is_mirrored), layers in by_pass.items():
        if uri not in bases:
            bases[uri] = opened.get(uri) or create_encoder(uri, first.device)
        passes.append(_open_pass(bases[uri], layers, size, is_mirrored))
        own = getattr(passes[-1], "layer_names", (FINAL,))
        ordered += [BlockSource(uri, layer, size, is_mirrored).name for layer in own]
    plain = passes[0] if len(passes) == 1 else BlockEncoder(passes, ordered)
    backend, precision = encoder.info.backend, encoder.info.precision
    if plain is first and plain_encoder(encoder) is encoder_without_blocks(encoder):
        return encoder
    if (backend, precision) == ("torch", "fp32") or precision == "int8":
        return plain
    return with_backend(plain, backend, precision)


def _open_pass(base: Encoder, layers: Sequence[str], size: int | None, is_mirrored: bool) -> Encoder:
    """One pass of an encoder; the encoder itself if only its final feature is wanted."""
    own_size = base.info.image_size
    is_plain = (list(layers), size or own_size, is_mirrored) == ([FINAL], own_size, False)
    return base if is_plain else LayerEncoder(base, layers, size, is_mirrored)


def select_encoder_blocks(encoder: Encoder, names: Iterable[str]) -> Encoder:
    """The encoder with some of its blocks, which needs no more passes than these; backend and precision stay.

    A pass in int8 keeps all its blocks: without some of them it would have to be calibrated again, with pictures that
    may not be there.

    Raises:
        InputError: if it has no such block.

    >>> select_encoder_blocks(create_encoder("toy[final,inner,final@48]"), ["final", "final@48"]).info.name
    'toy[final,final@48]'
    """
    wanted, known = set(names), [block.name for block in encoder.info.blocks]
    missing = sorted(wanted - set(known))
    if missing or FINAL not in wanted:
        raise InputError(f"{encoder.info.name} has no block {brief([*missing, FINAL][0])}; it has {', '.join(known)}")
    if wanted == set(known):
        return encoder
    passes: list[Encoder] = []
    selected: list[str] = []
    rest = iter(known)
    for each in encoder.passes():
        own = [next(rest) for _ in each.info.blocks]
        kept = own if each.info.precision == "int8" and wanted & set(own) else [name for name in own if name in wanted]
        if kept and kept != own:
            plain = encoder_without_blocks(each)
            assert isinstance(plain, LayerEncoder)  # of several blocks
            layers = [BlockSource.parse(name).layer for name in kept]
            cut = _open_pass(plain.plain, layers, plain.size, plain.is_mirrored)
            each = with_backend(cut, each.info.backend, each.info.precision) if plain is not each else cut
        if kept:
            passes.append(each)
            selected += kept
    return passes[0] if len(passes) == 1 else BlockEncoder(passes, selected)


def encoder_without_blocks(encoder: Encoder) -> Encoder:
    """The encoder that a backend runs, or the encoder itself."""
    return encoder.plain if isinstance(encoder, BackendEncoder) else encoder


def plain_encoder(encoder: Encoder) -> Encoder:
    """The encoder itself, without other blocks than ``final`` and without a backend.

    >>> plain_encoder(open_blocks(create_encoder("toy"), ["final", "toy/final"])).info.name
    'toy'
    """
    while isinstance(encoder, EncoderWrapper):
        encoder = encoder.plain
    return encoder


def describe_passes(encoder: Encoder) -> str:
    """What a prediction costs: the passes through image towers, and how many pixels they take beside the first alone.

    >>> describe_passes(create_encoder("toy")), describe_passes(create_encoder("toy[final,toy/final]"))
    ('1 pass at 32 px', '2 passes at 32 and 32 px, 2.0 times the pixels of the final feature')
    """
    passes = [encoder_without_blocks(each) for each in encoder.passes()]
    sizes = [each.info.image_size for each in passes]
    times = [2 if isinstance(each, LayerEncoder) and each.is_mirrored else 1 for each in passes]
    if len(passes) == 1:
        return f"1 pass at {sizes[0]} px"
    *names, last = (f"{size}{' (mirrored too)' if n > 1 else ''}" for size, n in zip(sizes, times, strict=True))
    ratio = sum(n * size**2 for size, n in zip(sizes, times, strict=True)) / sizes[0] ** 2
    return (
        f"{len(passes)} passes at {', '.join(names)} and {last} px, {ratio:.1f} times the pixels of the final feature"
    )


def unprojected_blocks(encoder: Encoder) -> tuple[str, ...]:
    """The blocks that heads read which train the projection: ``final`` alone if the projection is the identity.

    Raises:
        InputError: if the image tower ends in no projection, as that of SigLIP.
    """
    plain = plain_encoder(encoder)
    if UNPROJECTED in plain.layers():
        return FINAL, UNPROJECTED
    projection = plain.projection()
    if projection and projection.bias is None and torch.equal(projection.weight, torch.eye(len(projection.weight))):
        return (FINAL,)
    raise InputError(
        f"the image tower of {plain.info.name} ends in no linear projection that can be taken apart; those of "
        f"{schemes_with('projection')} do, but for SigLIP and a few other models of open_clip. Use the head "
        "'rla', which needs none"
    )
