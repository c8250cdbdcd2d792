"""`Model`: a fitted model without its encoder, converted to the files of its folder and back."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from clipadapter.encoders import EncoderInfo
from clipadapter.errors import ArtifactError, ClipAdapterError, InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, TextFeatures, create_head, list_heads
from clipadapter.heads.registry import head_name
from clipadapter.heads.support import label_positions
from clipadapter.persistence.format import (
    ModelConfig,
    SavedEncoder,
    SavedHead,
    Snapshot,
    config_bytes,
    read_consistently,
    read_evaluation,
    read_snapshot,
)
from clipadapter.runtime.model_folder import FOLD_HEADS, HEAD, SUPPORT, UNCERTAINTY, UNLABELLED
from clipadapter.uncertainty import Uncertainty
from clipadapter.utils.blocks import as_blocks
from clipadapter.utils.formatting import format_list

TEXT_KEY = "class_text"  # name of the text features in the file of the head
UNLABELLED_KEY = "unlabelled"
"""Name of the pictures without labels in their file; see `Head.kept_pictures_`. They have a file of their own, so that
the versions of a model share it while the shots change."""
COPIED_PROVENANCE = ("fit", "crop", "quality")
"""Provenance that is saved unchanged: settings of the fit, crop scale of the views, quality and why it was chosen."""
RECORDED_PACKAGES = ("clipadapter", "torch", "open_clip_torch", "scikit-learn", "numpy")


@dataclass(frozen=True)
class Model:
    """A fitted model without its encoder."""

    head: Head  # fitted head
    text: TextFeatures  # text features of the classes, in the order of the logits
    support: FeatureSet  # features and labels of the shots; empty if they were not saved
    prompts: Mapping[str, Sequence[str]]  # prompts by class
    encoder: EncoderInfo  # facts of the encoder that made the features
    uncertainty: Uncertainty = field(default_factory=Uncertainty)  # learned from held-out shots
    fold_heads: tuple[Head, ...] = ()  # heads that were each fitted without one fold, for CV+ prediction sets


def load_model(folder: str | Path) -> Model:
    """Load and check the model in a folder."""
    return read_consistently(folder, lambda path: from_snapshot(read_snapshot(path)))


def to_snapshot(model: Model, keep_support: bool = True) -> Snapshot:
    """Convert a model to its config and its files of arrays."""
    info, names, support, name = model.encoder, model.text.labels, model.support, head_name(type(model.head))
    if name is None:
        raise InputError(f"{type(model.head).__name__} is no registered head, so it can't be saved: use @register_head")
    files: dict[str, dict[str, NDArray[Any]]] = {HEAD: {**model.head.state(), TEXT_KEY: model.text.embeddings}}
    if keep_support and len(support):
        y = label_positions(np.asarray(support.y), np.asarray(names))
        X = support.plain if support.X.ndim == 3 and support.X.shape[1] == 1 else support.X
        files[SUPPORT] = {"X": X, **({"y": y} if support.targets is None else {"targets": support.targets})}
        if model.head.kept_pictures_ is not None:
            files[UNLABELLED] = {UNLABELLED_KEY: _halve_exactly(model.head.kept_pictures_)}
    uncertainty_facts, files[UNCERTAINTY] = model.uncertainty.state()
    files[FOLD_HEADS] = {
        f"{i}.{key}": value for i, head in enumerate(model.fold_heads) for key, value in head.state().items()
    }
    blobs = {
        name: save_tensors({key: np.asarray(value, order="C") for key, value in arrays.items()})
        for name, arrays in files.items()
        if arrays
    }
    hashes = {name: hashlib.sha256(blob).hexdigest() for name, blob in blobs.items()}
    evaluation, provenance = read_evaluation(support.provenance, hashes), make_provenance(support)
    config = ModelConfig(
        class_names=list(names),
        head=SavedHead(name=name, params=model.head.get_params(deep=False)),
        encoder=SavedEncoder.model_validate(info, from_attributes=True),
        prompts={name: list(texts) for name, texts in model.prompts.items()},
        uncertainty=uncertainty_facts,
        sources=list(support.provenance.get("sources", ())) if SUPPORT in files else [],
        provenance=provenance if evaluation is None else evaluation.recorded_in(provenance),
        files=hashes,
    )
    return Snapshot(config, config_bytes(config), blobs=blobs)


def _halve_exactly(array: NDArray[Any]) -> NDArray[Any]:
    """The array in 16 bits if they hold its values, else as it is."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if (half == array).all() else array


