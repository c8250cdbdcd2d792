"""From what a person names (data sets, an encoder, prompts) to the features that a suite's fits share."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.bundle_files import load_bundle
from clipadapter.bench.comparison import features_of
from clipadapter.bench.suite import Prompts, Suite
from clipadapter.classifier import FewShotClassifier
from clipadapter.data import Dataset, get_templates, load_dataset, textiles
from clipadapter.data.sets import list_sets, set_info
from clipadapter.errors import DataError, InputError
from clipadapter.features import FeatureSet

FEATURES = "features:"
TIMED = 32
"""Pictures on which the encoder is timed."""


@dataclass(frozen=True)
class Source:
    """A data set as the person named it.

    Args:
        spec: the name, folder or table.
        train: what shots are drawn from.
        test: the test part; None if the data set is not divided.
        templates: name of the template set that its papers use.
    """

    spec: str
    train: Dataset
    test: Dataset | None
    templates: str = "default"

    @property
    def name(self) -> str:
        """How it is called in tables."""
        return self.train.name


def open_source(spec: str, root: Path | None = None) -> Source:
    """Find a data set; no picture is opened.

    Args:
        spec: a name that ``clipadapter data list`` shows, ``textiles``, ``hf:NAME``, a folder, or a table.
        root: folder of the named data sets.

    Raises:
        DataError: if there is no such data set, or files are missing; says what to do.
    """
    dataset = textiles() if spec == "textiles" and not Path(spec).exists() else load_dataset(spec, root)
    parts = dataset.splits
    templates = _templates(spec)
    if parts == ("test",):
        return Source(spec, dataset, dataset, templates)
    if "test" in parts and "train" in parts:
        return Source(spec, dataset.split("train"), dataset.split("test"), templates)
    return Source(spec, dataset, None, templates)


def _templates(spec: str) -> str:
    return set_info(spec).cls.templates if spec in list_sets() and not Path(spec).exists() else "default"


def build_bundle(
    suite: Suite, sources: Sequence[Source], model: FewShotClassifier, prompts: Prompts, time_encoder: bool = True
) -> Bundle:
    """Compute the features of a suite.

    Args:
        suite: its protocol says what is done with the data sets.
        sources: one; for "shift" and "cross-dataset" the one that gives the shots, and the others.
        model: makes features and class text.
        prompts: how.
        time_encoder: measure what the encoder takes for a picture.

    Raises:
        InputError: if the protocol needs other data sets.
        DataError: if labels do not go together, or no picture can be read.
    """
    first = sources[0]
    names = first.train.class_names
    model = _with_prompts(model, prompts, first)
    support = _features(model, first.train, names, suite.views)
    if time_encoder:
        support = replace(support, provenance={**support.provenance, "ms_per_picture": _ms(model, first.train)})
    text = model.class_text(names)
    if suite.protocol == "base-to-new":
        return _base_to_new(model, first, support)
    tests: dict[str, TestPart] = {}
    if first.test is not None:
        tests["test"] = TestPart(_features(model, first.test, names, 1))
    elif len(sources) > 1:
        raise InputError(
            f"'{first.spec}' is not divided into train and test, but protocol '{suite.protocol}' needs that"
        )
    for other in sources[1:]:
        shown = other.train if other.test is None else other.test
        if suite.protocol == "shift":
            strange = sorted(set(shown.class_names) - set(names))
            if strange:
                raise DataError(f"'{other.spec}' has classes that '{first.spec}' has not: {', '.join(strange[:5])}")
            tests[other.spec] = TestPart(_features(model, shown, shown.class_names, 1), "shift")
        else:
            own = _with_prompts(model, prompts, other)
            part = _features(own, shown, shown.class_names, 1)
            tests[other.spec] = TestPart(part, "new", own.class_text(shown.class_names))
    return Bundle(support, text, tests)


def _base_to_new(model: FewShotClassifier, source: Source, support: FeatureSet) -> Bundle:
    """Shots of the first half of the classes (the larger, if they are odd), measured on both halves apart."""
    if source.test is None:
        raise InputError(f"'{source.spec}' is not divided into train and test, but protocol 'base-to-new' needs that")
    names = source.train.class_names
    half = math.ceil(len(names) / 2)
    tested = _features(model, source.test, names, 1)
    base, new = names[:half], names[half:]
    return Bundle(
        _only(support, base),
        model.class_text(base),
        {
            "base": TestPart(_only(tested, base)),
            "new": TestPart(_only(tested, new), "new", model.class_text(new)),
        },
    )


def _only(features: FeatureSet, names: Sequence[str]) -> FeatureSet:
    rows = [row for row, label in enumerate(features.y) if label in set(names)]
    return replace(features.take(rows), class_names=tuple(names))


def _with_prompts(model: FewShotClassifier, prompts: Prompts, source: Source) -> FewShotClassifier:
    """The same encoder with the templates of a prompt style."""
    templates = source.templates if prompts.templates == "own" else prompts.templates
    own = FewShotClassifier(
        model.encoder_,
        templates=templates if isinstance(templates, str) else list(get_templates(templates)),
        descriptions=model.descriptions if prompts.descriptions else None,
        device=model.device,
        cache=model.cache,
        batch_size=model.batch_size,
        progress=model.progress,
    )
    if prompts.descriptions and model.descriptions is None:
        raise InputError("this suite compares descriptions: give them with --descriptions FILE")
    return own


def _features(model: FewShotClassifier, dataset: Dataset, names: Sequence[str], views: int) -> FeatureSet:
    if views == 1:
        return features_of(model, dataset, names)
    found = model.features(dataset.paths, dataset.labels, names, views=views)
    return replace(
        found, provenance={**found.provenance, "data": dataset.name, "templates": get_templates(model.templates)}
    )


def _ms(model: FewShotClassifier, dataset: Dataset) -> float:
    """Milliseconds that the encoder takes for a picture, read and resized already."""
    import torch
    from PIL import Image

    encoder = model.encoder_
    pictures = []
    for path in dataset.paths[:TIMED]:
        try:
            with Image.open(path) as picture:
                pictures.append(encoder.preprocess(picture.convert("RGB")))
        except OSError:
            continue
    if not pictures:
        return float("nan")
    pixels = torch.stack(pictures)
    with torch.inference_mode():
        encoder.encode_pixels(pixels[:1])  # the first pass allocates
        start = time.perf_counter()
        encoder.encode_pixels(pixels)
    return 1000 * (time.perf_counter() - start) / len(pictures)


def features_source(spec: str) -> Bundle | None:
    """The bundle of ``features:FOLDER``; None if the spec is no such thing.

    Raises:
        DataError: if the folder holds none.
    """
    return load_bundle(spec[len(FEATURES) :]) if spec.startswith(FEATURES) else None


def shots_rows(labels: Sequence[str], rows: Mapping[tuple[int, int], Sequence[int]]) -> None:
    """Refuse given rows that the data do not have.

    Raises:
        InputError: if so.
    """
    for (shots, seed), own in rows.items():
        if not own or min(own) < 0 or max(own) >= len(labels) or len(np.unique(own)) != len(own):
            raise InputError(f"the rows given for {shots} shots, seed {seed} must be different, 0 to {len(labels) - 1}")
