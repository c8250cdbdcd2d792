"""Options that say how a model is fitted: prompts, views, and the head with its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipadapter.cli.options import FILE, bundle
from clipadapter.errors import DataError, InputError
from clipadapter.parsing import parse_json
from clipadapter.registry import unknown

if TYPE_CHECKING:
    from clipadapter.data import Dataset
    from clipadapter.features import PerEpochViews, ViewSpec
    from clipadapter.heads import Head


@dataclass(frozen=True)
class Prompts:
    """What the text tower reads.

    Args:
        templates: names of sets, or texts.
        descriptions: JSON file with sentences by class, or None.
        class_names: JSON file with readable class names by folder, or None.
    """

    templates: Sequence[str] = ("default",)
    descriptions: Path | None = None
    class_names: Path | None = None

    def rename(self, dataset: Dataset) -> Dataset:
        """The data set under its readable class names."""
        from clipadapter.data import read_class_names

        return dataset.rename(read_class_names(self.class_names)) if self.class_names else dataset

    def read_descriptions(self, class_names: Sequence[str]) -> Mapping[str, Sequence[str]] | None:
        """The descriptions, checked together with the templates.

        Raises:
            InputError: if a template or a class in the descriptions is wrong.
        """
        from clipadapter.data import class_prompts, read_descriptions

        found = read_descriptions(self.descriptions) if self.descriptions else None
        class_prompts(class_names, self.templates, found)
        return found


class_names_option = click.option(
    "--class-names", type=FILE, help='JSON file with readable names: {"folder": "name", ...}.'
)
prompt_options = bundle(
    "prompts",
    Prompts,
    click.option(
        "--templates",
        multiple=True,
        default=["default"],
        metavar="NAME|TEXT",
        help="Template set such as imagenet7, or a text such as 'a sketch of a {}.'; may be given many times.",
    ),
    click.option("--descriptions", type=FILE, help='JSON file with sentences instead: {"class": ["...", ...], ...}.'),
    class_names_option,
)
"""``--templates``, ``--descriptions``, ``--class-names``; as ``prompts``."""


@dataclass(frozen=True)
class Views:
    """Views of each shot.

    Args:
        views: how many, the plain picture included; or "per-epoch".
        crop: name of the crop scale of a family of papers, or None.
        view_scale: smallest and largest share of the picture that an augmented view shows, or None.
    """

    views: int | str = 1
    crop: str | None = None
    view_scale: tuple[float, float] | None = None

    def spec(self, seed: int) -> ViewSpec:
        """A number of views, as the extraction takes it.

        Raises:
            InputError: if both a name and a scale are given, or the scale is out of range.
        """
        from clipadapter.features import ViewSpec

        count = self.views if isinstance(self.views, int) else 1
        if self.view_scale is None:
            return ViewSpec.from_crop(self.crop or "tip", count=count, seed=seed)
        if self.crop is not None:
            raise InputError("--crop and --view-scale both set the crop scale: give one of them")
        return ViewSpec(count=count, scale=self.view_scale, seed=seed)

    def training_spec(self, seed: int) -> ViewSpec | PerEpochViews:
        """The same, or a view for each epoch of training.

        Raises:
            InputError: as `spec`.
        """
        from clipadapter.features import PER_EPOCH, PerEpochViews

        spec = self.spec(seed)
        return PerEpochViews(spec) if self.views == PER_EPOCH else spec


class ViewCount(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A number of views from 1, or "per-epoch"."""

    name = "views"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The number, or the word; an error of usage for anything else."""
        if str(value) == "per-epoch":
            return "per-epoch"
        try:
            return int(click.IntRange(1).convert(value, param, ctx))
        except click.BadParameter:
            self.fail(f"{value!r} is neither a number from 1 nor per-epoch", param, ctx)


_crop_options = (
    click.option(
        "--crop",
        type=click.Choice(["tip", "coop"]),
        help="Crop scale of the views: tip (default) for 0.5 to 1 of the picture, coop for 0.08 to 1.",
    ),
    click.option("--view-scale", type=float, nargs=2, metavar="LO HI", help="Any other crop scale, such as 0.3 1."),
)
view_options = bundle(
    "views",
    Views,
    click.option(
        "--views",
        type=click.IntRange(1),
        metavar="N",
        default=1,
        show_default=True,
        help="Views of each picture: the plain one and random crops.",
    ),
    *_crop_options,
)
"""``--views``, ``--crop``, ``--view-scale``; as ``views``."""
training_view_options = bundle(
    "views",
    Views,
    click.option(
        "--views",
        type=ViewCount(),
        metavar="N|per-epoch",
        default=1,
        show_default=True,
        help="Views of each picture: the plain one and random crops, one drawn in each step. per-epoch: a new crop for "
        "each epoch of the head, as the papers train; the cost is printed before it starts.",
    ),
    *_crop_options,
)
"""The same, where ``--views`` may be ``per-epoch``."""


@dataclass(frozen=True)
class HeadChoice:
    """A head by name, and its parameters.

    Args:
        head: registered name.
        settings: ``key=value`` texts.
        grids: ``key=value,value,...`` texts.
        preset: name of published parameters, or None.
        recipe: "official" or "paper", or None.
    """

    head: str = "auto"
    settings: Sequence[str] = field(default_factory=tuple)
    grids: Sequence[str] = field(default_factory=tuple)
    preset: str | None = None
    recipe: str | None = None

    def params(self) -> dict[str, Any]:
        """The parameters: those of the preset or recipe, and over them the settings, each a JSON scalar or else text.

        Raises:
            InputError: if a setting is not ``key=value``, or both a preset and a recipe are given.
            UnknownNameError: if there is no such head, or it has no such parameter, preset or recipe.
        """
        from clipadapter.heads import head_info

        cls = head_info(self.head).cls
        if self.preset is not None and self.preset not in cls.presets:
            raise unknown(f"preset of {self.head}", self.preset, sorted(cls.presets))
        if self.recipe is not None and self.recipe not in cls.recipes():
            raise unknown(f"recipe of {self.head}", self.recipe, list(cls.recipes()))
        if self.preset is not None and self.recipe is not None:
            raise InputError(f"give --preset or --recipe, not both. {cls.preset_note}")
        params = dict(cls.presets[self.preset]) if self.preset is not None else {}
        if self.recipe is not None:
            defaults = cls().get_params(deep=False)
            made = cls.from_recipe(self.recipe).get_params(deep=False)
            params = {key: value for key, value in made.items() if value != defaults[key]}
        for key, text in self._pairs(self.settings, "--set takes key=value, such as seed=1"):
            params[key] = _scalar(text)
        return params

    def grid(self) -> dict[str, list[Any]]:
        """Values to try, by parameter.

        Raises:
            InputError: if a grid is not ``key=value,value,...``.
            UnknownNameError: if the head has no such parameter.
        """
        pairs = self._pairs(self.grids, "--grid takes key=value,value,... such as alpha=0.5,1,2")
        return {key: [_scalar(value) for value in text.split(",")] for key, text in pairs}

    def _pairs(self, texts: Sequence[str], rule: str) -> list[tuple[str, str]]:
        from clipadapter.heads import head_info

        entry, pairs = head_info(self.head), []
        for given in texts:
            key, equals, text = given.partition("=")
            if not equals:
                raise InputError(f"{rule}, but got '{given}'")
            entry.check_parameter(key)
            pairs.append((key, text))
        return pairs

    def make(self) -> Head:
        """A new head.

        Raises:
            UnknownNameError: as `params`.
        """
        from clipadapter.heads import create_head

        return create_head(self.head, **self.params())


head_options = bundle(
    "head",
    HeadChoice,
    click.option(
        "--head",
        metavar="NAME",
        default="auto",
        show_default=True,
        help="What is fitted; see 'clipadapter heads'.",
    ),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Parameter of the head, such as alpha=0.2; may be given many times.",
    ),
    click.option(
        "--grid",
        "grids",
        multiple=True,
        metavar="KEY=V1,V2,...",
        help="Values to try; the best on held-out shots is taken. May be given many times.",
    ),
    click.option(
        "--recipe",
        type=click.Choice(["official", "paper"]),
        help="Parameters of the authors' code (official) or of the paper, for heads that have them; 'clipadapter heads "
        "NAME' says which.",
    ),
    click.option(
        "--preset",
        metavar="NAME",
        help="Published parameters for a data set, such as dtd; 'clipadapter heads NAME' says how they were found.",
    ),
)
"""``--head``, ``--set``, ``--grid``, ``--recipe`` and ``--preset``; as ``head``."""


def _scalar(text: str) -> Any:
    if text in ("NaN", "Infinity", "-Infinity"):
        return float(text)
    try:
        value = parse_json(text, "the value")
    except DataError:
        return text
    return text if isinstance(value, dict | list) else value
