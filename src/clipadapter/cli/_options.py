"""Options that several commands share, and what they stand for.

Options that belong together come as one decorator, which hands them to the command as one object.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipadapter.cli._output import Output, hushed
from clipadapter.errors import InputError
from clipadapter.registry import unknown

if TYPE_CHECKING:
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.data import Dataset
    from clipadapter.encoders import Encoder
    from clipadapter.features import ViewSpec
    from clipadapter.heads import Head

Command = Callable[..., None]
Decorator = Callable[[Command], Command]
FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(path_type=Path)


def bundle(name: str, cls: type[Any], *options: Decorator) -> Decorator:
    """A decorator that adds options and hands their values to the command as one object.

    Args:
        name: of the command's argument.
        cls: a dataclass; its fields are named as the options are, one without an option keeps its default.
        options: decorators made by ``click.option``, in the order of the help.
    """

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def wrapped(**values: Any) -> None:
            own = {part.name: values.pop(part.name) for part in fields(cls) if part.name in values}
            function(**{name: cls(**own)}, **values)

        command: Command = wrapped
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def output_options(function: Command) -> Command:
    """``--json`` and ``--quiet``; the command gets them as ``out``. Put it right above the function."""

    @click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="Write nothing but errors to stderr.")
    @functools.wraps(function)
    def wrapped(as_json: bool, quiet: bool, **values: Any) -> None:
        out = Output(as_json, quiet)
        if click.get_current_context().find_root().params.get("debug"):
            function(out=out, **values)
            return
        with hushed(bars=out.progress):
            function(out=out, **values)

    return wrapped


@dataclass(frozen=True)
class Towers:
    """The encoder that is wanted, and how it is run.

    Args:
        encoder: a URI; None for the one that a model was fitted with.
        device: torch device.
        batch_size: pictures encoded at a time.
        cache: file of the feature store; None is the user's.
        no_cache: keep no features.
    """

    encoder: str | None
    device: str = "cpu"
    batch_size: int = 32
    cache: Path | None = None
    no_cache: bool = False

    @property
    def store(self) -> str | Path | None:
        """The feature store, as `FewShotClassifier` takes it."""
        return None if self.no_cache else self.cache or "auto"

    def open(self, out: Output) -> Encoder:
        """The open encoder; a note says what there is to know of it.

        Raises:
            InputError: if the device can't be used.
        """
        from clipadapter.encoders import create_encoder

        check_device(self.device)
        encoder = create_encoder(self.encoder or "auto", self.device)
        out.note(f"encoder {encoder.info.name}: {encoder.info.note}" if encoder.info.note else "")
        return encoder

    def load(self, folder: Path, **params: Any) -> FewShotClassifier:
        """The model in a folder.

        Args:
            folder: what ``fit`` wrote.
            params: further parameters of `FewShotClassifier`.

        Raises:
            ArtifactError: if there is no sound model, or the encoder is another.
            InputError: if the device can't be used.
        """
        from clipadapter.artifact import read_config
        from clipadapter.classifier import FewShotClassifier

        read_config(folder)  # a wrong folder is told before anything is loaded
        check_device(self.device)
        return FewShotClassifier.load(
            folder,
            encoder=self.encoder,
            device=self.device,
            batch_size=self.batch_size,
            cache=self.store,
            **params,
        )


_DEVICE = click.option("--device", default="cpu", show_default=True, help="Torch device, such as cuda.")
_BATCH_SIZE = click.option(
    "--batch-size",
    type=click.IntRange(1),
    metavar="N",
    default=32,
    show_default=True,
    help="Pictures encoded at a time.",
)
_CACHE = click.option("--cache", type=FILE, help="File that keeps the features; by default in the user's cache folder.")
_NO_CACHE = click.option("--no-cache", is_flag=True, help="Keep no features.")
_ENCODER = click.option(
    "--encoder",
    metavar="URI",
    default="auto",
    show_default=True,
    help="See 'clipadapter encoders'; auto is CLIP ViT-B/32 if it can be had, else lite.",
)
_ENCODER_NOW = click.option(
    "--encoder", metavar="URI", help="Where the model's encoder is now, if its weights were moved."
)

encoder_options = bundle("towers", Towers, _ENCODER, _DEVICE, _BATCH_SIZE, _CACHE, _NO_CACHE)
"""``--encoder`` (default auto), ``--device``, ``--batch-size``, ``--cache``, ``--no-cache``; as ``towers``."""

model_options = bundle("towers", Towers, _ENCODER_NOW, _DEVICE, _BATCH_SIZE, _CACHE, _NO_CACHE)
"""The same beside a fitted model, which knows its encoder; as ``towers``."""

embed_options = bundle("towers", Towers, _ENCODER, _DEVICE, _BATCH_SIZE, _CACHE)
"""The same where features must be kept; as ``towers``."""


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
        views: how many, the plain picture included.
        view_scale: smallest and largest share of the picture that an augmented view shows.
    """

    views: int = 1
    view_scale: tuple[float, float] = (0.5, 1.0)

    def spec(self, seed: int) -> ViewSpec:
        """As the extraction takes it."""
        from clipadapter.features import ViewSpec

        return ViewSpec(count=self.views, scale=self.view_scale, seed=seed)


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
    click.option(
        "--view-scale",
        type=float,
        nargs=2,
        default=(0.5, 1.0),
        show_default=True,
        metavar="LO HI",
        help="Share of the picture that a crop shows.",
    ),
)
"""``--views``, ``--view-scale``; as ``views``."""


@dataclass(frozen=True)
class HeadChoice:
    """A head by name, and its parameters.

    Args:
        head: registered name.
        settings: ``key=value`` texts.
    """

    head: str = "clip-adapter"
    settings: Sequence[str] = field(default_factory=tuple)

    def params(self) -> dict[str, Any]:
        """The parameters, each read as a JSON scalar, or else as the text it is.

        Raises:
            InputError: if a setting is not ``key=value``.
            UnknownNameError: if there is no such head, or it has no such parameter.
        """
        from clipadapter.heads import head_info

        known = list(inspect.signature(head_info(self.head).cls).parameters)
        params = {}
        for setting in self.settings:
            key, equals, text = setting.partition("=")
            if not equals:
                raise InputError(f"--set takes key=value, such as seed=1, but got '{setting}'")
            if key not in known:
                raise unknown(f"parameter of {self.head}", key, known)
            params[key] = _scalar(text)
        return params

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
        default="clip-adapter",
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
)
"""``--head`` and ``--set``; as ``head``."""

seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Of all that is drawn.")
split_option = click.option("--split", metavar="NAME", help="Part of the data: train, val or test.")
strict_option = click.option("--strict", is_flag=True, help="Fail at a picture that can't be read.")


def open_dataset(source: Path, split: str | None, default: str | None = None) -> Dataset:
    """Labelled pictures: a part of a data set, or all of it.

    Args:
        source: folder or manifest.
        split: the part that was asked for, or None.
        default: the part that is taken if none was asked for and it is there; else all are.

    Raises:
        DataError: if there are no pictures, one class, no labels, or no such part.
    """
    from clipadapter.data import load_dataset

    dataset = load_dataset(source)
    wanted = split or (default if default in dataset.splits else None)
    part = dataset.split(wanted) if wanted else dataset
    part.labels  # noqa: B018 - complains of pictures without one
    return part


def check_device(device: str) -> None:
    """Refuse a device that torch can't use here.

    Raises:
        InputError: if so.
    """
    import torch

    try:
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"the device '{device}' can't be used here ({error}): say cpu, or leave --device out"
        ) from error


def _scalar(text: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return text if isinstance(value, dict | list) else value
