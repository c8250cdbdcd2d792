"""A saved model of pictures with several labels on a test part, beside zero-shot and a linear probe."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipadapter.bench.methods import BASELINES, registered_name
from clipadapter.bench.run import library_versions
from clipadapter.bench.score import score_multilabel
from clipadapter.classifier import FewShotClassifier
from clipadapter.data import Dataset
from clipadapter.errors import InputError
from clipadapter.files import write_atomically
from clipadapter.heads import create_head
from clipadapter.metrics import MultiLabelEvaluation


@dataclass(frozen=True, eq=False)
class MultiLabelModelEvaluation:
    """What `evaluate_multilabel_model` gives.

    Args:
        head: the model's head.
        data: name of the data.
        n_test: test pictures that could be read.
        model: figures of the model.
        baselines: figures of zero-shot and the linear probe; none if the model was saved without its shots.
        skipped: (name, reason) of test pictures that can't be read.
        facts: what else is worth writing down.
    """

    head: str
    data: str
    n_test: int
    model: MultiLabelEvaluation
    baselines: dict[str, MultiLabelEvaluation]
    skipped: list[tuple[str, str]]
    facts: dict[str, Any]

    @property
    def scores(self) -> dict[str, MultiLabelEvaluation]:
        """The model first, then the baselines."""
        return {f"this model ({self.head})": self.model, **self.baselines}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "head": self.head,
            "data": self.data,
            "n_test": self.n_test,
            "skipped": [{"path": name, "reason": reason} for name, reason in self.skipped],
            "model": self.model.to_dict(),
            "baselines": {name: found.to_dict() for name, found in self.baselines.items()},
            **self.facts,
        }

    def write(self, folder: Path) -> list[Path]:
        """Write ``metrics.json``.

        Raises:
            InputError: if the folder can't be written.
        """
        return [write_atomically(folder / "metrics.json", json.dumps(self.to_dict(), indent=1) + "\n")]


def evaluate_multilabel_model(model: FewShotClassifier, dataset: Dataset) -> MultiLabelModelEvaluation:
    """Measure a model of pictures with several labels, and zero-shot and a linear probe beside it.

    Args:
        model: fitted to such pictures.
        dataset: test pictures with all their labels; unreadable ones are left out and named.

    Raises:
        InputError: if the model gives one label a picture, or a label is no class of it.
        DataError: if labels are not known, or no picture can be read.
    """
    if model.uncertainty_.multilabel is None:
        raise InputError(
            f"the pictures of '{dataset.name}' have several labels each, but the model gives one: fit it to a table "
            "with the column 'labels' too"
        )
    names = model.class_names_
    strange = sorted({label for labels in dataset.label_sets for label in labels} - set(names))
    if strange:
        raise InputError(f"the test pictures have labels that are no class of the model: {', '.join(strange[:5])}")
    test = model.extract_features(dataset.paths, dataset.label_sets, names, views=1).mark_for_evaluation()
    return MultiLabelModelEvaluation(
        head=registered_name(model.head_),
        data=dataset.name,
        n_test=len(test),
        model=score_multilabel(model, test),
        baselines={name: score_multilabel(one, test) for name, one in _baselines(model, BASELINES)},
        skipped=list(test.provenance["skipped"]),
        facts={
            "params": model.head_.get_params(deep=False),
            "encoder": {"name": model.encoder_.info.name, "fingerprint": model.encoder_.info.fingerprint},
            "shots": model.support_.counts,
            "versions": library_versions(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )


def _baselines(model: FewShotClassifier, names: Sequence[str]) -> list[tuple[str, FewShotClassifier]]:
    """Other heads, fitted to the model's shots."""
    if not len(model.support_):
        return []
    fitted = [(name, FewShotClassifier(model.encoder_, create_head(name), cache=None)) for name in names]
    return [(name, one.fit_features(model.support_, model.text_)) for name, one in fitted]
