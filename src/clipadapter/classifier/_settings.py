"""How a model was fitted, as it is saved with it, so that it can be changed in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from clipadapter.classifier._uncertainty import Others
from clipadapter.data import get_templates
from clipadapter.data.prompts import clean_name
from clipadapter.errors import InputError
from clipadapter.features import ViewSpec
from clipadapter.heads import TextFeatures
from clipadapter.persistence import Model
from clipadapter.uncertainty import UncertaintyOptions, select_negative_labels

KEY = "fit"
"""Where it lies in the provenance of the shots."""
LEARNED = {
    **{name: name for name in ("calibration", "sets", "by_class", "score")},
    "negative_labels": "distractors",
}
"""Options that say how uncertainty is learned, with their keys in saved models."""


@dataclass(frozen=True, eq=False)
class Settings:
    """What a fit hangs on beside the shots and the head.

    Args:
        templates: that class names are put into.
        views: of each shot.
        uncertainty: what is learned from held-out shots, and asked for by default.
        seed: of what is held out.
    """

    templates: tuple[str, ...] = ("a photo of a {}.",)
    views: ViewSpec = ViewSpec()
    uncertainty: UncertaintyOptions = UncertaintyOptions()
    seed: int = 0

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        uncertainty = {key: getattr(self.uncertainty, name) for name, key in LEARNED.items()}
        return {"templates": list(self.templates), "views": asdict(self.views), "trust": uncertainty, "seed": self.seed}


def settings_of(model: Model) -> Settings:
    """How a model was fitted; where an older one does not say, what its other parts show, else the defaults.

    Raises:
        InputError: if what it says can't be.
    """
    raw, uncertainty = model.support.provenance.get(KEY), model.uncertainty
    asked: dict[str, Any] = {
        "reject": uncertainty.decisions.reject,
        "coverage": uncertainty.decisions.coverage,
        "costs": uncertainty.decisions.costs,
    }
    if not isinstance(raw, Mapping):
        sets = "cross" if uncertainty.conformal is None else uncertainty.conformal.method
        return Settings(templates_in(model.prompts), uncertainty=UncertaintyOptions(**asked, sets=sets))
    try:
        views = dict(raw["views"])
        spec = ViewSpec(**{**views, "scale": tuple(views["scale"]), "ratio": tuple(views["ratio"])})
        learned = {name: raw["trust"][key] for name, key in LEARNED.items()}
        return Settings(get_templates(raw["templates"]), spec, UncertaintyOptions(**asked, **learned), int(raw["seed"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"what the model says of its fit is damaged ({error!r}): fit it again") from error


def templates_in(prompts: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The templates that all prompts seem to be made of; the default if classes have sentences of their own.

    >>> templates_in({"cat": ["a photo of a cat."], "guinea_pig": ["a photo of a guinea pig."]})
    ('a photo of a {}.',)
    """
    found = {
        tuple(text.replace(clean_name(name), "{}") for text in texts)
        for name, texts in prompts.items()
        if all(text.count(clean_name(name)) == 1 for text in texts)
    }
    return next(iter(found)) if len(found) == 1 else Settings.templates


def others_of(model: Model, text: TextFeatures) -> Others:
    """Pictures and names of none of the classes that the model was given; names near a new class are left out.

    Args:
        model: as it was.
        text: of its classes from now on.
    """
    rejector = model.uncertainty.rejector
    if rejector is None:
        return Others()
    memory, names = rejector.memory, rejector.names
    if memory.negative_labels is None:
        return Others(memory.outliers)
    kept = select_negative_labels(text.labels, text.embeddings, names, np.asarray(memory.negative_labels))
    return Others(memory.outliers, tuple(names[i] for i in kept), memory.negative_labels[kept])
