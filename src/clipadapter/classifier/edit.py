"""Edit a fitted model: add, rename and remove classes, add shots, correct their labels.

`FewShotClassifier` makes each edit in three steps:

1. `add_class`, `remove_class`, `rename_class` or `keep_classes` makes an `Edit` that describes the classes afterwards.
2. `read_examples` reads labelled pictures, and `with_examples` adds them to it, without those that are shots already.
3. `apply_edit` makes the new model.

Everything works on features, so that no picture of the fit is needed. `clipadapter.persistence.History` undoes edits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.classifier.fitting import ShotFit, fit_settings, negatives_of
from clipadapter.classifier.inputs import (
    Label,
    build_feature_set,
    collect_class_names,
    is_multilabel,
    label_names,
)
from clipadapter.classifier.reader import Reader
from clipadapter.data import class_prompts, label_matrix
from clipadapter.data.images import ImageSource
from clipadapter.errors import ArtifactError, ClipAdapterError, InputError, UnknownNameError, brief
from clipadapter.features import FeatureSet
from clipadapter.heads import ExactIncrementalHead, Head, IncrementalHead, TextFeatures
from clipadapter.heads.estimator import clone
from clipadapter.heads.registry import refuse_update
from clipadapter.persistence import Model
from clipadapter.uncertainty import DecisionOptions, Uncertainty
from clipadapter.utils.registry import unknown

Prompts = Mapping[str, Sequence[str]]
EncodePrompts = Callable[[Prompts], TextFeatures]
PER_FIT_FACTS = ("rows", "computed")
"""Provenance of the pictures that were given to `fit`, which is wrong after an edit."""
MAX_RELATIVE_DISTANCE = 1e-3
"""Distance between two features of one picture, relative to their length. Backends and precisions differ by less."""
MIN_CANDIDATE_COSINE = 1 - 1e-4
"""Pairs above this cosine are compared exactly. At the distance above, the cosine is more than 0.9999995."""
ROWS_PER_BLOCK = 1024
MAX_LISTED_SOURCES = 20  # pictures that the history names; all are counted
ConflictRule = Literal["refuse", "replace", "merge"]
"""If a picture is a shot with another label: refuse it, replace the label, or add to the labels (multi-label)."""


@dataclass(frozen=True, eq=False)
class Edit:
    """A model's classes after an edit, and the changes of its support set."""

    text: TextFeatures  # their order is that of the logits
    old_positions: tuple[int, ...]  # position of each class before the edit, -1 for a new class
    prompts: Prompts
    new_labels: Mapping[int, Label] = field(default_factory=dict)  # corrected labels, by row of the support set
    added: FeatureSet | None = None


@contextmanager
def _refusing_damage() -> Iterator[None]:
    """Raise ArtifactError for all that an altered model can raise: an edit is the first to read sums and settings."""
    try:
        yield
    except (ClipAdapterError, OSError, MemoryError):
        raise
    except Exception as error:
        raise ArtifactError(
            f"this model can't be changed, what it learned or its settings are damaged ({type(error).__name__}: "
            f"{error}): copy the folder again, or fit again"
        ) from error


# ---- Edits of classes ----


def keep_classes(model: Model) -> Edit:
    """Make an edit that leaves all classes as they are."""
    return Edit(model.text, tuple(range(len(model.text.labels))), model.prompts)


@_refusing_damage()
def add_class(model: Model, name: str, descriptions: Sequence[str] | None, encode: EncodePrompts) -> Edit:
    """Make an edit that adds a class behind the others."""
    _check_new_name(model, name, "add pictures to it with add_examples (add-examples)")
    described = None if descriptions is None else {name: descriptions}
    prompts = class_prompts([name], fit_settings(model).templates, described)
    return _edit_classes(model, {each: each for each in model.text.labels}, prompts, encode(prompts))


def remove_class(model: Model, name: str) -> Edit:
    """Make an edit that removes a class and its shots; multi-label shots stay, without this label."""
    _check_known(model, name)
    return _edit_classes(model, {each: each for each in model.text.labels if each != name})


