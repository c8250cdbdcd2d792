"""Options that say how a model is fitted: prompts, views, and the head with its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from clipadapter.cli.option_types import COUNT, FILE, HEAD
from clipadapter.cli.options import field_option, option
from clipadapter.errors import DataError, InputError
from clipadapter.heads.registry import HEADS
from clipadapter.utils.parsing import parse_json
from clipadapter.utils.registry import unknown

if TYPE_CHECKING:
    from clipadapter.data import Dataset
    from clipadapter.features import PerEpochViews, ViewSpec
    from clipadapter.heads import Head


@dataclass(frozen=True)
class PromptOptions:
    """The texts that the text tower encodes."""

    HEADING: ClassVar[str] = "Class names and text"
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
    class_names: Path | None = option(
        "--class-names", type=FILE, help='JSON file with readable class names: {"folder": "name", ...}.'
    )

    def rename_classes(self, dataset: Dataset) -> Dataset:
        """Return the data set with readable class names."""
        return rename_classes(dataset, self.class_names)

    def classifier_parameters(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return the parameters of `FewShotClassifier` about prompts, checked.

        Raises:
            InputError: if a template or a class in the descriptions is wrong.
        """
        from clipadapter.data import class_prompts, read_descriptions

        class_prompts(class_names, self.templates)
        descriptions = read_descriptions(self.descriptions) if self.descriptions else None
        try:
            class_prompts(class_names, self.templates, descriptions)
        except InputError as error:
            raise type(error)(f"{self.descriptions}: {error}") from error
        return {"templates": self.templates, "descriptions": descriptions}


class_names_option = field_option(PromptOptions, "class_names")


def rename_classes(dataset: Dataset, class_names: Path | None) -> Dataset:
    """Return the data set with the class names of a JSON file, or unchanged if there is none."""
    from clipadapter.data import read_class_names

    return dataset.rename(read_class_names(class_names)) if class_names else dataset


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
    view_scale: tuple[float, float] | None = option(
        "--view-scale", type=float, nargs=2, metavar="LO HI", help="Any other area of the crops, such as 0.3 1."
    )

    def spec(self, seed: int) -> ViewSpec:
        """Return a fixed number of views, as the extraction takes it.

        Raises:
            InputError: if both a name and a scale are given, or the scale is out of range.
        """
        from clipadapter.features import ViewSpec

        count = self.views if isinstance(self.views, int) else 1
        if self.view_scale is None:
            return ViewSpec.from_crop(self.crop or "tip", count=count, seed=seed)
        if self.crop is not None:
            raise InputError("--crop and --view-scale both set the area of the crops: give one of them")
        return ViewSpec(count=count, scale=self.view_scale, seed=seed)


