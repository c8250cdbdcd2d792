"""The parts of a fitted model, to what is written in its folder and back."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.artifact._evaluation import still_of
from clipadapter.artifact._files import (
    CARD,
    CONFIG,
    FOLDS,
    SUPPORT,
    TENSORS,
    TRUST,
    ArtifactConfig,
    EncoderPart,
    HeadPart,
    config_bytes,
    packed,
    read_arrays,
    read_config,
    write_artifact,
)
from clipadapter.artifact._record import card_of
from clipadapter.encoders import EncoderInfo
from clipadapter.errors import ArtifactError, InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import ClassText, Head, create_head, head_info, list_heads
from clipadapter.trust import Trust

TEXT = "class_text"


@dataclass(frozen=True)
class Model:
    """A fitted model without its towers.

    Args:
        head: fitted head.
        text: class text; sets the order of the classes.
        support: the shots' features; empty if they were not kept.
        prompts: texts of each class.
        encoder: facts of the encoder that made the features.
        trust: what held-out shots taught.
        folds: heads that were fitted without one fold each, if sets of classes are made by them (CV+).
    """

    head: Head
    text: ClassText
    support: FeatureSet
    prompts: Mapping[str, Sequence[str]]
    encoder: EncoderInfo
    trust: Trust = field(default_factory=Trust)
    folds: tuple[Head, ...] = ()


def save_model(folder: str | Path, model: Model, *, keep_support: bool = True) -> Path:
    """Write a model to a folder, or replace the model in it.

    Args:
        folder: where to.
        model: what to write.
        keep_support: write the plain features of the shots too.

    Raises:
        ArtifactError: if the folder can't be written; nothing is left half-written.
        InputError: if the head is not registered.
    """
    info, names = model.encoder, model.text.labels
    files: dict[str, dict[str, NDArray[Any]]] = {TENSORS: {**model.head.state(), TEXT: model.text.embeddings}}
    if keep_support and len(model.support):
        position = {name: i for i, name in enumerate(names)}
        y = np.array([position[label] for label in model.support.y], dtype=np.int64)
        targets = model.support.targets
        files[SUPPORT] = {"X": model.support.plain, **({"y": y} if targets is None else {"targets": targets})}
    trust, learned = model.trust.state()
    files[TRUST] = learned
    files[FOLDS] = {f"{i}.{key}": value for i, head in enumerate(model.folds) for key, value in head.state().items()}
    blobs, parts = packed({name: own for name, own in files.items() if own})
    measured = still_of(model.support.provenance.get("evaluation"), parts)
    config = ArtifactConfig(
        class_names=list(names),
        head=HeadPart(name=_head_name(model.head), params=model.head.get_params(deep=False)),
        encoder=EncoderPart(**{name: getattr(info, name) for name in EncoderPart.model_fields}),
        prompts={name: list(texts) for name, texts in model.prompts.items()},
        trust=trust,
        sources=list(model.support.provenance.get("sources", ())) if SUPPORT in files else [],
        provenance={**_provenance(model.support), **({"evaluation": measured} if measured else {})},
        files=parts,
    )
    card = card_of(folder, config)
    cards = {} if card is None else {CARD: card.encode()}  # one that a person has written stays
    return write_artifact(folder, {**blobs, **cards, CONFIG: config_bytes(config)})


def load_model(folder: str | Path) -> Model:
    """The checked model in a folder.

    Raises:
        ArtifactError: if it is missing, altered, of a later format, or its head is not installed.
    """
    config = read_config(folder)
    arrays = read_arrays(folder, config, TENSORS)
    part, names = config.encoder, tuple(config.class_names)
    if config.head.name not in list_heads():
        known = ", ".join(list_heads())
        raise ArtifactError(f"the model's head '{config.head.name}' is not installed; known: {known}")
    if TEXT not in arrays:
        raise ArtifactError(f"{Path(folder) / TENSORS} has no class text")
    try:
        text = ClassText(names, arrays.pop(TEXT), part.logit_scale, part.logit_bias)
        head = create_head(config.head.name, **config.head.params).load_state(arrays, names, part.dim)
        X, y, targets = np.empty((0, part.dim), np.float32), (), None
        if SUPPORT in config.files:
            kept = read_arrays(folder, config, SUPPORT)
            X, y, targets = kept["X"], tuple(names[i] for i in kept.get("y", ())), kept.get("targets")
        support = FeatureSet(X, y, names, {**config.provenance, "sources": config.sources}, targets)
        learned = read_arrays(folder, config, TRUST) if TRUST in config.files else {}
        trust = Trust.from_state(config.trust, learned, len(names)) if config.trust else Trust()
        folds = _folds(read_arrays(folder, config, FOLDS), config) if FOLDS in config.files else ()
    except (InputError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ArtifactError(f"{Path(folder)} is damaged: {error}") from error
    info = EncoderInfo(**part.model_dump())
    return Model(head, text, support, config.prompts, info, trust, folds)


def _folds(arrays: Mapping[str, NDArray[Any]], config: ArtifactConfig) -> tuple[Head, ...]:
    """Heads that were fitted without one fold each."""
    states: dict[int, dict[str, NDArray[Any]]] = {}
    for key, value in arrays.items():
        number, name = key.split(".", 1)
        states.setdefault(int(number), {})[name] = value
    head = config.head
    return tuple(
        create_head(head.name, **head.params).load_state(states[i], config.class_names, config.encoder.dim)
        for i in sorted(states)
    )


def _head_name(head: Head) -> str:
    for name in list_heads():
        if head_info(name).cls is type(head):
            return name
    raise InputError(f"{type(head).__name__} is no registered head, so it can't be saved: use @register_head")


def _provenance(support: FeatureSet) -> dict[str, Any]:
    skipped = support.provenance.get("skipped", ())
    return {
        "shots": support.counts,
        "support_sha256": hashlib.sha256(np.ascontiguousarray(support.plain).tobytes()).hexdigest(),
        "skipped": skipped if isinstance(skipped, int) else len(skipped),
        "views": support.provenance.get("views", 1),
        "versions": {
            name: version(name) for name in ("clipadapter", "torch", "open_clip_torch", "scikit-learn", "numpy")
        },
        "python": platform.python_version(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
