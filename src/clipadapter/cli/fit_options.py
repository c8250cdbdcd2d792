"""Options that say how a model is fitted: prompts, views, and the head with its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from clipadapter.cli.options import COUNT, FILE, HEAD, Parsed, option
from clipadapter.errors import DataError, InputError
from clipadapter.heads.registry import HEADS
from clipadapter.utils.parsing import parse_json
from clipadapter.utils.registry import unknown

if TYPE_CHECKING:
    from clipadapter.data import Dataset
    from clipadapter.features import PerEpochViews, ViewSpec
    from clipadapter.heads import Head


TEXT_HEADING = "Class names and text"
class_names_option = option(
    "--class-names",
    type=FILE,
    help='JSON file with readable class names: {"folder": "name", ...}.',
    heading=TEXT_HEADING,
)


@dataclass(frozen=True)
class PromptOptions:
    """The texts that the text tower encodes."""

    HEADING: ClassVar[str] = TEXT_HEADING
    templates: Sequence[str] = option(
        "--templates",
        default=("default",),
        multiple=True,
        metavar="NAME|TEXT",
        help="Template set such as imagenet7, or a template such as 'a sketch of a {}.'. May be repeated.",
    )
    descriptions: Path | None = option(
        "--descriptions",
        type=FILE,
        help='JSON file with sentences in place of the templates: {"class": ["...", ...], ...}.',
    )
    class_names: Path | None = class_names_option

    def rename_classes(self, dataset: Dataset) -> Dataset:
        """Return the data set with readable class names."""
        return rename_classes(dataset, self.class_names)

    def classifier_parameters(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return the parameters of `FewShotClassifier` about prompts, checked."""
        from clipadapter.data import class_prompts, read_descriptions

        class_prompts(class_names, self.templates)
        descriptions = read_descriptions(self.descriptions) if self.descriptions else None
        try:
            class_prompts(class_names, self.templates, descriptions)
        except InputError as error:
            raise type(error)(f"{self.descriptions}: {error}") from error
        return {"templates": self.templates, "descriptions": descriptions}


def rename_classes(dataset: Dataset, class_names: Path | None) -> Dataset:
    """Return the data set with the class names of a JSON file, or unchanged if there is none."""
    from clipadapter.data import read_class_names

    return dataset.rename(read_class_names(class_names)) if class_names else dataset


def _parse_views(text: Any) -> int | str:
    if text == "per-epoch":
        return text
    try:
        return int(COUNT.convert(text, None, None))
    except click.BadParameter:
        raise click.BadParameter(f"{text!r} is neither a number of 1 or more nor per-epoch") from None


@dataclass(frozen=True)
class ViewOptions:
    """Views of each picture: how many, and how large a part of the picture a random crop shows."""

    HEADING: ClassVar[str] = "Views"
    views: int | str = option(
        "--views", default=1, type=COUNT, metavar="N", help="Views per picture: the plain one and N - 1 random crops."
    )
    crop: str | None = option(
        "--crop",
        type=click.Choice(["tip", "coop"]),
        help="Area of the random crops: tip (default) for 0.5 to 1 of the picture, coop for 0.08 to 1.",
    )

    def spec(self, seed: int) -> ViewSpec:
        """Return the views; where each epoch has its own, one of them."""
        from clipadapter.features import ViewSpec

        count = self.views if isinstance(self.views, int) else 1
        return ViewSpec.from_crop(self.crop or "tip", count=count, seed=seed)


@dataclass(frozen=True)
class TrainingViewOptions(ViewOptions):
    """The same for the shots of a fit, where each epoch may train on its own view."""

    views: int | str = option(
        "--views",
        default=1,
        type=Parsed(_parse_views),
        metavar="N|per-epoch",
        help="Views per picture: the plain one and N - 1 random crops; each training step uses one of them. "
        "per-epoch: a new crop in each epoch, as in the papers; the cost is printed before the fit starts.",
    )

    def training_spec(self, seed: int) -> ViewSpec | PerEpochViews:
        """Return a fixed number of views, or one view per epoch."""
        from clipadapter.features import PER_EPOCH, PerEpochViews

        return PerEpochViews(self.spec(seed)) if self.views == PER_EPOCH else self.spec(seed)