@_refusing_damage()
def rename_class(model: Model, name: str, new: str, encode: EncodePrompts) -> Edit:
    """Make an edit that renames a class. Prompts from templates get the new name, descriptions are kept."""
    _check_known(model, name)
    _check_new_name(model, new, "classes must have different names")
    templates = fit_settings(model).templates
    old_names = {new if each == name else each: each for each in model.text.labels}
    if list(model.prompts[name]) != class_prompts([name], templates)[name]:
        return _edit_classes(model, old_names)
    prompts = class_prompts([new], templates)
    return _edit_classes(model, old_names, prompts, encode(prompts))


def _check_known(model: Model, name: str) -> None:
    if name not in model.text.labels:
        raise unknown("class", name, list(model.text.labels))


def _check_new_name(model: Model, name: object, advice: str) -> None:
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"a class needs a name that is a text, and not blank; got {brief(name)}")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the name {brief(name)} has characters that can't be written: {error.reason}") from error
    if name in model.text.labels:
        raise InputError(f"there is a class '{name}' already: {advice}")


def _edit_classes(
    model: Model, old_names: Mapping[str, str], prompts: Prompts | None = None, encoded: TextFeatures | None = None
) -> Edit:
    """An edit. Of each class that stays the old name, by the new one; of a new or renamed one its prompts and text."""
    before = model.text
    positions = {name: i for i, name in enumerate(before.labels)}
    rows = {name: before.embeddings[positions[old]] for name, old in old_names.items()}
    if encoded is not None:
        rows |= dict(zip(encoded.labels, encoded.embeddings, strict=True))
    old_positions = tuple(positions[old_names[name]] if name in old_names else -1 for name in rows)
    embeddings, scale, bias = np.array([*rows.values()], before.embeddings.dtype), before.logit_scale, before.logit_bias
    text = TextFeatures.of_stored_rows(tuple(rows), embeddings, scale, bias, before.tower, before.order)
    kept = {name: model.prompts[old] for name, old in old_names.items() if old in model.prompts}
    return Edit(text, old_positions, {**kept, **(prompts or {})})


# ---- Edits of shots ----


@_refusing_damage()
def with_examples(model: Model, edit: Edit, examples: FeatureSet, rule: ConflictRule) -> tuple[Edit, dict[str, Any]]:
    """Add labelled pictures that are no shots with these labels yet; also counts and sources, for the history."""
    support, sources = model.support, examples.provenance["sources"]
    duplicates = find_duplicates(support.final, examples.final)
    new_labels, new_rows, n_known = dict[int, Label](), list[int](), 0
    for i, same in enumerate(find_duplicates(examples.final, examples.final)):
        label, first = set(examples.class_names_of(i)), min([i, *same])
        if first != i:
            if set(examples.class_names_of(first)) != label:
                raise InputError(f"{sources[i]} and {sources[first]} are one picture, but have two labels: give one")
            continue
        old_labels = [set(support.class_names_of(row)) for row in duplicates[i]]
        if rule == "refuse" and old_labels and label not in old_labels:
            raise InputError(
                f"{sources[i]} is a shot of '{', '.join(sorted(old_labels[0])) or 'no class'}' already, so it can't "
                f"be added to '{', '.join(sorted(label))}': correct it with correct(...), 'clipadapter correct', or "
                "leave it out"
            )
        if not old_labels:
            new_rows.append(i)
        changed: dict[int, Label] = {}
        for row, old in zip(duplicates[i], old_labels, strict=True):
            new = {"refuse": old, "replace": label, "merge": old | label}[rule]
            if new != old:
                changed[row] = next(iter(new)) if support.targets is None else tuple(sorted(new))
        new_labels |= changed
        n_known += bool(old_labels) and not changed
    provenance = {**examples.provenance, "sources": [sources[i] for i in new_rows]}
    added = replace(examples.take(new_rows), provenance=provenance) if new_rows else None
    listed = [sources[i] for i, rows in enumerate(duplicates) if not rows or new_labels.keys() & set(rows)]
    facts: dict[str, Any] = {"pictures": len(new_rows), "relabelled": len(new_labels), "known": n_known}
    facts["sources"] = listed[:MAX_LISTED_SOURCES]
    if examples.provenance["skipped"]:
        facts["skipped"] = len(examples.provenance["skipped"])
    return replace(edit, new_labels=new_labels, added=added), facts


