"""From what a user names (data sets, an encoder, prompts) to the features that the fits of a suite share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench.bundle import Bundle, Rows, TestPart, count_epochs, load_bundle
from clipadapter.bench.suite import Prompts, Suite, make_head
from clipadapter.classifier import FewShotClassifier
from clipadapter.data import Dataset, draw_shots, get_templates, load_dataset, textiles
from clipadapter.data.sets import data_root, get_set, list_sets
from clipadapter.errors import DataError, InputError
from clipadapter.features import (
    PER_EPOCH,
    FeatureSet,
    FeatureTable,
    PerEpochViews,
    ViewCost,
    ViewSpec,
    open_feature_table,
)
from clipadapter.features.collection import holds_shards
from clipadapter.utils.files import safe_file_name

FEATURES = "features:"
PLAIN_VIEW = ViewSpec()


@dataclass(frozen=True)
class DataSetSize:
    """The size of a data set."""

    spec: str  # as the user named it
    classes: int
    train: int  # pictures to draw shots from
    test: int  # test pictures; all pictures if the set is not divided
    divided: bool  # whether test pictures are separate. Then only the drawn training pictures are encoded.
    ready: bool = True  # whether it is on disk
    missing: str = ""  # which files are missing
    test_parts: int = 1  # the pictures that are not drawn are one


@dataclass(frozen=True)
class Source:
    """A data set of pictures as the user named it."""

    spec: str  # the name, folder or table
    train: Dataset  # pictures that shots are drawn from
    test: Dataset | None  # None if the data set is not divided
    templates: str = "default"  # of its papers

    @property
    def name(self) -> str:
        """Its name in tables."""
        return self.train.name

    @property
    def size(self) -> DataSetSize:
        """Its size."""
        classes, n_test = len(self.train.class_names), len(self.any_test.samples)
        return DataSetSize(self.spec, classes, len(self.train.samples), n_test, self.test is not None)

    @property
    def any_test(self) -> Dataset:
        """The test part; all pictures if the data set is not divided."""
        return self.train if self.test is None else self.test


@dataclass(frozen=True, eq=False)
class FeatureSource:
    """Features that are there already, ``features:FOLDER``: a bundle, or shards of `extract_with_ray`."""

    spec: str
    size: DataSetSize
    provenance: Mapping[str, Any]  # of the features; empty for shards, which have plain pictures only
    shards: FeatureTable | None

    @property
    def name(self) -> str:
        """Its name in tables."""
        return Path(self.spec.removeprefix(FEATURES)).name

    def check_views(self, suite: Suite) -> None:
        """Refuse features that lack the views of a suite."""
        crop, views = self.provenance.get("crop", suite.crop), self.provenance.get("views")
        if (suite.views == PER_EPOCH and views != PER_EPOCH) or (suite.views != 1 and crop != suite.crop):
            raise InputError(
                f"suite '{suite.name}' has views = {suite.views}, crop = {suite.crop}, but the features in "
                f"'{self.spec}' have other views: give the pictures"
            )

    def load(self, suite: Suite, *, only_drawn: bool = False) -> Bundle:
        """The features; of shards with a test part, if wanted, only those that a draw takes."""
        shards = self.shards
        if shards is None:
            return load_bundle(self.spec.removeprefix(FEATURES))
        train, test = _split_shards(shards)
        labels = shards.labels(train)
        rows = draw_all_shots(suite, labels) if only_drawn and len(test) else None
        names = sorted({*labels, *shards.labels(test)})
        positions = (
            None if rows is None else np.array(sorted({row for draw in rows.values() for row in draw}), np.int64)
        )
        templates = "default" if suite.prompts[0].templates == "own" else suite.prompts[0].templates
        # Class text comes from the encoder that made the features.
        model = FewShotClassifier(str(shards.encoder), templates=templates, quality="fast", precision="fp32")
        if model.encoder_.info.fingerprint != shards.fingerprint:
            raise DataError(
                f"'{shards.path}' is of the encoder '{shards.encoder}' with other weights than on this machine, so "
                "that class text would not match: install those weights, or extract the features again"
            )

        def read(part: NDArray[np.int64]) -> FeatureSet:
            features = shards.take(part, names)
            return replace(features, provenance={**features.provenance, "templates": get_templates(templates)})

        tests = {"test": TestPart(read(test))} if len(test) else {}
        support = read(train if positions is None else train[positions])
        return Bundle(support, model.encode_classes(names), tests, positions, rows)


AnySource = Source | FeatureSource
Prompted = Callable[[Source], FewShotClassifier]  # the encoder with prompts, which may depend on the data set


def open_source(spec: str, root: Path | None = None) -> AnySource:
    """Open a data set without reading its pictures.

    Args:
        spec: a name of ``clipadapter data list``, ``textiles``, ``hf:NAME``, a folder, a table, or
            ``features:FOLDER``; else the name of a folder in the folder of the named data sets.
        root: folder of the named data sets.

    Raises:
        DataError: if there is no such data set, or files are missing; the message says what to do.
    """
    if spec.startswith(FEATURES):
        folder = spec.removeprefix(FEATURES)
        if folder and holds_shards(folder):
            shards = open_feature_table(folder)
            labels, test_labels = (shards.labels(rows) for rows in _split_shards(shards))
            tested = test_labels or labels
            size = DataSetSize(spec, len({*labels, *tested}), len(labels), len(tested), bool(test_labels))
            return FeatureSource(spec, size, {}, shards)
        bundle = load_bundle(folder)
        n, n_test = len(bundle.support), sum(len(part.features) for part in bundle.tests.values())
        divided, n_parts = bool(bundle.tests), len(bundle.names)
        size = DataSetSize(spec, len(bundle.text.labels), n, n_test or n, divided, test_parts=n_parts)
        return FeatureSource(spec, size, bundle.support.provenance, None)
    beside = data_root(root) / safe_file_name(spec)
    if not Path(spec).exists() and spec not in list_sets() and beside.name == spec and beside.is_dir():
        dataset = load_dataset(beside)
    else:
        dataset = textiles() if spec == "textiles" and not Path(spec).exists() else load_dataset(spec, root)
    parts, is_named = dataset.splits, spec in list_sets() and not Path(spec).exists()
    templates = get_set(spec).templates if is_named else "default"
    if parts == ("test",):
        return Source(spec, dataset, dataset, templates)
    if "test" in parts and "train" in parts:
        return Source(spec, dataset.split("train"), dataset.split("test"), templates)
    return Source(spec, dataset, None, templates)


def with_pictures(sources: Sequence[AnySource]) -> list[Source]:
    """Those that are no stored features."""
    return [source for source in sources if isinstance(source, Source)]


def require_test_part(suite: Suite, source: Source) -> Dataset:
    """The test part of a data set, for a protocol that needs one."""
    if source.test is None:
        raise InputError(f"'{source.spec}' is not divided into train and test; protocol '{suite.protocol}' needs that")
    return source.test


def draw_all_shots(suite: Suite, labels: Sequence[str]) -> dict[tuple[int, int], list[int]]:
    """Draw the rows of a suite, by (shots, seed), from the labels of all rows of the data set."""
    return {(n, seed): draw_shots(labels, n, seed) for n in suite.shots for seed in suite.seeds}


def plan_views(suite: Suite, draws: Iterable[Sequence[str]], text_shape: tuple[int, int] | None = None) -> ViewSpec:
    """The views of each picture, for draws with these labels and class text of this shape, else of any shape."""
    if isinstance(suite.views, int):
        return ViewSpec.from_crop(suite.crop, count=suite.views)
    heads = [make_head(variant) for variant in suite.all_variants()]
    # "per-epoch": as many as the head with the most epochs needs
    epochs = max(count_epochs(head, labels, text_shape) for labels in draws for head in heads)
    return PerEpochViews(ViewSpec.from_crop(suite.crop)).for_epochs(epochs)


def build_drawn_bundle(
    suite: Suite, model: FewShotClassifier, dataset: Dataset, names: Sequence[str], tests: Mapping[str, TestPart]
) -> Bundle:
    """Features of the rows that some draw takes, with these classes and test parts."""
    draws = draw_all_shots(suite, dataset.labels)
    support, rows, drawn = keep_drawn(
        dataset, draws, lambda part, rows: extract_training_views(suite, model, part, names, rows)
    )
    return Bundle(support, model.encode_classes(names), tests, rows, drawn)


def keep_drawn(
    dataset: Dataset, draws: Rows, extract: Callable[[Dataset, list[list[int]]], FeatureSet]
) -> tuple[FeatureSet, NDArray[np.int64], Rows]:
    """Features of the rows that some draw takes, these rows, and the draws without unreadable pictures.

    ``extract`` gets the drawn pictures, and which of them each draw takes.
    """
    drawn_rows = sorted({row for draw in draws.values() for row in draw})
    position = {row: i for i, row in enumerate(drawn_rows)}
    part = replace(dataset, samples=tuple(dataset.samples[row] for row in drawn_rows))
    features = extract(part, [[position[row] for row in draw] for draw in draws.values()])
    rows = np.array([drawn_rows[i] for i in features.provenance["rows"]], np.int64)
    readable = set(rows.tolist())
    return features, rows, {key: [row for row in draw if row in readable] for key, draw in draws.items()}


def build_bundle(suite: Suite, source: Source, model: FewShotClassifier) -> Bundle:
    """The features of one data set; the model has the prompts."""
    train, names = source.train, source.train.class_names
    if source.test is None:
        draws = draw_all_shots(suite, train.labels)
        support = extract_training_views(suite, model, train, names, draws.values())
        return Bundle(support, model.encode_classes(names))
    tests = {"test": TestPart(extract_dataset(model, source.test, names))}
    return build_drawn_bundle(suite, model, train, names, tests)


def apply_prompts(suite: Suite, model: FewShotClassifier, prompts: Prompts, source: Source) -> FewShotClassifier:
    """The same encoder with the prompts of a suite, prepared for the heads of the suite."""
    if prompts.descriptions and model.descriptions is None:
        raise InputError("this suite compares descriptions: give them with --descriptions FILE")
    templates = source.templates if prompts.templates == "own" else prompts.templates
    kept = ("quality", "device", "backend", "precision", "cache", "batch_size", "progress")
    prompted = FewShotClassifier(
        model.encoder_,
        templates=templates if isinstance(templates, str) else list(get_templates(templates)),
        descriptions=model.descriptions if prompts.descriptions else None,
        **{name: getattr(model, name) for name in kept},
    )
    prompted.prepare_encoder(*(make_head(variant) for variant in suite.all_variants()))
    return prompted


def extract_dataset(
    model: FewShotClassifier, dataset: Dataset, names: Sequence[str], views: ViewSpec = PLAIN_VIEW
) -> FeatureSet:
    """Features of the plain pictures, or of several views of each. Their provenance names the data set."""
    features = model.extract_features(dataset.paths, dataset.labels, names, views=1 if views.count == 1 else views)
    named = {"data": dataset.name, "templates": get_templates(model.templates)}
    return replace(features, provenance={**features.provenance, **named})


def extract_training_views(
    suite: Suite, model: FewShotClassifier, dataset: Dataset, names: Sequence[str], draws: Iterable[Sequence[int]]
) -> FeatureSet:
    """Features of pictures that shots are drawn from, in the views of a suite; ``draws`` are the rows of each draw."""
    text_shape = len(names), model.encoder_.info.text_dim
    spec = plan_views(suite, ([dataset.labels[row] for row in rows] for rows in draws), text_shape)
    if suite.views != PER_EPOCH:
        return extract_dataset(model, dataset, names, spec)
    ViewCost(len(dataset.samples), spec.count, model.encoder_.info.dim).check()
    # Always three-dimensional, so that a suite whose heads have no epochs is no special case.
    features = extract_dataset(model, dataset, names, replace(spec, count=max(spec.count, 2)))
    return replace(features, provenance={**features.provenance, "views": PER_EPOCH})


def _split_shards(shards: FeatureTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that shots are drawn from, and those of the test part; none if the data set is not divided."""
    if {"train", "test"} <= set(shards.splits):
        return shards.rows("train"), shards.rows("test")
    return shards.rows(), np.empty(0, np.int64)


def split_in_halves(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Two halves of a data set: in every class the first, third, fifth ... picture, and the others.

    >>> from clipadapter.data import Sample
    >>> samples = tuple(Sample(Path(f"{label}/{i}.jpg"), label, "all") for label in ("cat", "dog") for i in range(3))
    >>> first, second = split_in_halves(Dataset("pets", Path("."), samples, ("cat", "dog")))
    >>> [str(path) for path in second.paths]
    ['cat/1.jpg', 'dog/1.jpg']
    """
    first, second = (
        replace(dataset, samples=tuple(dataset.samples[row] for row in rows)) for rows in halve(dataset.labels)
    )
    return first, second


def halve(labels: Sequence[str]) -> tuple[list[int], list[int]]:
    """Rows of the first, third, fifth ... of every class, and the other rows."""
    counts: Counter[str] = Counter()
    parts: tuple[list[int], list[int]] = ([], [])
    for row, label in enumerate(labels):
        parts[counts[label] % 2].append(row)
        counts[label] += 1
    return parts
