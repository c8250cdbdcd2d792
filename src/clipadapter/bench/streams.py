"""Joins the data sets of a stream: their features in one matrix, one class text over all class names, and its tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench import sources
from clipadapter.bench.bundle import Bundle, Rows, TestPart
from clipadapter.bench.fits import Draw
from clipadapter.bench.run import Task
from clipadapter.bench.suite import Order, Prompts, StreamRules, Suite, order_tasks
from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import DataError, InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, IncrementalHead, TextFeatures

Mode = Literal["stream", "joint"]


class DataSetFeatures(NamedTuple):
    """A data set of a stream."""

    name: str  # in tables
    bundle: Bundle  # with one test part, the row of each shot in the data set, and the draws
    n_rows: int  # of the data set


class JoinedDataSets(NamedTuple):
    """The data sets of a stream as one."""

    bundle: Bundle  # a test part for each data set
    classes: Mapping[str, tuple[str, ...]]  # labels of each data set, as in the bundle
    draws: Mapping[str, Rows]  # drawn rows of each data set, as rows of the joined data set


def join_sources(
    suite: Suite, opened: Sequence[sources.AnySource], model: FewShotClassifier | None, prompts: Prompts
) -> JoinedDataSets:
    """The features of a stream: of all test pictures, and of those training pictures that a draw takes."""
    # If a data set is not divided, every second picture of a class is a test picture.
    data_sets, names = [], Counter(source.name for source in opened)
    for source in opened:
        name = source.spec if names[source.name] > 1 else source.name
        if isinstance(source, sources.FeatureSource):
            stored = source.load(suite)
            support = stored.support
            test = next((part.features for part in stored.tests.values() if part.kind == "given"), None)
            if test is None:
                support, test = (support.take(rows) for rows in sources.halve(support.y))
            rows = np.arange(len(support)) if stored.rows is None else stored.rows
            drawn = sources.draw_all_shots(suite, support.y)
            draws = {key: [int(rows[i]) for i in draw] for key, draw in drawn.items()}
            bundle, n_rows = Bundle(support, stored.text, {"test": TestPart(test)}, rows, draws), int(rows.max()) + 1
        else:
            assert model is not None
            if source.test is None:
                train, halves = sources.split_in_halves(source.train)
                source = replace(source, train=train, test=halves)  # noqa: PLW2901
            bundle = sources.build_bundle(suite, source, sources.apply_prompts(suite, model, prompts, source))
            n_rows = len(source.train.samples)
        data_sets.append(DataSetFeatures(name, bundle, n_rows))
    return join_data_sets(data_sets, suite.stream.same_names)


def join_data_sets(data_sets: Sequence[DataSetFeatures], same_names: Literal["share", "apart"]) -> JoinedDataSets:
    """Join several data sets, whose rows are numbered in this order; ``same_names`` as in `suite.StreamRules`."""
    names = [data_set.name for data_set in data_sets]
    if len(set(names)) < len(names):
        raise InputError(f"data sets of a stream need different names, but are called {', '.join(names)}")
    bundles = [data_set.bundle for data_set in data_sets]
    if same_names == "apart":
        counts = Counter(label for bundle in bundles for label in bundle.text.labels)
        shared = {label for label, n in counts.items() if n > 1}
        bundles = [_rename(bundle, name, shared) for name, bundle in zip(names, bundles, strict=True)]
    labels = dict.fromkeys(label for bundle in bundles for label in bundle.text.labels)
    support = join_features([bundle.support for bundle in bundles], tuple(labels))
    text = _text_of_all([bundle.text for bundle in bundles])
    tests, rows, draws, start = {}, [], {}, 0
    for data_set, bundle in zip(data_sets, bundles, strict=True):
        assert bundle.rows is not None and bundle.draws is not None
        (part,) = bundle.tests.values()
        tests[data_set.name] = TestPart(join_features([part.features], text.labels))
        rows.append(bundle.rows + start)
        draws[data_set.name] = {key: [start + row for row in drawn] for key, drawn in bundle.draws.items()}
        start += data_set.n_rows
    classes = {name: bundle.text.labels for name, bundle in zip(names, bundles, strict=True)}
    return JoinedDataSets(Bundle(support, text, tests, np.concatenate(rows)), classes, draws)


def join_features(sets: Sequence[FeatureSet], class_names: Sequence[str]) -> FeatureSet:
    """Concatenate the rows of several sets, which must be of one encoder, width, number of views and crop scale."""
    first = sets[0]
    for other in sets[1:]:
        if other.X.shape[1:] != first.X.shape[1:] or other.blocks != first.blocks:
            raise InputError(f"features of one stream must have one shape, but are {first.X.shape}, {other.X.shape}")
        if other.provenance.get("fingerprint") != first.provenance.get("fingerprint"):
            raise InputError("the data sets of a stream need features of one encoder, but have those of several")
        crops = [str(features.provenance.get("crop", "tip")) for features in (first, other)]
        if first.X.ndim == 3 and crops[0] != crops[1]:
            raise InputError(f"the data sets of a stream need views of one crop scale, but have {' and '.join(crops)}")
    provenance = dict(first.provenance)
    templates = [template for features in sets for template in features.provenance.get("templates", ())]
    if templates:
        provenance["templates"] = tuple(dict.fromkeys(templates))
    if len(sets) > 1:
        provenance["data"] = " + ".join(str(features.provenance.get("data", "unnamed")) for features in sets)
    y = tuple(label for features in sets for label in features.y)
    X = np.concatenate([features.X for features in sets])
    return FeatureSet(X, y, tuple(class_names), provenance, blocks=first.blocks)


def _rename(bundle: Bundle, name: str, shared_labels: set[str]) -> Bundle:
    """The features of a data set; its name follows those of its labels that other data sets have, too."""
    text, (part,) = bundle.text, bundle.tests.values()
    new = {label: f"{label} ({name})" if label in shared_labels else label for label in text.labels}
    support, test = (
        replace(features, y=tuple(new[label] for label in features.y), class_names=tuple(new.values()))
        for features in (bundle.support, part.features)
    )
    renamed = TextFeatures.of_stored_rows(
        tuple(new.values()), text.embeddings, text.logit_scale, text.logit_bias, text.tower, prompts=text.prompts
    )
    return Bundle(support, renamed, {"test": TestPart(test)}, bundle.rows, bundle.draws)


def _text_of_all(texts: Sequence[TextFeatures]) -> TextFeatures:
    """Text of all classes; a class of several data sets gets the mean of its unit vectors."""
    first = texts[0]
    rows: dict[str, list[NDArray[np.float32]]] = {}
    prompts: dict[str, list[NDArray[np.float32]]] = {}
    for text in texts:
        for label, row, own_prompts in zip(text.labels, text.embeddings, text.prompt_rows, strict=True):
            rows.setdefault(label, []).extend([] if label in text.absent else [row])
            prompts.setdefault(label, []).append(own_prompts)
    none = np.full(first.embeddings.shape[1], np.nan)
    means = np.array([np.mean(own, axis=0) if own else none for own in rows.values()], first.embeddings.dtype)
    joined = TextFeatures(list(rows), means, first.logit_scale, first.logit_bias, first.tower)
    if all(text.prompts is None for text in texts):
        return joined
    return joined.with_prompts([np.concatenate(parts) for parts in prompts.values()])


def draw_tasks(rules: StreamRules, union: JoinedDataSets, order: Order, shots: int, seed: int) -> Draw:
    """The drawn rows of one stream in the order of its tasks, and the tasks."""
    rows, tasks = list[int](), list[Task]()
    drawn = {name: union.draws[name][shots, seed] for name in union.classes}
    labels = {name: list(zip(own, union.bundle.shots(own).y, strict=True)) for name, own in drawn.items()}
    for name, part, classes in order_tasks(union.classes, rules, order, seed):
        task_rows = [row for row, label in labels[part] if label in set(classes)]
        if not task_rows or not set(union.bundle.tests[part].features.y) & set(classes):
            what = "to learn from" if not task_rows else "to test on"
            raise DataError(f"the task '{name}' has no picture {what}: {', '.join(classes[:5])}")
        rows += task_rows
        tasks.append(Task(name=name, part=part, classes=classes, shots=len(task_rows)))
    return Draw(shots, seed, rows, [rules.title(order)], tasks)


def task_part(bundle: Bundle, task: Task, task_known: bool = False) -> TestPart:
    """The test pictures of a task; if the task of a picture is known, heads predict among its classes."""
    part, classes = bundle.tests[task.part].features, set(task.classes)
    own = part.take([row for row, label in enumerate(part.y) if label in classes])
    return TestPart(replace(own, class_names=tuple(task.classes)), "shift") if task_known else TestPart(own)


def choose_mode(name: str, head: Head, requested: Mode | None) -> Mode:
    """How a head learns a stream: as requested, else incrementally if it can."""
    can_continue = isinstance(head, IncrementalHead) and head.get_params(deep=False).get("stream", True)
    if requested == "stream" and not can_continue:
        takes_part = isinstance(head, IncrementalHead)
        hint = "set its parameter stream = true" if takes_part else 'leave mode out, or say mode = "joint"'
        raise InputError(f"{name} can't continue from what it learned: {hint}")
    return requested or ("stream" if can_continue else "joint")