@dataclass(frozen=True)
class HeadOptions:
    """A head by name, and its parameters."""

    HEADING: ClassVar[str] = "Head"
    name: str = option(
        "--head", default="auto", type=HEAD, metavar="NAME", help="Head to fit; 'clipadapter heads' lists them."
    )
    settings: Sequence[str] = option(
        "--set", default=(), multiple=True, metavar="KEY=VALUE", help="Parameter, such as alpha=0.2. May be repeated."
    )
    grids: Sequence[str] = option(
        "--grid",
        default=(),
        multiple=True,
        metavar="KEY=V1,V2,...",
        help="Values to try; held-out shots select the best, by fits without --unlabelled. May be repeated.",
    )
    recipe: str | None = option(
        "--recipe",
        type=click.Choice(["official", "paper"]),
        help="Parameters of the authors' code (official) or of the paper. 'clipadapter heads NAME' lists the recipes "
        "of a head.",
    )
    preset: str | None = option(
        "--preset",
        metavar="NAME",
        help="Published parameters for one data set, such as dtd. 'clipadapter heads NAME' says how they were chosen.",
    )

    def check_names(self) -> None:
        """Refuse, without an import of torch, parameters that the head does not take, and values of another type."""
        grids = [(key, value) for key, values in self.grid().items() for value in values]
        for key, value in (*self._settings().items(), *grids):
            HEADS.check_parameter(self.name, key)
            HEADS.check_value(self.name, key, value)

    def classifier_parameters(self) -> dict[str, Any]:
        """Return the parameters of `FewShotClassifier` about the head, with which it can be fitted."""
        grid = self.grid()
        for choice in ({}, *({key: value} for key, values in grid.items() for value in values)):
            self.create(**choice)
        return {"head": self.name, "head_params": self.parameters(), "grid": grid}

    def check_encoders(self, uris: Sequence[str]) -> None:
        """Refuse, without an import of torch, an encoder that the head can't train, as far as its name shows.

        Of several encoders, the one that is trained is known only when they are open.
        """
        from clipadapter.encoders.registry import check_trainable

        declared = HEADS.info(self.name).attributes
        if len(uris) == 1 and declared.get("tunes_encoder"):
            check_trainable(uris[0], "tunable_copy")
        elif len(uris) == 1 and declared.get("needs_tower"):
            check_trainable(uris[0], "text_tower")

    def check_unlabelled(self, is_given: bool) -> None:
        """Refuse a head that lacks pictures without labels, or takes none."""
        declared = HEADS.info(self.name).attributes
        needs, takes = (bool(declared.get(name)) for name in ("transductive", "accepts_unlabelled"))
        if needs and not is_given:
            raise InputError(f"{self.name} is transductive: give the pictures to classify with --unlabelled FOLDER")
        if is_given and not (needs or takes):
            raise InputError(f"{self.name} learns from labelled pictures only: leave --unlabelled out")

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the head: those of the preset or recipe, overridden by the settings."""
        from clipadapter.heads import head_info

        cls, chosen = head_info(self.name).cls, dict[str, Any]()
        for kind, name, known in (("preset", self.preset, cls.presets), ("recipe", self.recipe, cls.recipes)):
            if name is not None and name not in known:
                raise unknown(f"{kind} of {self.name}", name, sorted(known))
            chosen.update({} if name is None else known[name])
        if self.preset is not None and self.recipe is not None:
            raise InputError(f"give --preset or --recipe, not both. {cls.preset_note}")
        return {**chosen, **self._settings()}

    def grid(self) -> dict[str, list[Any]]:
        """Return the values to try, by parameter."""
        texts = split_pairs(self.grids, "--grid takes key=value,value,... such as alpha=0.5,1,2")
        return {key: [parse_value(value) for value in text.split(",")] for key, text in texts}

    def _settings(self) -> dict[str, Any]:
        texts = split_pairs(self.settings, "--set takes key=value, such as seed=1")
        return {key: parse_value(text) for key, text in texts}

    def create(self, **changes: Any) -> Head:
        """Create the head, with some parameters changed."""
        from clipadapter.heads import create_head

        head = create_head(self.name, **{**self.parameters(), **changes})
        head.check_parameters()
        return head


def split_pairs(texts: Sequence[str], rule: str) -> list[tuple[str, str]]:
    """Split texts at their first "="; the rule begins the message about a text that has none.

    >>> split_pairs(["alpha=0.2"], "--set takes key=value")
    [('alpha', '0.2')]
    """
    for text in texts:
        if "=" not in text:
            raise InputError(f"{rule}, but got '{text}'")
    return [(key, value) for key, _, value in (text.partition("=") for text in texts)]


def parse_value(text: str) -> Any:
    """Parse the value of a parameter: a JSON scalar, else the text itself.

    >>> [parse_value(text) for text in ("0.2", "true", "cosine", "[1]")]
    [0.2, True, 'cosine', '[1]']
    """
    if text in ("NaN", "Infinity", "-Infinity"):
        return float(text)
    try:
        value = parse_json(text, "the value")
    except DataError:
        return text
    return text if isinstance(value, dict | list) else value