def find_duplicates(shots: NDArray[Any], features: NDArray[Any]) -> list[list[int]]:
    """For each of (m, d) features, the rows of (n, d) shots that are the same picture, up to rounding of backends.

    >>> find_duplicates(np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 2.0]]), np.array([[0.0, 2.0001], [1.0, 1.0]]))
    [[1, 2], []]
    """
    rows = np.asarray(shots, np.float32)
    directions = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    duplicates: list[list[int]] = []
    for start in range(0, len(features), ROWS_PER_BLOCK):
        block = np.asarray(features[start : start + ROWS_PER_BLOCK], np.float32)
        lengths = np.linalg.norm(block, axis=1)
        # One matrix product finds the candidates; only these few are subtracted, which float32 resolves better.
        is_candidate = block @ directions.T >= MIN_CANDIDATE_COSINE * lengths[:, None]
        for feature, length, candidates in zip(block, lengths, is_candidate, strict=True):
            positions = np.flatnonzero(candidates)
            distances = np.linalg.norm(rows[positions] - feature, axis=1)
            duplicates.append([int(i) for i in positions[distances <= MAX_RELATIVE_DISTANCE * length]])
    return duplicates


# ---- Apply an edit ----


def check_editable(model: Model, edit: Edit) -> None:
    """Refuse an edit of a model whose head can't be updated."""
    head = model.head
    if not len(model.support):
        names, pairs = model.text.labels, list(zip(edit.text.labels, edit.old_positions, strict=True))
        removes_class = sum(i >= 0 for _, i in pairs) < len(names)
        renames_class = any(i >= 0 and name != names[i] for name, i in pairs)
        is_updatable = isinstance(head, IncrementalHead) and head.is_updatable
        if removes_class or (renames_class and not isinstance(head, ExactIncrementalHead)) or not is_updatable:
            raise InputError(
                "this model was saved without its shots (fit --no-support), so it can't be changed: fit it again"
            )
    else:
        refuse_update(type(head).__name__, transductive=head.transductive, tunes_encoder=head.tunes_encoder)


@_refusing_damage()
def apply_edit(model: Model, edit: Edit) -> Model:
    """The edited model, as if it had been fitted to the new classes and shots; see `Head.fit_from`."""
    if len(edit.text.labels) < 2:
        raise InputError("a classifier needs two classes or more: add a class before you remove this one")
    check_editable(model, edit)
    edited = replace(model, text=edit.text, prompts=edit.prompts)
    if not len(model.support):
        return _edit_without_support(edited, model, edit)
    support = edit_support(model, edit)
    if not len(support):
        raise InputError("no shot would be left, but a model needs at least one")
    settings = fit_settings(model)
    options = replace(settings.uncertainty, costs=_edit_costs(settings.uncertainty.costs, edit.old_positions))
    fit = ShotFit(support, edit.text, options, negatives_of(model, edit.text), settings.seed)
    head = clone(model.head)
    if options.sets == "split":  # the head is fitted to half of the shots, and which half depends on all of them
        result = fit.fit(head, model.head.kept_pictures_)
    else:
        result = fit.learn(head.fit_from(model.head, support.X, support.labels, text=edit.text, blocks=support.blocks))
    before, after = model.head.kept_pictures_, result.head.kept_pictures_
    if before is not None and after is not None and np.array_equal(before, after):
        result.head.kept_pictures_ = before  # the history has both models in memory
    return replace(edited, support=support, **result._asdict())