class ViewCount(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A number of views, or "per-epoch"."""

    name = "views"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Return the number or the text; anything else is an error of usage."""
        if str(value) == "per-epoch":
            return "per-epoch"
        try:
            return int(COUNT.convert(value, param, ctx))
        except click.BadParameter:
            self.fail(f"{value!r} is neither a number of 1 or more nor per-epoch", param, ctx)


@dataclass(frozen=True)
class TrainingViewOptions(ViewOptions):
    """The same for the shots of a fit, where each epoch may train on its own view."""

    views: int | str = option(
        "--views",
        default=1,
        type=ViewCount(),
        metavar="N|per-epoch",
        help="Views per picture: the plain one and N - 1 random crops; each training step uses one of them. "
        "per-epoch: a new crop in each epoch, as in the papers; the cost is printed before the fit starts.",
    )

    def training_spec(self, seed: int) -> ViewSpec | PerEpochViews:
        """Return a fixed number of views, or one view per epoch.

        Raises:
            InputError: as `spec`.
        """
        from clipadapter.features import PER_EPOCH, PerEpochViews

        spec = self.spec(seed)
        return PerEpochViews(spec) if self.views == PER_EPOCH else spec


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

    def classifier_parameters(self) -> dict[str, Any]:
        """Return the parameters of `FewShotClassifier` about the head, checked.

        Raises:
            InputError: as `parameters` and `grid`.
            UnknownNameError: as `parameters` and `grid`.
        """
        self.check_values()
        return {"head": self.name, "head_params": self.parameters(), "grid": self.grid()}

    def check_names(self) -> None:
        """Refuse a parameter in ``--set`` or ``--grid`` that the head does not take, without an import of torch.

        A value of another type than the parameter has is refused too.

        Raises:
            InputError: as `parameters` and `grid`.
            UnknownNameError: as `parameters` and `grid`.
        """
        grids = [(key, value) for key, text in self._grids() for value in text.split(",")]
        for key, text in (*self._settings(), *grids):
            HEADS.check_parameter(self.name, key)
            HEADS.check_value(self.name, key, parse_value(text))

    def check_values(self) -> None:
        """Refuse values in ``--set`` or ``--grid`` with which the head can't be fitted, before pictures are read.

        Raises:
            InputError: as `Head.check_parameters`.
        """
        from clipadapter.heads import create_head

        parameters = self.parameters()
        choices = [{}, *({key: value} for key, values in self.grid().items() for value in values)]
        for choice in choices:
            create_head(self.name, **{**parameters, **choice}).check_parameters()

    def check_encoders(self, uris: Sequence[str]) -> None:
        """Refuse an encoder that the head can't train, as far as its name shows, without an import of torch.

        Args:
            uris: of the encoders. Of several, the one that is trained is known only when they are open.

        Raises:
            InputError: if so.
        """
        from clipadapter.encoders.registry import check_trainable

        declared = HEADS.declared_attributes(self.name)
        if len(uris) == 1 and declared.get("tunes_encoder"):
            check_trainable(uris[0], "tunable_copy")
        elif len(uris) == 1 and declared.get("needs_tower"):
            check_trainable(uris[0], "text_tower")

    def check_unlabelled(self, is_given: bool, *, early: bool = False) -> None:
        """Refuse a head that lacks pictures without labels, or takes none.

        Args:
            is_given: whether there are such pictures.
            early: refuse what the source of the head declares, without an import of torch; other heads pass.

        Raises:
            InputError: if it does.
        """
        if early:
            declared = HEADS.declared_attributes(self.name)
            if not declared:
                return
            needs, takes = (bool(declared.get(name)) for name in ("transductive", "accepts_unlabelled"))
        else:
            cls = HEADS.info(self.name).cls
            needs, takes = cls.transductive, cls.accepts_unlabelled
        if needs and not is_given:
            raise InputError(f"{self.name} is transductive: give the pictures to classify with --unlabelled FOLDER")
        if is_given and not (needs or takes):
            raise InputError(f"{self.name} learns from labelled pictures only: leave --unlabelled out")

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the head: those of the preset or recipe, overridden by the settings.

        Raises:
            InputError: if a setting is not ``key=value``, or both a preset and a recipe are given.
            UnknownNameError: if there is no such head, or it has no such parameter, preset or recipe.
        """
        from clipadapter.heads import head_info

        self.check_names()
        cls = head_info(self.name).cls
        if self.preset is not None and self.preset not in cls.presets:
            raise unknown(f"preset of {self.name}", self.preset, sorted(cls.presets))
        if self.recipe is not None and self.recipe not in cls.recipes:
            raise unknown(f"recipe of {self.name}", self.recipe, list(cls.recipes))
        if self.preset is not None and self.recipe is not None:
            raise InputError(f"give --preset or --recipe, not both. {cls.preset_note}")
        params = dict(cls.presets[self.preset]) if self.preset is not None else {}
        if self.recipe is not None:
            defaults = cls().get_params(deep=False)
            of_recipe = cls.from_recipe(self.recipe).get_params(deep=False)
            params = {key: value for key, value in of_recipe.items() if value != defaults[key]}
        return {**params, **{key: parse_value(text) for key, text in self._settings()}}

    def grid(self) -> dict[str, list[Any]]:
        """Return the values to try, by parameter.

        Raises:
            InputError: if a grid is not ``key=value,value,...``.
            UnknownNameError: if the head has no such parameter.
        """
        self.check_names()
        return {key: [parse_value(value) for value in text.split(",")] for key, text in self._grids()}

    def _settings(self) -> list[tuple[str, str]]:
        return split_pairs(self.settings, "--set takes key=value, such as seed=1")

    def _grids(self) -> list[tuple[str, str]]:
        return split_pairs(self.grids, "--grid takes key=value,value,... such as alpha=0.5,1,2")

    def create(self) -> Head:
        """Create the head.

        Raises:
            UnknownNameError: as `parameters`.
        """
        from clipadapter.heads import create_head

        head = create_head(self.name, **self.parameters())
        head.check_parameters()
        return head


def split_pairs(texts: Sequence[str], rule: str) -> list[tuple[str, str]]:
    """Split texts at their first "=".

    >>> split_pairs(["alpha=0.2"], "--set takes key=value")
    [('alpha', '0.2')]

    Raises:
        InputError: if a text has none; the message begins with the rule.
    """
    pairs = []
    for pair in texts:
        key, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"{rule}, but got '{pair}'")
        pairs.append((key, text))
    return pairs


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