def from_snapshot(snapshot: Snapshot) -> Model:
    """Convert a config and its arrays to a model."""
    config, read, path = snapshot.config, snapshot.arrays, snapshot.folder
    arrays, encoder, names = read(HEAD), config.encoder, tuple(config.class_names)
    if config.head.name not in list_heads():
        known = ", ".join(list_heads())
        raise ArtifactError(f"the model's head '{config.head.name}' is not installed; known: {known}")
    try:
        blocks = as_blocks(encoder.blocks)
        scale, bias = encoder.logit_scale, encoder.logit_bias
        text = TextFeatures.of_stored_rows(names, arrays.pop(TEXT_KEY), scale, bias, order="given")
        head = _load_head(config, arrays)
        if text.absent and head.needs_text:
            raise InputError(f"there is no class text of {format_list(text.absent)}")
        X, y, targets = np.empty((0, encoder.dim), np.float32), (), None
        if SUPPORT in config.files:
            shots = read(SUPPORT)
            X, y, targets = shots["X"], tuple(names[i] for i in shots.get("y", ())), shots.get("targets")
        if UNLABELLED in config.files:
            head.kept_pictures_ = _check_pictures(read(UNLABELLED)[UNLABELLED_KEY], encoder.dim)
        support = FeatureSet(X, y, names, {**config.provenance, "sources": config.sources}, targets, blocks)
        learned = read(UNCERTAINTY) if UNCERTAINTY in config.files else {}
        uncertainty = Uncertainty.from_state(config.uncertainty, learned, len(names))
        fold_heads = _read_fold_heads(read(FOLD_HEADS), config) if FOLD_HEADS in config.files else ()
        info = EncoderInfo(**{**encoder.model_dump(), "blocks": blocks})
    except InputError as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error
    except ClipAdapterError:
        raise
    # Altered arrays can make a head, also one of a plug-in, raise any exception, MemoryError among them.
    except Exception as error:
        raise ArtifactError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    return Model(head, text, support, config.prompts, info, uncertainty, fold_heads)


def _check_pictures(features: NDArray[Any], width: int) -> NDArray[Any]:
    """Saved features (u, d) of pictures without labels."""
    is_matrix = features.ndim == 2 and len(features) > 0 and features.shape[1] == width
    if not is_matrix or not np.isfinite(features).all() or not features.any():
        raise InputError(f"its pictures without labels are no finite features of width {width} that differ from zero")
    return features.astype(np.float32)


def _read_fold_heads(arrays: Mapping[str, NDArray[Any]], config: ModelConfig) -> tuple[Head, ...]:
    states: dict[int, dict[str, NDArray[Any]]] = {}
    for key, value in arrays.items():
        fold, name = key.split(".", 1)
        states.setdefault(int(fold), {})[name] = value
    return tuple(_load_head(config, states[i]) for i in sorted(states))


def _load_head(config: ModelConfig, state: Mapping[str, NDArray[Any]]) -> Head:
    head, encoder = create_head(config.head.name, **config.head.params), config.encoder
    return head.load_state(state, tuple(config.class_names), encoder.dim, as_blocks(encoder.blocks))


def make_provenance(support: FeatureSet) -> dict[str, Any]:
    """What the model was made from, by which versions, and when."""
    old = support.provenance
    skipped = old.get("skipped", ())
    # Where pictures have several labels, the shots of the classes do not tell how many pictures they are.
    pictures = old.get("pictures") if not len(support) else None if support.targets is None else len(support)
    return {
        "shots": support.shot_counts,
        "support_sha256": hashlib.sha256(np.ascontiguousarray(support.plain).tobytes()).hexdigest(),
        "skipped": skipped if isinstance(skipped, int) else len(skipped),
        "views": old.get("views", 1),
        **{key: old[key] for key in COPIED_PROVENANCE if key in old},
        **({"pictures": pictures} if type(pictures) is int else {}),
        "versions": _package_versions(),
        "python": platform.python_version(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@cache
def _package_versions() -> dict[str, str]:
    """Versions of packages that decide what a fit gives; to read them takes 40 ms."""
    return {name: version(name) for name in RECORDED_PACKAGES}