def edit_support(model: Model, edit: Edit) -> FeatureSet:
    """The support set after an edit: the shots that stay in their order, then the new ones."""
    support, names = model.support, edit.text.labels
    new_name = {model.text.labels[old]: name for name, old in zip(names, edit.old_positions, strict=True) if old >= 0}
    old_names = [support.class_names_of(i) for i in range(len(support))]
    old_labels = [tuple(new_name[name] for name in each if name in new_name) for each in old_names]
    # A picture that may have several labels stays a shot without its last one.
    rows = [i for i, label in enumerate(old_labels) if label or support.targets is not None]
    labels: list[Label] = [edit.new_labels.get(i, old_labels[i]) for i in rows]
    old_sources = list(support.provenance.get("sources", ()))
    sources = [old_sources[i] for i in rows] if len(old_sources) == len(support) else [""] * len(rows)
    X = support.X[rows]
    if edit.added is not None:
        X = np.concatenate([X, edit.added.X])
        labels += [edit.added.class_names_of(i) for i in range(len(edit.added))]
        sources += edit.added.provenance.get("sources", [""] * len(edit.added))
    provenance = {key: value for key, value in support.provenance.items() if key not in PER_FIT_FACTS}
    provenance["sources"] = sources
    if support.targets is not None:
        targets = label_matrix([label_names(label) for label in labels], names)
        return FeatureSet(X, (), names, provenance, targets, support.blocks)
    y = tuple(next(iter(label_names(label))) for label in labels)
    return FeatureSet(X, y, names, provenance, blocks=support.blocks)


def _edit_costs(costs: ArrayLike | None, old_positions: Sequence[int]) -> NDArray[Any] | None:
    """Misclassification costs (c, c) of the classes after an edit; those of a new class are the highest of all."""
    if costs is None:
        return None
    before, positions = np.asarray(costs, np.float64), np.asarray(old_positions)
    after = np.full((len(positions), len(positions)), before.max())
    np.fill_diagonal(after, 0.0)
    known = np.flatnonzero(positions >= 0)
    after[np.ix_(known, known)] = before[np.ix_(positions[known], positions[known])]
    return after


def _edit_without_support(edited: Model, model: Model, edit: Edit) -> Model:
    """Edit a model that was saved without shots: only its head can be updated."""
    head, names = model.head, edit.text.labels
    assert isinstance(head, IncrementalHead)
    updated, text = copy.deepcopy(head), edit.text if head.has_text else None
    if isinstance(updated, ExactIncrementalHead):
        updated.remap_classes(names, edit.old_positions, text)
    if edit.added is not None:
        updated.partial_fit(edit.added.X, edit.added.y, text=text)
    old_counts = model.support.shot_counts
    positions = zip(names, edit.old_positions, strict=True)
    counts = {name: old_counts[model.text.labels[old]] if old >= 0 else 0 for name, old in positions}
    for name in () if edit.added is None else edit.added.y:
        counts[name] += 1
    provenance = {**model.support.provenance, "shots": counts}
    support = FeatureSet(model.support.X, (), names, provenance, blocks=model.support.blocks)
    # All but the temperature was learned for the classes of before.
    calibrator = replace(model.uncertainty.calibrator, weight=None, bias=None)
    uncertainty = Uncertainty(calibrator, decisions=DecisionOptions())
    return replace(edited, head=updated, support=support, uncertainty=uncertainty, fold_heads=())


# ---- The pictures of an edit ----


def read_examples(
    reader: Reader, model: Model, edit: Edit, images: Sequence[ImageSource], labels: Sequence[Label], *, strict: bool
) -> FeatureSet:
    """Features of labelled pictures for an edit, in the views of the fit. What must be refused is refused before."""
    support = model.support
    check_editable(model, edit)
    if support.targets is not None:
        labels = [label_names(label) for label in labels]
    elif is_multilabel(labels):
        raise InputError("some pictures have a list of labels, but the model gives one: give one class name for each")
    for name in collect_class_names(labels):
        if name not in edit.text.labels:
            error = unknown("class", name, list(edit.text.labels))
            raise UnknownNameError(f"{error}; a new one is added with add_class, 'clipadapter add-class'")
    views = replace(fit_settings(model).views, count=support.X.shape[1] if support.X.ndim == 3 else 1)
    extraction = reader.extract(images, views, strict=strict)
    return build_feature_set(extraction, images, labels, edit.text.labels, views, reader.active.info)


def text_to_fit(reader: Reader, head: Head, text: TextFeatures, prompts: Prompts) -> TextFeatures:
    """Class text with the single prompts for a head that reads them: those of a loaded model are encoded."""
    if not head.reads_prompts or text.prompts is not None or not reader.active.has_text:
        return text
    return text.with_prompts(reader.encode({name: prompts[name] for name in text.labels}).prompts)
