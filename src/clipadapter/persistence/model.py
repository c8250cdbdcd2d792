"""The parts of a fitted model, to what is written in its folder and back."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.encoders import EncoderInfo
from clipadapter.errors import ArtifactError, ClipAdapterError, InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, TextFeatures, create_head, head_info, list_heads
from clipadapter.persistence.evaluation import still_of
from clipadapter.persistence.folder import read_consistently
from clipadapter.persistence.format import (
    FOLDS,
    SUPPORT,
    TENSORS,
    TRUST,
    Arrays,
    ArtifactConfig,
    EncoderPart,
    HeadPart,
    packed,
    read_arrays,
    read_config,
)
from clipadapter.uncertainty import Uncertainty

TEXT = "class_text"
CARRIED = ("fit", "crop")
"""Facts of the shots that are kept as they come: how the model was fitted, and the crop scale of the views."""


@dataclass(frozen=True)
class Model:
    """A fitted model without its towers.

    Args:
        head: fitted head.
        text: class text; sets the order of the classes.
        support: the shots' features; empty if they were not kept.
        prompts: texts of each class.
        encoder: facts of the encoder that made the features.
        uncertainty: what held-out shots taught.
        folds: heads that were fitted without one fold each, if sets of classes are made by them (CV+).
    """

    head: Head
    text: TextFeatures
    support: FeatureSet
    prompts: Mapping[str, Sequence[str]]
    encoder: EncoderInfo
    uncertainty: Uncertainty = field(default_factory=Uncertainty)
    folds: tuple[Head, ...] = ()


def assembled(model: Model, keep_support: bool = True) -> tuple[ArtifactConfig, dict[str, bytes]]:
    """A model as its config and its files of arrays.

    Args:
        model: fitted.
        keep_support: with the features of the shots.

    Raises:
        InputError: if the head is not registered.
    """
    info, names, support = model.encoder, model.text.labels, model.support
    files: dict[str, dict[str, NDArray[Any]]] = {TENSORS: {**model.head.state(), TEXT: model.text.embeddings}}
    if keep_support and len(support):
        position = {name: i for i, name in enumerate(names)}
        y = np.array([position[label] for label in support.y], dtype=np.int64)
        X = support.plain if support.X.ndim == 3 and support.X.shape[1] == 1 else support.X
        files[SUPPORT] = {"X": X, **({"y": y} if support.targets is None else {"targets": support.targets})}
    uncertainty, learned = model.uncertainty.state()
    files[TRUST] = learned
    files[FOLDS] = {f"{i}.{key}": value for i, head in enumerate(model.folds) for key, value in head.state().items()}
    blobs, parts = packed({name: own for name, own in files.items() if own})
    measured = still_of(support.provenance.get("evaluation"), parts)
    config = ArtifactConfig(
        class_names=list(names),
        head=HeadPart(name=_head_name(model.head), params=model.head.get_params(deep=False)),
        encoder=EncoderPart(**{name: getattr(info, name) for name in EncoderPart.model_fields}),
        prompts={name: list(texts) for name, texts in model.prompts.items()},
        uncertainty=uncertainty,
        sources=list(support.provenance.get("sources", ())) if SUPPORT in files else [],
        provenance={**_provenance(support), **({"evaluation": measured} if measured else {})},
        files=parts,
    )
    return config, blobs


def load_model(folder: str | Path) -> Model:
    """The checked model in a folder.

    Raises:
        ArtifactError: if it is missing, altered, of a later format, or its head is not installed.
    """
    return read_consistently(folder, lambda: _read_model(folder))


def _read_model(folder: str | Path) -> Model:
    config = read_config(folder)
    return model_of(config, partial(read_arrays, folder, config), folder)


def model_of(config: ArtifactConfig, read: Callable[[str], Arrays], where: str | Path) -> Model:
    """A model from its config and its checked arrays.

    Args:
        config: of the model.
        read: gives the arrays of one of its files.
        where: it lies, for messages.

    Raises:
        ArtifactError: if it is damaged, or its head is not installed.
    """
    arrays = read(TENSORS)
    part, names = config.encoder, tuple(config.class_names)
    if config.head.name not in list_heads():
        known = ", ".join(list_heads())
        raise ArtifactError(f"the model's head '{config.head.name}' is not installed; known: {known}")
    if TEXT not in arrays:
        raise ArtifactError(f"{Path(where) / TENSORS} has no class text")
    try:
        text = TextFeatures(names, arrays.pop(TEXT), part.logit_scale, part.logit_bias, order="given")
        head = create_head(config.head.name, **config.head.params).load_state(arrays, names, part.dim)
        X, y, targets = np.empty((0, part.dim), np.float32), (), None
        if SUPPORT in config.files:
            kept = read(SUPPORT)
            X, y, targets = kept["X"], tuple(names[i] for i in kept.get("y", ())), kept.get("targets")
        support = FeatureSet(X, y, names, {**config.provenance, "sources": config.sources}, targets)
        learned = read(TRUST) if TRUST in config.files else {}
        uncertainty = (
            Uncertainty.from_state(config.uncertainty, learned, len(names)) if config.uncertainty else Uncertainty()
        )
        folds = _folds(read(FOLDS), config) if FOLDS in config.files else ()
        info = EncoderInfo(**part.model_dump())
    except InputError as error:
        raise ArtifactError(f"{Path(where)} is damaged: {error}") from error
    except ClipAdapterError:
        raise
    # What a head, a plug-in's too, makes of altered arrays may end in any exception, MemoryError among them.
    except Exception as error:
        raise ArtifactError(f"{Path(where)} is damaged: {type(error).__name__}: {error}") from error
    return Model(head, text, support, config.prompts, info, uncertainty, folds)


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


def registered_name(head: Head) -> str | None:
    """The name that a head is registered by, if it is."""
    return next((name for name in list_heads() if head_info(name).cls is type(head)), None)


def _head_name(head: Head) -> str:
    name = registered_name(head)
    if name is not None:
        return name
    raise InputError(f"{type(head).__name__} is no registered head, so it can't be saved: use @register_head")


def _provenance(support: FeatureSet) -> dict[str, Any]:
    told = support.provenance
    skipped, known = told.get("skipped", ()), told.get("shots")
    counts = support.counts
    if not len(support) and isinstance(known, Mapping):  # they were left out when it was saved before
        counts = {name: known.get(name, 0) for name in counts}
    return {
        "shots": counts,
        "support_sha256": hashlib.sha256(np.ascontiguousarray(support.plain).tobytes()).hexdigest(),
        "skipped": skipped if isinstance(skipped, int) else len(skipped),
        "views": told.get("views", 1),
        **{key: told[key] for key in CARRIED if key in told},
        "versions": {
            name: version(name) for name in ("clipadapter", "torch", "open_clip_torch", "scikit-learn", "numpy")
        },
        "python": platform.python_version(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
