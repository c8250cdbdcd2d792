"""From the data sets that a user names to the features of a stream, and to its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from clipadapter.bench.bundle import Bundle
from clipadapter.bench.continual.joining import DataSetFeatures, JoinedDataSets, join_data_sets
from clipadapter.bench.continual.orders import Order, order_tasks
from clipadapter.bench.plan import draw_all_shots
from clipadapter.bench.run import Task
from clipadapter.bench.sources import (
    FEATURES,
    Source,
    apply_prompts,
    extract_dataset,
    extract_drawn_shots,
    load_feature_bundle,
    split_in_halves,
)
from clipadapter.bench.suite import Prompts, Suite
from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import DataError
from clipadapter.features import FeatureSet
from clipadapter.utils.files import quote_path


def build_joined_data_sets(
    suite: Suite, sources: Sequence[Source | str], model: FewShotClassifier | None, prompts: Prompts
) -> JoinedDataSets:
    """Compute the features of a stream: of all test pictures, and of those training pictures that a draw takes.

    If a data set is not divided, every second picture of a class is a test picture.

    Args:
        suite: of protocol "stream".
        sources: data sets; a text is ``features:FOLDER``.
        model: makes features and class text; None if all are features.
        prompts: how the class text is made.

    Raises:
        InputError: if data sets have the same name, or their features come from different encoders.
        DataError: if no picture can be read.
    """
    data_sets = []
    for source in sources:
        if isinstance(source, str):
            data_sets.append(_from_features(suite, source))
        else:
            assert model is not None
            data_sets.append(_from_pictures(suite, source, model, prompts))
    names = [data_set.name for data_set in data_sets]
    specs = [source if isinstance(source, str) else source.spec for source in sources]
    data_sets = [
        replace(data_set, name=spec) if names.count(data_set.name) > 1 else data_set
        for data_set, spec in zip(data_sets, specs, strict=True)
    ]
    return join_data_sets(data_sets, suite.stream.same_names)


def stream_name(sources: Sequence[Source | str]) -> str:
    """The name of the data sets of a stream in tables.

    >>> stream_name(["features:sets/pets", "features:sets/cars"])
    'pets + cars'
    """
    return " + ".join(_name(source) for source in sources)


def _name(source: Source | str) -> str:
    return Path(source[len(FEATURES) :]).name if isinstance(source, str) else source.name


def _from_pictures(suite: Suite, source: Source, model: FewShotClassifier, prompts: Prompts) -> DataSetFeatures:
    model = apply_prompts(suite, model, prompts, source)
    train, test = (source.train, source.test) if source.test is not None else split_in_halves(source.train)
    names = train.class_names
    support, rows, draws = extract_drawn_shots(suite, model, train, names)
    tested = extract_dataset(model, test, names)
    return DataSetFeatures(source.name, support, tested, model.encode_classes(names), rows, len(train.samples), draws)


def _from_features(suite: Suite, spec: str) -> DataSetFeatures:
    bundle = load_feature_bundle(spec, suite)
    name, support = _name(spec), bundle.support
    test = next((part.features for part in bundle.tests.values() if part.kind == "given"), None)
    if test is None:
        is_odd = _every_second(support)
        support, test = (support.take(np.flatnonzero(is_odd == half)) for half in (False, True))
    rows = np.arange(len(support)) if bundle.rows is None else bundle.rows
    set_rows = {i: int(row) for i, row in enumerate(rows)}
    draws = {key: [set_rows[i] for i in draw] for key, draw in draw_all_shots(suite, support.y).items()}
    return DataSetFeatures(name, support, test, bundle.text, rows, int(rows.max()) + 1, draws)


def _every_second(features: FeatureSet) -> np.ndarray:
    """(n,) whether a row is the second, fourth, sixth ... of its class."""
    counts: dict[str, int] = {}
    is_second = []
    for label in features.y:
        is_second.append(counts.get(label, 0) % 2 == 1)
        counts[label] = counts.get(label, 0) + 1
    return np.array(is_second, bool)


def plan_tasks(
    suite: Suite, union: JoinedDataSets, order: Order, shots: int, seed: int
) -> tuple[list[int], list[Task]]:
    """The tasks of one stream, and the drawn rows in their order.

    Raises:
        InputError: if the order lacks a data set.
        DataError: if a task has no shot or no test picture.
    """
    rows: list[int] = []
    planned_tasks = []
    labels = {name: _labels(union.bundle, union.draws[name][shots, seed]) for name in union.classes}
    for name, part, classes in order_tasks(union.classes, suite.stream, order, seed):
        task_rows = [row for row, label in labels[part] if label in set(classes)]
        test_classes = set(union.bundle.tests[part].features.y) & set(classes)
        if not task_rows or not test_classes:
            what = "to learn from" if not task_rows else "to test on"
            raise DataError(f"the task '{name}' has no picture {what}: {', '.join(classes[:5])}")
        rows += task_rows
        planned_tasks.append(Task(name=name, part=part, classes=classes, shots=len(task_rows)))
    return rows, planned_tasks


def _labels(bundle: Bundle, rows: Sequence[int]) -> list[tuple[int, str]]:
    return list(zip(rows, bundle.shots(rows).y, strict=True))


def missing_data_message(suite_name: str, missing: Sequence[str], available: Sequence[str]) -> str:
    """The message on data sets of a stream that are not on disk.

    Args:
        suite_name: of the suite.
        missing: their names.
        available: names of the other data sets.

    >>> print(missing_data_message("x-tail", ["dtd", "mnist"], ["food101"]))
    2 of the 3 data sets of this stream are not on disk: dtd, mnist.
    See where to put them: clipadapter bench run x-tail --dry-run.
    A stream of the others: clipadapter bench run x-tail --data food101
    """
    alternative = (
        f"A stream of the others: clipadapter bench run {suite_name} {_options(available)}"
        if available
        else "A stream of your own folders of pictures: "
        f"clipadapter bench run {suite_name} {_options(['FIRST', 'SECOND'])} --order given"
    )
    return (
        f"{len(missing)} of the {len(missing) + len(available)} data sets of this stream are not on disk: "
        f"{', '.join(missing)}. See where to put them: clipadapter bench run {suite_name} --dry-run. {alternative}"
    )


def _options(names: Sequence[str]) -> str:
    return " ".join(f"--data {quote_path(name)}" for name in names)
