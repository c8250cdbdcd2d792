"""A fitted model, changed: shots that come, go or get another label; classes that come, go or get another name.

Works on features and class text alone, so that no picture and no tower is needed but for what is new.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone

from clipadapter.classifier._pictures import Label, names_of
from clipadapter.classifier._settings import others_of, settings_of
from clipadapter.classifier._uncertainty import Fitted, fit_trusted, trusted
from clipadapter.data import label_matrix
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Exact, Head, Streaming, TextFeatures
from clipadapter.persistence import Model
from clipadapter.uncertainty import Calibrator, DecisionOptions, Uncertainty

OF_THE_FIT = ("rows", "computed")
"""Of the provenance, what was of the pictures that were given to `fit`."""


@dataclass(frozen=True, eq=False)
class Edit:
    """What becomes of a model.

    Args:
        text: class text of the classes from now on; their order is that of the logits.
        origin: where each of them was among the classes before, -1 for a new one.
        prompts: texts of each class.
        gone: rows of the shots that are taken out; all of a class that is left out are among them.
        labels: the class, or all classes, that shots have from now on, by row.
        more: further shots; their classes are those of the text.
    """

    text: TextFeatures
    origin: tuple[int, ...]
    prompts: Mapping[str, Sequence[str]]
    gone: frozenset[int] = frozenset()
    labels: Mapping[int, Label] = field(default_factory=dict)
    more: FeatureSet | None = None


def edited(model: Model, edit: Edit) -> Model:
    """The model with a change, as if it had been fitted so.

    Heads with a closed form answer as a fit from scratch does, to rounding; others begin where they ended.

    Raises:
        InputError: if the head can't learn on, or fewer than two classes or no shot would be left.
    """
    if len(edit.text.labels) < 2:
        raise InputError("a classifier needs two classes or more: add one before this one is removed")
    changed = replace(model, text=edit.text, prompts=edit.prompts)
    if not len(model.support):
        return _without_shots(changed, model, edit)
    if model.head.transductive or model.head.tunes_encoder:
        what = "learned from pictures without labels" if model.head.transductive else "tuned the encoder on pictures"
        raise InputError(f"{type(model.head).__name__} {what}, which are not kept: fit anew with all pictures")
    support = changed_support(model.support, edit)
    if not len(support):
        raise InputError("no shot would be left: a model needs some")
    found = _fitted(model, edit, support)
    return replace(changed, head=found.head, support=support, uncertainty=found.uncertainty, folds=found.folds)


def changed_support(support: FeatureSet, edit: Edit) -> FeatureSet:
    """The shots after a change: those that stay in their order, then new ones."""
    names = edit.text.labels
    now = {support.class_names[place]: names[i] for i, place in enumerate(edit.origin) if place >= 0}
    rows = [i for i in range(len(support)) if i not in edit.gone]
    labels: list[Label] = [
        edit.labels[i] if i in edit.labels else tuple(now[name] for name in support.names_of(i) if name in now)
        for i in rows
    ]
    sources = list(support.provenance.get("sources", ()))
    kept = [sources[i] for i in rows] if len(sources) == len(support) else [""] * len(rows)
    X = support.X[rows]
    if edit.more is not None:
        X = np.concatenate([X, edit.more.X])
        labels += [edit.more.names_of(i) for i in range(len(edit.more))]
        kept += edit.more.provenance.get("sources", [""] * len(edit.more))
    facts = {key: value for key, value in support.provenance.items() if key not in OF_THE_FIT} | {"sources": kept}
    if support.targets is not None:
        return FeatureSet(X, (), names, facts, label_matrix([names_of(label) for label in labels], names))
    return FeatureSet(X, tuple(next(iter(names_of(label))) for label in labels), names, facts)


def _fitted(model: Model, edit: Edit, support: FeatureSet) -> Fitted:
    settings, others = settings_of(model), others_of(model, edit.text)
    options = replace(settings.uncertainty, costs=_costs(settings.uncertainty.costs, edit.origin))
    fresh = clone(model.head)
    if options.sets == "split":  # half of the shots are fitted to: which half hangs on all of them
        return fit_trusted(fresh, support, edit.text, None, options, others, settings.seed)
    head = _recursive(model, edit)
    if head is None:
        head = fresh.fit_from(model.head, support.X, support.labels, text=edit.text)
    return trusted(head, support, edit.text, options, others, settings.seed)


def _costs(costs: ArrayLike | None, origin: Sequence[int]) -> NDArray[Any] | None:
    """Costs of mistakes (c, c) between the classes from now on; those of a new class are as high as any."""
    if costs is None:
        return None
    before, places = np.asarray(costs, np.float64), np.asarray(origin)
    found = np.full((len(places), len(places)), before.max())
    np.fill_diagonal(found, 0.0)
    known = np.flatnonzero(places >= 0)
    found[np.ix_(known, known)] = before[np.ix_(places[known], places[known])]
    return found


def _recursive(model: Model, edit: Edit) -> Head | None:
    """The head brought up to date from what it keeps of its shots; None if it must be fitted to all of them."""
    head, support = model.head, model.support
    if not isinstance(head, Exact) or not head.updatable or support.targets is not None:
        return None
    out = sorted({*edit.gone, *edit.labels})
    if len(out) == len(support):
        return None
    before = _text_for(head, model.text)
    found = copy.deepcopy(head)
    if out:
        found.unlearn(support.X[out], [support.y[i] for i in out], text=before)
    text = _text_for(head, edit.text)
    again = {i: next(iter(names_of(label))) for i, label in edit.labels.items()}
    more = edit.more is not None and len(edit.more) > 0
    # New classes can come with their shots.
    if text is None or not (again or more) or _leaves_out(edit, model.text) or _renames(edit, model.text):
        found.rearrange(edit.text.labels, edit.origin, text)
    if again:
        found.partial_fit(support.X[list(again)], list(again.values()), text=text)
    if edit.more is not None and more:
        found.partial_fit(edit.more.X, edit.more.y, text=text)
    return found


def _leaves_out(edit: Edit, before: TextFeatures) -> bool:
    """Whether a class goes."""
    return len(set(edit.origin) - {-1}) < len(before.labels)


def _renames(edit: Edit, before: TextFeatures) -> bool:
    """Whether a class that stays has another name."""
    return any(i >= 0 and name != before.labels[i] for name, i in zip(edit.text.labels, edit.origin, strict=True))


def _text_for(head: Streaming, text: TextFeatures) -> TextFeatures | None:
    return text if head.with_text else None


def _without_shots(changed: Model, model: Model, edit: Edit) -> Model:
    """A model that kept no shots: what its head can do by itself; what was learned of trust is of other classes."""
    head = model.head
    names = edit.text.labels
    able = isinstance(head, Exact) or (isinstance(head, Streaming) and not _renames(edit, model.text))
    if _leaves_out(edit, model.text) or not able or not isinstance(head, Streaming) or not head.updatable:
        raise InputError(
            "this model was saved without its shots (fit --no-support), so it can't be changed: fit it again"
        )
    found, text = copy.deepcopy(head), _text_for(head, edit.text)
    if isinstance(found, Exact):
        found.rearrange(edit.text.labels, edit.origin, text)
    if edit.more is not None:
        found.partial_fit(edit.more.X, edit.more.y, text=text)
    calibrator = Calibrator(model.uncertainty.calibrator.temperature, n=model.uncertainty.calibrator.n)
    counts = dict(model.support.provenance.get("shots", {}))
    had = [counts.get(model.text.labels[place], 0) if place >= 0 else 0 for place in edit.origin]
    now = dict(zip(names, had, strict=True))
    for name in () if edit.more is None else edit.more.y:
        now[name] += 1
    empty = FeatureSet(model.support.X, (), names, {**model.support.provenance, "shots": now})
    return replace(
        changed, head=found, support=empty, uncertainty=Uncertainty(calibrator, decisions=DecisionOptions()), folds=()
    )
